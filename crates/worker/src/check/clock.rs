//! Whether the host's clock can be trusted. Certificates need it, guests get their time from it, and the times in logs are
//! its.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::libc;

use super::Finding;
use crate::config::{Config, Scheme};

/// No clock was right before this program was written: 2026-01-01.
const WRITTEN: Duration = Duration::from_secs(1_767_225_600);

/// How far a file's time may be ahead, such as by that of another host that wrote it.
const AHEAD: Duration = Duration::from_secs(60);

/// What is known of the clock.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Since 1970.
    now: Duration,
    /// When something was written that is here already, since 1970.
    written: Option<Duration>,
    /// Whether the kernel says that something keeps it right; none if it does not say.
    synchronised: Option<bool>,
    /// Whether the line to the master needs it.
    certificates: bool,
}

pub(super) async fn look(config: &Config) -> Finding {
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let files: Vec<PathBuf> = vec![config.worker.basedir.clone(), config.pool.state_dir.clone()];
    let modified =
        move || files.iter().filter_map(|file| std::fs::metadata(file).and_then(|file| file.modified()).ok()).max();
    let written = tokio::task::spawn_blocking(modified).await.ok().flatten();
    judge(Seen {
        now: since(SystemTime::now()),
        written: written.map(since),
        synchronised: synchronised(),
        certificates: matches!(config.worker.master.scheme, Scheme::Pbs | Scheme::Wss),
    })
}

fn judge(seen: Seen) -> Finding {
    let Seen { now, written, synchronised, certificates } = seen;
    let set = || Some("set it, and run a time service such as systemd-timesyncd or chrony".to_owned());
    let check = |text: &str| {
        if certificates {
            format!("{text}; the master's certificate can't be checked with it")
        } else {
            text.to_owned()
        }
    };
    if now < WRITTEN {
        return Finding::failed("clock", check("it is years behind"), set());
    }
    if written.is_some_and(|written| written > now + AHEAD) {
        return Finding::warning(
            "clock",
            check("it is behind the time at which the worker's directories were changed"),
            set(),
        );
    }
    match synchronised {
        Some(true) => Finding::ok("clock", "a time service keeps it right"),
        Some(false) => Finding::warning(
            "clock",
            "the kernel says that no time service keeps it right",
            Some("run one, such as systemd-timesyncd or chrony".to_owned()),
        ),
        None => Finding::skipped("clock", "the kernel does not say whether a time service keeps it right"),
    }
}

/// Whether something keeps the kernel's clock right (adjtimex(2)).
fn synchronised() -> Option<bool> {
    // SAFETY: all of its fields are numbers, for which zero is a value, and zero in `modes` changes nothing.
    #[allow(unsafe_code)]
    let (state, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex)
    };
    (state >= 0).then_some(state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_clock_is_as_good_as_what_keeps_it() {
        let check = |now: u64, written: Option<u64>, synchronised, verdict, text: &str| {
            let now = WRITTEN + Duration::from_secs(now);
            let written = written.map(|written| WRITTEN + Duration::from_secs(written));
            let finding = judge(Seen { now, written, synchronised, certificates: false });
            assert_eq!((finding.verdict, finding.text.contains(text)), (verdict, true), "{finding:?}");
        };
        check(1000, Some(900), Some(true), Verdict::Ok, "keeps it right");
        check(1000, None, Some(true), Verdict::Ok, "keeps it right");
        check(1000, Some(1030), Some(true), Verdict::Ok, "keeps it right");
        check(1000, Some(2000), Some(true), Verdict::Warning, "behind the time");
        check(1000, Some(900), Some(false), Verdict::Warning, "no time service");
        check(1000, Some(900), None, Verdict::Skipped, "does not say");
        let epoch = Seen { now: Duration::from_secs(5), written: None, synchronised: Some(false), certificates: true };
        let finding = judge(epoch);
        assert_eq!(finding.verdict, Verdict::Failed);
        assert!(finding.text.contains("certificate"), "{finding:?}");
    }
}
