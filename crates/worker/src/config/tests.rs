use super::*;

pub(super) fn parse(toml: &str) -> Result<Config, Vec<String>> {
    let tree = built_in()
        .add_source(File::from_str(toml, FileFormat::Toml))
        .build()
        .map_err(|error| vec![error.to_string()])?;
    Config::parse(tree.cache).map_err(|problems| problems.lines())
}

const MINIMAL: &str = r#"
[worker]
name = "w"
master = "ws://localhost:9990"
password_file = "/p"
basedir = "/b"
"#;

#[test]
fn the_documented_defaults_are_the_defaults() {
    let documented = parse(DEFAULT_FILE).unwrap();
    let minimal = parse(&format!("{MINIMAL}\n[images.i]\ndisk = \"/d\"\nuser = \"u\"\nkey = \"/k\"")).unwrap();
    assert_eq!(documented.connection, minimal.connection);
    assert_eq!(documented.log, minimal.log);
    assert_eq!(documented.worker.drain_quiet, minimal.worker.drain_quiet);
    assert_eq!(documented.pool, Pool { state_dir: documented.pool.state_dir.clone(), ..minimal.pool.clone() });
    let image = |config: &Config| config.images.values().next().unwrap().clone();
    let (theirs, ours) = (image(&documented), image(&minimal));
    assert_eq!(theirs, Image { disk: theirs.disk.clone(), user: theirs.user.clone(), key: theirs.key.clone(), ..ours });
}

/// What the file documents is all there is: each key appears in it, if only in a comment.
#[test]
fn every_key_is_documented() {
    let complaint = parse(&format!("{MINIMAL}qqqqqqqq = 1\n[connection]\nqqqqqqqq = 1\n[pool]\nqqqqqqqq = 1\n[control]\nqqqqqqqq = 1\n[log]\nqqqqqqqq = 1\n[images.i]\nqqqqqqqq = 1\n[profiles.p]\nqqqqqqqq = 1\n"))
        .unwrap_err()
        .join("\n");
    let keys: Vec<_> = complaint
        .lines()
        .filter_map(|line| line.split_once("the keys here are "))
        .flat_map(|(_, keys)| keys.split(", "))
        .collect();
    assert!(keys.len() > 30, "{complaint}");
    for key in keys {
        let documented =
            DEFAULT_FILE.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
        assert!(documented, "{key}");
    }
}

fn check(toml: &str, expected: &[&str]) {
    let problems = parse(toml).map(|_| ()).unwrap_err();
    assert_eq!(problems, expected, "{toml}");
}

#[test]
fn all_problems_are_told_at_once_with_key_value_and_remedy() {
    check(
        r#"
        [worker]
        name = "a:b"
        master = "http://localhost:8010"
        basedir = "work"
        [pool]
        slots = 0
        slot = 3
        accel = "xen"
        state_dir = 7.5
        [images."../x"]
        [images.d]
        disk = "/d"
        user = "u"
        key = "/k"
        host_key = "nonsense"
        append = "quiet"
        [unrelated_things]
        "#,
        &[
            "worker.name = \"a:b\": should be a name without a colon",
            "worker.master = \"http://localhost:8010\": should be \"pb://HOST:PORT\" or \"pbs://HOST:PORT\", the port of the master's pb protocol, or \"ws://HOST:PORT\" or \"wss://HOST:PORT\", that of its msgpack_experimental_v7 protocol",
            "worker.password_file: is missing; set it to the path of a file whose first line is the worker's password (or set password_credential)",
            "worker.basedir = \"work\": should be an absolute path",
            "pool.slots = 0: should be a whole number from 1 to 1000",
            "pool.state_dir = 7.5: should be text",
            "pool.accel = \"xen\": should be \"auto\", \"kvm\" or \"tcg\"",
            "pool.slot: is not a key; did you mean slots?",
            "images.../x: choose a name of at most 64 letters, digits, '_', '.', '+' and '-', other than 'host'",
            "images.d.append = quiet: goes with kernel, which is missing",
            "images.d.host_key = \"nonsense\": should be a line such as \"ssh-ed25519 AAAA...\"",
            "unrelated_things: is not a key; the keys here are worker, profiles, connection, pool, control, log, images",
        ],
    );
}

#[test]
fn slots_have_ports_and_sockets_have_short_paths() {
    check(
        &format!(
            "{MINIMAL}[images.i]\ndisk = \"/d\"\nuser = \"u\"\nkey = \"/k\"\n[pool]\nssh_port_base = 65535\nstate_dir = \"/{}\"",
            "x".repeat(80)
        ),
        &[
            "pool.ssh_port_base = 65535: leave a port below 65536 for every slot and one more",
            &format!(
                "pool.state_dir = /{}: choose a path of at most 80 bytes: sockets are made below it",
                "x".repeat(80)
            ),
        ],
    );
}

