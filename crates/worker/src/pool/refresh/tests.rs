use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use super::super::prepare::prepare;
use super::*;
use crate::commands::server::{Kind, Server};
use crate::config::{Config, Overrides, Template};

/// Something that speaks as the restorer does, and does nothing to this host: it asks for a line, and tells its environment.
const ASK: &str = "echo ready; read -r seconds nanoseconds entropy";
const TELL: &str = "exec env -0";

fn restore() -> String {
    format!("{ASK}; {TELL}")
}

/// An image with more keys, whose profile has these commands.
fn image(restore: &str, more: &str) -> (Name, Image) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.toml");
    let text = format!(
        "[worker]\nname = 'w'\nmaster = 'pb://localhost:1'\npassword_file = '/p'\nbasedir = '/b'\n\
         [profiles.p]\nbase = 'linux'\nprepare = ''\nrestore = '''{restore}'''\n\
         [images.Debian_12]\ndisk = '/d'\nuser = 'u'\nkey = '/k'\ntemplate = true\nprofile = 'p'\n{more}\n"
    );
    std::fs::write(&file, text).expect("write the configuration");
    let config: Config = Config::load(Some(&file), &Overrides::default()).expect("a configuration");
    config.images.into_iter().next().expect("an image")
}

/// What a refreshed guest's environment has for a variable, or why there is none.
async fn refreshed(server: &Server, (name, image): &(Name, Image), variable: &str) -> Result<Option<String>, String> {
    let login = refresh(server.session().await, name, image, GuestBasedir::of_host(Path::new("/srv/w")))
        .await
        .map_err(|error| format!("{error:#}"))?;
    Ok(login.environment.into_iter().find(|(name, _)| name == variable).map(|(_, value)| value))
}

/// What happens with these commands, in an image with more keys.
async fn check(restore: &str, more: &str, expected: Result<&str, &str>) {
    let server = Server::with(Kind::OpenSsh, "SetEnv WITNESS=seen");
    let found = refreshed(&server, &image(restore, more), "WITNESS").await;
    let expected = expected.map(|text| Some(text.to_owned())).map_err(str::to_owned);
    assert_eq!(found, expected, "{restore} {more}");
}

#[tokio::test]
async fn a_clone_that_is_restored_has_the_environment_of_a_login() {
    check(&restore(), "", Ok("seen")).await;
    // The first line was late, for the guest.
    check(&format!("{ASK}; {ASK}; [ ${{#entropy}} = 128 ] && {TELL}"), "", Ok("seen")).await;
    // One that always finds it too late is told no more, and goes on.
    check(&format!("while echo ready; read -r line; do :; done; {TELL}"), "", Ok("seen")).await;
    check(&restore(), "post_restore = 'echo out; echo err >&2'", Ok("seen")).await;
    check(&restore(), "post_restore = 'read -r nothing || exit 0; exit 1'", Ok("seen")).await;
    // What it left running is not waited for.
    check(&restore(), "post_restore = 'sleep 5 &'", Ok("seen")).await;
}

#[tokio::test]
async fn what_fails_in_a_clone_is_named_and_shows_what_it_said() {
    let failed = async |restore: &str, more, why| check(restore, more, Err(why)).await;
    failed("exit 3", "", "run its profile's restore command: ended with exit code 3").await;
    failed("exit 3", "post_restore = 'true'", "run its profile's restore command: ended with exit code 3").await;
    failed(
        "echo ready; echo clock_settime >&2; exit 1",
        "",
        "run its profile's restore command: ended with exit code 1: clock_settime",
    )
    .await;
    failed(ASK, "", "run its profile's restore command: it told no environment").await;
    failed(
        &restore(),
        "post_restore = 'echo no such; echo \"service\" >&2; exit 4'",
        "run its post_restore command: ended with exit code 4: no such\nservice",
    )
    .await;
    failed(
        &restore(),
        "post_restore = 'echo begun; exec sleep 1000'\nboot_timeout = 1",
        "run its post_restore command: no end within 1 s: begun",
    )
    .await;
}

