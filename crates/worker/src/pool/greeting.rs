//! Reaching a guest, and the first words with it: it tells its clock and its environment, and is told the time if it is
//! wrong.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use ssh::{HostKeyPolicy, Identity, Processor, Readiness, Session, Target, Timing};
use tracing::{info, warn};

use super::guest_basedir::{self, Wanted};
use super::guest_command;
use super::machine::Login;
use super::network::Membership;
use crate::config::{Image, Profile};

/// How far a guest's clock may be off, beyond what asking takes.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Waits until a guest on a port of this host lets us in: as long, and until it is as ready, as is said.
pub(super) async fn reach(
    image: &Image,
    port: u16,
    host_key: HostKeyPolicy,
    processor: Processor,
    readiness: &Readiness,
) -> anyhow::Result<Session> {
    let target = Target {
        address: (Ipv4Addr::LOCALHOST, port).into(),
        user: image.user.clone(),
        identity: Identity::load(&image.key)?,
        host_key,
        dialect: image.profile.dialect.clone(),
        processor,
    };
    Ok(ssh::wait_until_ready(&target, &Timing::default(), readiness).await?.session)
}

/// The variables of a guest's commands.
pub(super) type Environment = Vec<(String, String)>;

/// Makes a login of a session, in a guest that has a place for builds then, and its address in its private network, if it is on
/// one.
pub(super) async fn log_in(
    session: Session,
    image: &Image,
    basedir: Wanted<'_>,
    membership: Option<&Membership>,
) -> anyhow::Result<Login> {
    let environment = exchange(&session, image).await?;
    let basedir = guest_basedir::settle(&session, image, basedir, &environment).await?;
    let login = Login { session, environment, basedir };
    if let Some(membership) = membership {
        membership.set_address(&login.session, &image.profile).await?;
    }
    Ok(login)
}

/// Asks for the environment that commands have, and sets a clock that is wrong.
async fn exchange(session: &Session, image: &Image) -> anyhow::Result<Environment> {
    let profile = &image.profile;
    let doing = "read the guest's environment";
    let command =
        profile.fill(&profile.environment, &[]).context("its profile has no environment command").context(doing)?;
    let before = SystemTime::now();
    let answer = guest_command::run(session, &command).await.context(doing)?;
    let after = SystemTime::now();
    let (clock, environment) = parse(&answer).ok_or_else(|| anyhow!("it did not begin with a time")).context(doing)?;
    if let Some(off) = off_by(clock, before, after)
        && !profile.clock.is_empty()
    {
        match set_clock(session, profile).await {
            Ok(()) => info!("the guest's clock was {off} s off and is set"),
            // Most builds don't mind, and which do nobody knows.
            Err(error) => warn!("the guest's clock is {off} s off and can't be set: {error:#}"),
        }
    }
    Ok(environment)
}

async fn set_clock(session: &Session, profile: &Profile) -> anyhow::Result<()> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
    if let Some(command) = profile.fill(&profile.clock, &[("time", &time)]) {
        guest_command::run(session, &command).await?;
    }
    Ok(())
}

/// Takes apart a line with a number, and variables.
fn parse(answer: &[u8]) -> Option<(i64, Environment)> {
    let end = answer.iter().position(|byte| *byte == b'\n')?;
    let clock = std::str::from_utf8(&answer[..end]).ok()?.trim().parse().ok()?;
    Some((clock, variables(&answer[end + 1..])))
}

/// Takes apart variables that each end in a NUL. Those that are not UTF-8 are left out.
pub(super) fn variables(text: &[u8]) -> Environment {
    let variables = text.split(|byte| *byte == 0);
    let variables = variables.filter_map(|variable| std::str::from_utf8(variable).ok()?.split_once('='));
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// By how many seconds a clock is off that showed these whole seconds at some moment between two.
fn off_by(clock: i64, before: SystemTime, after: SystemTime) -> Option<i64> {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    let (earliest, latest) = (seconds(before - TOLERANCE), seconds(after + TOLERANCE));
    match clock {
        // A guest may say any number.
        clock if clock < earliest => Some(clock.saturating_sub(seconds(before))),
        clock if clock > latest => Some(clock.saturating_sub(seconds(after))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_time_and_an_environment() {
        let check = |answer: &[u8], expected: Option<(i64, &[(&str, &str)])>| {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let expected = expected.map(|(clock, variables)| (clock, variables.iter().map(owned).collect()));
            assert_eq!(parse(answer), expected, "{answer:?}");
        };
        check(b"1700000000\nA=1\0B=two\nlines=2\0", Some((1_700_000_000, &[("A", "1"), ("B", "two\nlines=2")])));
        check(b"17\r\nA=\xff\0B=\0nonsense\0", Some((17, &[("B", "")])));
        check(b"17\n", Some((17, &[])));
        check(b"A=1\0B=2\n", None);
        check(b"", None);
    }

    #[test]
    fn a_clock_is_off_by_what_asking_does_not_explain() {
        let at = |seconds: f64| UNIX_EPOCH + Duration::from_secs_f64(seconds);
        let check = |clock, expected| assert_eq!(off_by(clock, at(100.5), at(103.5)), expected, "{clock}");
        check(98, Some(-2));
        check(99, None);
        check(104, None);
        check(105, Some(2));
        check(4_000_000_000, Some(3_999_999_897));
        check(i64::MIN, Some(i64::MIN));
        check(i64::MAX, Some(i64::MAX - 103));
    }
}