#[test]
fn a_guests_basedir_is_the_hosts_or_far_from_it() {
    let image = |basedir: &str| {
        format!("{MINIMAL}[images.i]\ndisk = '/d'\nuser = 'u'\nkey = '/k'\nguest_basedir = '{basedir}'")
    };
    let refused = |basedir: &str| {
        let remedy = "choose worker.basedir itself, which is the default, or a directory that is neither in it nor around it: \
                      else paths of the guest could be taken for the host's";
        check(&image(basedir), &[&format!("images.i.guest_basedir = {basedir}: {remedy}")]);
    };
    refused("/b/guest");
    refused("/");
    assert!(parse(&image("/b")).is_ok() && parse(&image("/bb")).is_ok());
}

#[test]
fn what_is_cloned_has_a_profile_that_can_restore() {
    let image = "disk = '/d'\nuser = 'u'\nkey = '/k'\ntemplate = true";
    check(
        &format!(
            "{MINIMAL}[profiles.p]\nbase = 'linux'\nrestore = ''\n
            [images.i]\n{image}\nprofile = 'p'\n[images.j]\n{image}\nprofile = 'freebsd'\n[images.k]\n{image}"
        ),
        &[
            "images.i.template = true: needs a profile with a restore command; 'p' has none: leave it out, machines are booted then",
            "images.j.template = true: needs a profile with a restore command; 'freebsd' has none: leave it out, machines are booted then",
        ],
    );
}

#[test]
fn warm_machines_are_clones_in_slots() {
    let image = "disk = \"/d\"\nuser = \"u\"\nkey = \"/k\"";
    check(
        &format!("{MINIMAL}[images.i]\n{image}\nwarm = 1\n[images.j]\n{image}\ntemplate = true\nwarm = 2"),
        &[
            "images.i.warm = 1: goes with template = true: warm machines are clones",
            "pool.slots = 2: have at least 3: that many machines are to be kept warm, each in a slot",
        ],
    );
}

#[test]
fn addresses_are_understood_or_refused() {
    let check = |text: &str, expected: Option<&str>| {
        assert_eq!(MasterAddress::parse(text).ok().map(|address| address.to_string()).as_deref(), expected, "{text}");
    };
    check("ws://h:1", Some("ws://h:1"));
    check("wss://h", Some("wss://h:443"));
    check("wss://h:8443/ci", Some("wss://h:8443/ci"));
    check("ws://[::1]:9990", Some("ws://[::1]:9990"));
    check("h", Some("pb://h:9989"));
    check("h:1", Some("pb://h:1"));
    check("pb://h", Some("pb://h:9989"));
    check("pbs://h:1", Some("pbs://h:1"));
    for bad in
        ["", "ws://h", "ws://:1", "ws://h:0", "ws://h:99999", "ws://u@h:1", "ws://h:1/a b", "pb://h:1/a", "x://h:1"]
    {
        check(bad, None);
    }
}

#[test]
fn a_password_is_the_first_line_of_a_file_that_is_not_everybodys() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    let read = |content: &str, mode: u32| {
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let password = PasswordSource::File(path.clone()).read()?;
        assert_eq!(format!("{password:?}"), "Password(...)");
        Ok::<_, anyhow::Error>(password.reveal().to_owned())
    };
    assert_eq!(read("s3cret word\nmore\n", 0o600).unwrap(), "s3cret word");
    assert_eq!(read("x", 0o640).unwrap(), "x");
    assert!(format!("{:#}", read("x", 0o644).unwrap_err()).contains("chmod 600"));
    assert!(format!("{:#}", read("\n", 0o600).unwrap_err()).contains("first line is empty"));
}

#[test]
fn the_state_directory_is_never_inside_the_basedir() {
    let with_slash = parse(&MINIMAL.replace("\"/b\"", "\"/srv/./w/\"")).unwrap();
    assert_eq!(with_slash.worker.basedir.as_os_str(), "/srv/w");
    assert_eq!(with_slash.pool.state_dir.as_os_str(), "/srv/w-vms");
    check(
        &format!("{MINIMAL}[pool]\nstate_dir = \"/b/vms\""),
        &[
            "pool.state_dir = /b/vms: choose a directory outside worker.basedir, in which a master removes what it does not know",
        ],
    );
}

#[test]
fn a_profile_takes_from_its_base_what_it_does_not_say() {
    let config = parse(&format!(
        "{MINIMAL}
        [profiles.linux]
        hosts = 'changed'
        [profiles.doas]
        base = 'linux'
        shutdown = 'doas poweroff'
        [profiles.odd]
        base = 'doas'
        network = ''
        [images.i]
        disk = '/d'
        user = 'u'
        key = '/k'
        profile = 'odd'
        [images.j]
        disk = '/d'
        user = 'u'
        key = '/k'
        shutdown = 'halt'"
    ))
    .unwrap();
    let image = |name: &str| config.images[&Name::new(name).unwrap()].clone();
    let (odd, linux) = (image("i").profile, image("j").profile);
    assert_eq!(
        (
            odd.name.as_str(),
            odd.dialect.clone(),
            odd.shutdown.to_string(),
            odd.network.to_string(),
            odd.hosts.to_string()
        ),
        ("odd", ssh::Dialect::LINUX, "doas poweroff".to_owned(), String::new(), "changed".to_owned())
    );
    assert_eq!((linux.name.as_str(), linux.hosts.to_string()), ("linux", "changed".to_owned()));
    assert_eq!(image("i").shutdown.as_deref(), Some("doas poweroff"));
    assert_eq!(image("j").shutdown.as_deref(), Some("halt"));
}

