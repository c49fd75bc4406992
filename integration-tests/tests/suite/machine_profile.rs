//! What a guest is told at login, and the commands of its profile.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, Rig};
use toml::Value;

/// A guest whose hardware clock is years behind, with this profile.
fn in_the_past(profile: &str) -> Result<Guest> {
    let arguments = ["-rtc", "base=2001-01-01T00:00:00"].map(Value::from).to_vec();
    Ok(Guest::plain()?.with("qemu_args", Value::Array(arguments)).with("profile", profile))
}

#[test]
#[ignore = "long"]
fn wrong_clock_is_set_unless_the_profile_has_no_command_for_it() -> Result<()> {
    let rig = Rig::with(
        r#"steps.StartVM(image="set"),
           steps.VMShellCommand(name="now", command="date -u +%s"),
           steps.StopVM(),
           steps.StartVM(image="kept"),
           steps.VMShellCommand(name="then", command="date -u +%Y"),
           steps.StopVM(),"#,
        |host| {
            let without = [("base", "linux"), ("clock", "")].map(|(key, value)| (key.to_owned(), value.into()));
            host.set("profiles.no-clock", Value::Table(without.into_iter().collect()));
            host.image("set", in_the_past("linux")?);
            host.image("kept", in_the_past("no-clock")?);
            Ok(())
        },
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    let now: u64 = build.step("now")?.stdio().stdout.trim().parse().context("seconds")?;
    let ours = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!((ours - 300..=ours + 5).contains(&now), "the guest says {now}, and it is {ours}");
    assert_eq!(build.step("then")?.stdio().stdout, "2001\n");
    rig.finish()
}
