//! From a directory to files, and back through the configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use clap::Parser;

use super::super::*;
use super::{IMPORT, PASSWORD};
use crate::cli::{Cli, Verb};
use crate::config::{Config, Overrides, PasswordSource};

/// A directory as create-worker leaves it, and a place for the configuration.
struct Site {
    root: tempfile::TempDir,
}

impl Site {
    /// The texts in `testdata/` were written by create-worker of the release in their names; comments are cut out.
    fn new(tac: &str) -> Self {
        let site = Site { root: tempfile::tempdir().unwrap() };
        fs::create_dir_all(site.worker().join("info")).unwrap();
        fs::write(site.worker().join("info/admin"), "me\n").unwrap();
        let tac = tac.replace("/srv/buildbot/worker", site.worker().to_str().unwrap());
        fs::write(site.worker().join("buildbot.tac"), tac).unwrap();
        site
    }

    fn worker(&self) -> PathBuf {
        self.root.path().join("worker")
    }

    fn output(&self) -> PathBuf {
        self.root.path().join("kvm1.toml")
    }

    fn password_file(&self) -> PathBuf {
        self.root.path().join("kvm1.password")
    }

    /// Imports and loads; with what is left to a person.
    fn round_trip(&self) -> (Config, Vec<String>) {
        let imported = run(&self.worker(), Some(&self.output())).unwrap();
        assert_eq!(imported.printed, None);
        (Config::load(Some(&self.output()), &Overrides::default()).unwrap(), imported.report.by_hand)
    }
}

/// What a test looks at in a configuration.
#[derive(Debug, PartialEq)]
struct Loaded {
    name: String,
    master: String,
    password: String,
    delete_leftover_dirs: bool,
    /// connect_timeout, dead_after and retry_max.
    seconds: [u64; 3],
}