#[test]
fn profiles_that_lead_nowhere_are_refused() {
    check(
        &format!(
            "{MINIMAL}
            [profiles.a]
            base = 'b'
            [profiles.b]
            base = 'a'
            [profiles.c]
            base = 'none'
            [profiles.d]
            shell = 'fish'
            [profiles.e]
            base = 'windows'
            shell = 'posix'
            [profiles.g]
            base = 'windows'
            restore = 'x'
            [images.i]
            disk = '/d'
            user = 'u'
            key = '/k'
            profile = 'f'"
        ),
        &[
            "profiles.d.shell = \"fish\": should be \"posix\", \"powershell\" or \"cmd\"",
            "profiles.a.base: leads back to the profile itself; name one that does not",
            "profiles.b.base: leads back to the profile itself; name one that does not",
            "profiles.c.base: 'none' is not a profile; there are a, b, c, d, e, freebsd, g, linux, windows",
            "profiles.d.shell: is missing; set it, or base to a profile that has it such as \"linux\"",
            "profiles.e.processes: does not go with the shell; choose \"proc\" or \"ps\" with \"posix\", and \"taskkill\" with the others",
            "profiles.g.restore: goes with the shell \"posix\"; leave it empty: such guests are booted, not cloned",
            "images.i.profile = \"f\": should be a profile: freebsd, linux, windows",
        ],
    );
}

/// The commands of a profile, filled as the worker does.
fn commands(profile: &str) -> Vec<(&'static str, String)> {
    let config =
        parse(&format!("{MINIMAL}[images.i]\ndisk = '/d'\nuser = 'u'\nkey = '/k'\nprofile = '{profile}'")).unwrap();
    let profile = config.images[&Name::new("i").unwrap()].profile.clone();
    let words = [
        ("time", "1700000000"),
        ("mac", "02:6b:76:6d:00:01"),
        ("address", "10.77.0.1"),
        ("prefix", "24"),
        ("hosts", "10.77.0.1 a\n10.77.0.2 it's"),
        ("machine_id", "0123456789abcdef0123456789abcdef"),
        ("host_name", "i-1"),
    ];
    let all = [
        ("environment", &profile.environment),
        ("shutdown", &profile.shutdown),
        ("reboot", &profile.reboot),
        ("clock", &profile.clock),
        ("network", &profile.network),
        ("hosts", &profile.hosts),
        ("prepare", &profile.prepare),
        ("restore", &profile.restore),
    ];
    all.into_iter().filter_map(|(name, command)| Some((name, profile.fill(command, &words)?))).collect()
}

#[test]
fn built_in_profiles_have_every_command_and_sh_can_read_theirs() {
    for (profile, expected) in [("linux", 8), ("freebsd", 6), ("windows", 6)] {
        let commands = commands(profile);
        // Only Linux can be cloned.
        assert_eq!(commands.len(), expected, "{profile}");
        for (name, command) in commands {
            for word in ["{time}", "{mac}", "{address}", "{prefix}", "{hosts}", "{machine_id}", "{host_name}"] {
                assert!(!command.contains(word), "{profile}.{name} has a word left: {command}");
            }
            if profile != "windows" {
                let status = std::process::Command::new("/bin/sh").args(["-n", "-c", &command]).status().unwrap();
                assert!(status.success(), "{profile}.{name}: {command}");
            }
        }
    }
    let windows = commands("windows");
    assert!(windows[5].1.contains("@('10.77.0.1 a\n10.77.0.2 it''s' -split"), "{}", windows[5].1);
    assert!(windows[3].1.contains("FromUnixTimeSeconds('1700000000')"), "{}", windows[3].1);
    assert!(commands("freebsd")[3].1.contains("date -u -f %s '1700000000'"));
}

#[test]
fn a_group_gets_a_socket_that_it_can_reach() {
    let parsed = |control: &str| parse(&format!("{MINIMAL}[control]\n{control}\n")).map(|config| config.control);
    let control = |socket: &str, group: Option<&str>| {
        Ok(Control { socket: PathBuf::from(socket), group: group.map(str::to_owned) })
    };
    assert_eq!(parsed(""), control("/b-vms/control.sock", None));
    assert_eq!(parsed("socket = \"/run/k/c\"\ngroup = \"g\""), control("/run/k/c", Some("g")));
    let refused = |text: &str, expected: &str| {
        let problems = parsed(text).unwrap_err();
        assert!(problems.len() == 1 && problems[0].starts_with(expected), "{problems:?}");
    };
    refused("group = \"g\"", "control.group = \"g\": set control.socket, too");
    refused("group = \"g\"\nsocket = \"/b-vms/c\"", "control.group = \"g\": set control.socket, too");
    refused("socket = \"c\"", "control.socket = \"c\": should be an absolute path");
    let long = "x".repeat(107);
    refused(&format!("socket = \"/{long}\""), "control.socket = ");
}