#[tokio::test]
async fn the_clock_is_told_after_the_guest_is_ready_for_it() {
    let server = Server::start(Kind::OpenSsh);
    let file = server.path("told");
    let restore = format!("date +%s%N >{0}; echo ready; read -r line; echo \"$line\" >>{0}; {TELL}", file.display());
    refreshed(&server, &image(&restore, ""), "A").await.expect("it is refreshed");
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).expect("it is later").as_nanos();
    let told = std::fs::read_to_string(file).expect("what was told");
    let words: Vec<&str> = told.split_whitespace().collect();
    let [asked, seconds, nanoseconds, _] = words[..] else { panic!("{told:?}") };
    let number = |text: &str| text.parse::<u128>().expect("a number");
    let told = number(seconds) * 1_000_000_000 + number(nanoseconds);
    assert!((number(asked)..=since(SystemTime::now())).contains(&told), "{asked} {told}");
}

#[tokio::test]
async fn names_are_new_in_each_clone_if_the_image_asks_for_it() {
    let server = Server::start(Kind::OpenSsh);
    let mut seen = BTreeSet::new();
    for more in
        ["", "fresh_machine_id = true\nfresh_host_name = true", "fresh_machine_id = true\nfresh_host_name = true"]
    {
        let file = server.path("names");
        let restore = format!("{ASK}; echo {{machine_id}}.{{host_name}} >{}; {TELL}", file.display());
        refreshed(&server, &image(&restore, more), "A").await.expect("it is refreshed");
        let names = std::fs::read_to_string(file).expect("the names");
        let (id, host) = names.trim_end().split_once('.').expect("two names");
        if more.is_empty() {
            assert_eq!((id, host), ("", ""));
            continue;
        }
        let number = host.strip_prefix("debian-12-").expect("the image's name");
        for digits in [id, number] {
            assert!(digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)), "{names}");
            assert!(seen.insert(digits.to_owned()), "{digits} a second time");
        }
        assert_eq!((id.len(), number.len(), &id[12..13]), (32, 8, "4"));
    }
}

#[test]
fn a_host_name_is_what_the_system_takes_for_one() {
    let check = |image: &str, expected: &str| {
        let name = host_name(&Name::new(image).expect("an image's name"));
        assert_eq!(name.rsplit_once('-').map(|(image, _)| image), Some(expected), "{name}");
        assert!(name.len() <= 63, "{name}");
    };
    check("debian-12", "debian-12");
    check("Debian_12.1+x", "debian-12-1-x");
    check("a-", "a");
    check(&"a".repeat(64), &"a".repeat(54));
}

/// Prepares a guest; returns what the file that its commands write to has.
async fn prepared(prepare_command: &str, more: &str) -> Result<String, String> {
    let server = Server::start(Kind::OpenSsh);
    let file = server.path("done");
    let here = |text: &str| text.replace("FILE", &file.display().to_string());
    let (name, mut image) =
        image(&here("echo restored by rehearsal >>FILE; echo ready; read -r line; exec env -0"), &here(more));
    let mut profile = (*image.profile).clone();
    profile.prepare = Template::new(here(prepare_command));
    image.profile = profile.into();
    prepare(server.session().await, &name, &image).await.map_err(|error| format!("{error:#}"))?;
    server.ended().await;
    Ok(read(&file))
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).expect("it was written")
}

#[tokio::test]
async fn what_a_template_needs_is_done_in_order_and_its_session_ended() {
    let (size, warm_up) = (restorer::program().len(), "warm_up = 'echo warm >>FILE; seq 100000'\n");
    let found = prepared("wc -c >FILE", &format!("{warm_up}post_restore = 'echo hook >>FILE'")).await;
    assert_eq!(found, Ok(format!("{size}\nwarm\nrestored by rehearsal\n")));
    assert_eq!(prepared("", warm_up).await, Ok("warm\nrestored by rehearsal\n".to_owned()));
}

#[tokio::test]
async fn what_fails_before_a_freeze_is_named() {
    let failed =
        async |prepare, more, expected: &str| assert_eq!(prepared(prepare, more).await, Err(expected.to_owned()));
    failed("echo no room >&2; exit 1", "", "run its profile's prepare command: no room").await;
    failed(
        "",
        "warm_up = 'echo one; echo two >&2; exit 2'",
        "run its warm_up command: ended with exit code 2: one\ntwo",
    )
    .await;
}