#[track_caller]
fn check_round_trip(tac: &str, expected: [&str; 3], delete_leftover_dirs: bool, seconds: [u64; 3], by_hand: &[&str]) {
    let site = Site::new(tac);
    let (config, left) = site.round_trip();
    let times = [config.connection.connect_timeout, config.connection.dead_after, config.connection.retry_max];
    let loaded = Loaded {
        name: config.worker.name.clone(),
        master: config.worker.master.to_string(),
        password: config.worker.password.read().unwrap().reveal().to_owned(),
        delete_leftover_dirs: config.worker.delete_leftover_dirs,
        seconds: times.map(|time| time.as_secs()),
    };
    let [name, master, password] = expected.map(str::to_owned);
    assert_eq!(loaded, Loaded { name, master, password, delete_leftover_dirs, seconds });
    let relocatable = tac.contains("basedir = '.'");
    assert_eq!((relocatable || tac.contains("/srv/"), config.worker.basedir), (true, site.worker()));
    assert_eq!(left, by_hand);
    assert_eq!(fs::metadata(site.password_file()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_create_worker_wrote_becomes_a_configuration_that_loads() {
    let check = check_round_trip;
    const DEFAULTS: [u64; 3] = [30, 120, 60];
    check(
        include_str!("testdata/4.3.0-plain.tac"),
        ["worker1", "pb://master.example.org:9989", PASSWORD],
        false,
        DEFAULTS,
        &[],
    );
    check(
        include_str!("testdata/4.3.0-every-option.tac"),
        ["o'brien", "pbs://[2001:db8::1]:9988", "it's\"q\\b"],
        true,
        [30, 120, 30],
        &[],
    );
    check(
        include_str!("testdata/4.3.0-msgpack.tac"),
        ["w3", "ws://ci.example.org:9990", PASSWORD],
        false,
        DEFAULTS,
        &[],
    );
    check(
        include_str!("testdata/4.3.0-connection-string.tac"),
        ["w2", "pbs://ci.example.org:9991", PASSWORD],
        false,
        [10, 120, 60],
        &[
            "worker.ca_file: buildbot.tac:19: the master's certificate is vouched for by those in \"/etc/ci\"; put them into one file (cat DIRECTORY/*.pem >FILE) and set worker.ca_file to it",
        ],
    );
    check(
        include_str!("testdata/4.3.0-proxy.tac"),
        ["w4", "pb://master.example.org:9989", PASSWORD],
        false,
        DEFAULTS,
        &[
            "worker.master: buildbot.tac:38: kvm-worker does not go through a proxy; where it has to, run a tunnel, such as `socat TCP-LISTEN:9989,bind=127.0.0.1,fork,reuseaddr PROXY:proxy:master.example.org:9989,proxyport=3128`, and let worker.master name its near end",
        ],
    );
    check(
        include_str!("testdata/2.10.5.tac"),
        ["kvm2.10.5", "pb://ci.example.org:9990", "s3cret"],
        false,
        DEFAULTS,
        &[],
    );
    check(
        include_str!("testdata/0.9.15.tac"),
        ["kvm0.9.15", "pb://ci.example.org:9990", "s3cret"],
        false,
        DEFAULTS,
        &[],
    );
}

#[test]
fn any_name_and_basedir_survive_the_configuration_file() {
    let name = "a\"b\\c\u{7}\u{7f}\né€#";
    let site = Site::new(&format!(
        "{IMPORT}import os\nWorker('h', 1, 'a\"b\\\\c\\a\\x7f\\né€#', '{PASSWORD}', os.path.dirname(__file__))\n"
    ));
    let (config, _) = site.round_trip();
    assert_eq!((config.worker.name.as_str(), config.worker.basedir), (name, site.worker()));
}

#[test]
fn the_password_is_in_its_own_file_only() {
    let site = Site::new(include_str!("testdata/4.3.0-plain.tac"));
    let written = run(&site.worker(), Some(&site.output())).unwrap();
    let printed = run(&site.worker(), None).unwrap();
    let holds = |text: &str| text.contains(PASSWORD);
    assert_eq!(fs::read_to_string(site.password_file()).unwrap(), format!("{PASSWORD}\n"));
    assert!(!holds(&fs::read_to_string(site.output()).unwrap()));
    assert!(!holds(&written.report.to_string()) && !holds(&format!("{written:?}{printed:?}")));
    assert!(written.report.is_complete() && printed.report.is_complete(), "{written:?} {printed:?}");
    assert!(printed.printed.unwrap().contains("\npassword_file = \"/etc/kvm-worker/password\"\n"));
    assert!(printed.report.next[0].contains("(umask 077; cat >/etc/kvm-worker/password)"), "{}", printed.report);
}

#[test]
fn a_password_that_is_not_in_the_file_is_left_to_a_person() {
    let site = Site::new(&format!("{IMPORT}Worker('h', 1, 'n', open('x').read(), '.')\n"));
    let (config, left) = site.round_trip();
    assert_eq!(
        left,
        ["worker.password_file: buildbot.tac:2: the password is read from another file; write it into that file"]
    );
    assert_eq!(config.worker.password, PasswordSource::File(site.password_file()));
    assert!(!site.password_file().exists());
}

#[test]
fn files_that_exist_are_left_alone() {
    let site = Site::new(include_str!("testdata/4.3.0-plain.tac"));
    let check = |present: &Path, absent: &Path| {
        fs::write(present, "mine").unwrap();
        let error = format!("{:#}", run(&site.worker(), Some(&site.output())).unwrap_err());
        assert!(error.contains(&format!("make {}; import does not overwrite", present.display())), "{error}");
        assert_eq!((fs::read_to_string(present).unwrap().as_str(), absent.exists()), ("mine", false));
        fs::remove_file(present).unwrap();
    };
    check(&site.output(), &site.password_file());
    check(&site.password_file(), &site.output());
    let target = site.root.path().join("elsewhere");
    std::os::unix::fs::symlink(&target, site.password_file()).unwrap();
    run(&site.worker(), Some(&site.output())).unwrap_err();
    assert!(!target.exists());
}

#[test]
fn the_password_file_is_named_after_the_configuration() {
    let check = |output: &str, expected: Option<&str>| {
        assert_eq!(write::password_file(Path::new(output)).ok().as_deref(), expected.map(Path::new), "{output}");
    };
    check("/etc/kvm-worker/a.toml", Some("/etc/kvm-worker/a.password"));
    check("/etc/a.b.toml", Some("/etc/a.b.password"));
    check("/etc/a", Some("/etc/a.password"));
    check("/etc/a.password", None);
    check("/", None);
    check("/etc/..", None);
}

#[test]
fn what_is_no_buildbot_tac_is_refused_with_the_reason() {
    let site = Site::new("");
    let tac = site.worker().join("buildbot.tac");
    let check = |reason: &str| {
        let error = format!("{:#}", run(&site.worker(), Some(&site.output())).unwrap_err());
        assert!(error.starts_with(&format!("import {}: {reason}", tac.display())), "{error}");
        assert!(!site.output().exists() && !site.password_file().exists());
    };
    check("no call of Worker(...)");
    fs::write(&tac, "#".repeat(64 * 1024 + 1)).unwrap();
    check("it is larger than 64 KiB");
    fs::write(&tac, b"x = '\xff'").unwrap();
    check("it is not UTF-8 text");
    fs::write(&tac, b"\0\x01ELF").unwrap();
    check("it is not UTF-8 text");
    fs::remove_file(&tac).unwrap();
    check("name the directory that buildbot-worker was started with");
    nix::unistd::mkfifo(&tac, nix::sys::stat::Mode::S_IRWXU).unwrap();
    check("it is not a file");
    fs::remove_file(&tac).unwrap();
    fs::create_dir(&tac).unwrap();
    check("it is not a file");
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let site = Site::new(&format!(
        "{IMPORT}Worker('h', 1, 'n\\x1b[2J', '{PASSWORD}', '\\x1b]0;x\\x07', colour='\\x1b', umask='\\x1b')\n"
    ));
    fs::create_dir_all(site.worker().join("\u{1b}]0;x\u{7}/info")).unwrap();
    fs::write(site.worker().join("\u{1b}]0;x\u{7}/info/\u{1b}[2J"), "").unwrap();
    let report = run(&site.worker(), None).unwrap().report.to_string();
    assert!(report.contains("2J") && report.chars().all(|c| c == '\n' || !c.is_control()), "{report:?}");
}

#[test]
fn the_command_line_names_a_directory_and_perhaps_a_file() {
    let check = |arguments: &[&str], expected: Option<(&str, Option<&str>)>| {
        let parsed = Cli::try_parse_from([&["kvm-worker", "import"], arguments].concat()).ok();
        let import = parsed.map(|cli| match cli.verb {
            Verb::Import(import) => (import.directory, import.output),
            other => panic!("{other:?}"),
        });
        let expected = expected.map(|(directory, output)| (PathBuf::from(directory), output.map(PathBuf::from)));
        assert_eq!(import, expected, "{arguments:?}");
    };
    check(&["/srv/w"], Some(("/srv/w", None)));
    check(&["w", "--output", "c.toml"], Some(("w", Some("c.toml"))));
    check(&[], None);
    check(&["a", "b"], None);
}

#[test]
fn what_lies_beside_the_file_is_told() {
    let site = Site::new(&format!("{IMPORT}Worker('h', 1, 'n', '{PASSWORD}', '/nowhere/{}')\n", "x".repeat(80)));
    let basedir = format!("/nowhere/{}", "x".repeat(80));
    let report = run(&site.worker(), None).unwrap().report;
    let directory = site.worker().display().to_string();
    assert_eq!(
        report.by_hand,
        [format!("worker.basedir: there is no directory {basedir:?} on this host; make it, or set another")]
    );
    let told = |line: &str| report.different.iter().any(|told| told == line);
    assert!(told(&format!("worker.basedir is not {directory:?}: buildbot.tac names another directory")), "{report}");
    assert!(
        told(&format!(
            "machines, and commands such as kvm-worker drain, need a second directory: set pool.state_dir, at the latest with the first image, for its default \"{basedir}-vms\" is longer than 80 bytes"
        )),
        "{report}"
    );
    assert!(told("info/ has no files; info/admin and info/host describe the worker to the master"), "{report}");
}
