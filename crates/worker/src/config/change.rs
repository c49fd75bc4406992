//! What is different in another configuration, and which of that a worker that runs can take up.

use std::fmt;

use super::keys::{self, Keys, Text};
use super::problem::Problems;
use super::{Config, Log, Pool, Worker};

/// The keys that hold from the start of a worker to its end: who it is and where, and what its log looks like.
const FIXED: [&str; 11] = [
    "control.group",
    "control.socket",
    "log.format",
    "pool.accel",
    "pool.qemu",
    "pool.qemu_img",
    "pool.ssh_port_base",
    "pool.state_dir",
    "worker.basedir",
    "worker.master",
    "worker.name",
];

/// A key that says something else. Its text is for people, and has no commands in it, nor anything else that is nobody's
/// business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    key: String,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Added,
    Removed,
    /// Something that is shown.
    Set {
        from: Option<String>,
        to: Option<String>,
    },
    /// Something that is not.
    Changed,
}

/// Another configuration, as far as a worker that runs can take it up.
#[derive(Debug)]
pub(crate) struct Reconfigured {
    /// What holds from now on: the other one, but for what needs a restart.
    pub config: Config,
    /// What is different in it.
    pub changes: Vec<Change>,
    /// What would be different after a restart.
    pub restart: Vec<Change>,
}

impl Config {
    /// Compares with another configuration that is to take this one's place while the worker runs.
    ///
    /// # Errors
    /// What can be taken up does not go together with what can't.
    pub(crate) fn change_to(&self, new: Config) -> Result<Reconfigured, Problems> {
        let (old_keys, new_keys) = (keys::of(self), keys::of(&new));
        let mut changes = compare(&old_keys, &new_keys);
        // A profile is there as long as an image has it, which is no change of its own.
        let in_both = |key: &str| old_keys.contains_key(key) && new_keys.contains_key(key);
        changes.retain(|change| !change.key.starts_with("profiles.") || in_both(&change.key));
        for (name, image) in &self.images {
            match new.images.get(name) {
                Some(other) => changes.extend(compare(&keys::of_image(name, image), &keys::of_image(name, other))),
                None => changes.push(Change { key: format!("images.{name}"), what: What::Removed }),
            }
        }
        let added = new.images.keys().filter(|name| !self.images.contains_key(*name));
        changes.extend(added.map(|name| Change { key: format!("images.{name}"), what: What::Added }));
        let (restart, changes): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| FIXED.contains(&change.key.as_str()));
        let config = self.keep_fixed(new);
        let problems = Problems::default();
        config.check(&problems);
        let config = problems.into_result(config)?;
        Ok(Reconfigured { config, changes, restart })
    }

    /// Another configuration with what is [`FIXED`] as it is in this one.
    fn keep_fixed(&self, new: Config) -> Config {
        let Config { worker, control, pool, log, .. } = self.clone();
        let Worker { name, master, basedir, .. } = worker;
        let Pool { ssh_port_base, state_dir, accel, qemu, qemu_img, .. } = pool;
        Config {
            worker: Worker { name, master, basedir, ..new.worker },
            pool: Pool { ssh_port_base, state_dir, accel, qemu, qemu_img, ..new.pool },
            log: Log { format: log.format, ..new.log },
            control,
            ..new
        }
    }
}

impl Change {
    /// That of the password itself, wherever it comes from.
    pub(crate) fn of_password() -> Self {
        Change { key: "the worker's password".to_owned(), what: What::Changed }
    }
}

fn compare(old: &Keys, new: &Keys) -> Vec<Change> {
    let all = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    let change = |key: &String| {
        let text = |keys: &Keys| keys.get(key).cloned().unwrap_or(Text::Unset);
        let what = match (text(old), text(new)) {
            (old, new) if old == new => return None,
            (Text::Private(_), _) | (_, Text::Private(_)) => What::Changed,
            (old, new) => What::Set { from: old.shown(), to: new.shown() },
        };
        Some(Change { key: key.clone(), what })
    };
    all.filter_map(change).collect()
}

impl Text {
    fn shown(self) -> Option<String> {
        match self {
            Text::Plain(text) => Some(text),
            Text::Unset | Text::Private(_) => None,
        }
    }
}

/// `pool.slots 2 → 4`, `images.debian added`, `images.debian.warm_up changed`
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { key, what } = self;
        let shown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unset".to_owned());
        match what {
            What::Added => write!(f, "{key} added"),
            What::Removed => write!(f, "{key} removed"),
            What::Changed => write!(f, "{key} changed"),
            What::Set { from, to } => write!(f, "{key} {} → {}", shown(from), shown(to)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::*;

    const OLD: &str = r#"
        [worker]
        name = "w"
        master = "ws://localhost:9990"
        password_file = "/p"
        basedir = "/b"
        [images.i]
        disk = "/d"
        user = "u"
        key = "/k"
        warm_up = "make secrets"
    "#;

    fn lines(changes: &[Change]) -> Vec<String> {
        changes.iter().map(Change::to_string).collect()
    }

    /// Checks what is different when a part of the file is another one.
    #[track_caller]
    fn check(from: &str, to: &str, changes: &[&str], restart: &[&str]) -> Config {
        assert!(OLD.contains(from), "{from}");
        let (old, new) = (parse(OLD).expect("it is right"), OLD.replacen(from, to, 1));
        let new = parse(&new).expect("it is right");
        let changed = old.change_to(new).expect("it goes together");
        assert_eq!((lines(&changed.changes), lines(&changed.restart)), (owned(changes), owned(restart)), "{from} {to}");
        changed.config
    }

    fn owned(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn what_is_different_is_told_and_holds() {
        check("", "", &[], &[]);
        let config = check(
            "",
            "[pool]\nslots = 4\nmemory_budget_mib = 512\nwarm_max_load = 0.5\n",
            &["pool.memory_budget_mib unset → 512", "pool.slots 2 → 4", "pool.warm_max_load 2 → 0.5"],
            &[],
        );
        assert_eq!((config.pool.slots, config.pool.memory_budget_mib), (4, Some(512)));
        let config = check(
            "basedir",
            "host_commands = false\nca_file = \"/c\"\nbasedir",
            &["worker.ca_file unset → \"/c\"", "worker.host_commands true → false"],
            &[],
        );
        assert!(!config.worker.host_commands);
        check(
            "password_file = \"/p\"",
            "password_credential = \"p\"",
            &["worker.password_file \"/p\" → unset", "worker.password_credential unset → \"p\""],
            &[],
        );
        check(
            "",
            "[connection]\ndead_after = 60.5\n[log]\nfilter = \"debug\"\n",
            &["connection.dead_after 120 → 60.5", "log.filter \"info\" → \"debug\""],
            &[],
        );
    }

    #[test]
    fn images_are_added_removed_and_changed() {
        let config = check(
            "[images.i]",
            "[images.j]\ndisk = \"/e\"\nuser = \"u\"\nkey = \"/k\"\n[images.i]",
            &["images.j added"],
            &[],
        );
        assert_eq!(config.images.len(), 2);
        check("[images.i]", "[images.j]", &["images.i removed", "images.j added"], &[]);
        check(
            "\"/d\"",
            "\"/e\"\ncpus = 2\ntemplate = true",
            &["images.i.cpus 1 → 2", "images.i.disk \"/d\" → \"/e\"", "images.i.template false → true"],
            &[],
        );
    }

    #[test]
    fn commands_are_not_told() {
        check("make secrets", "make others", &["images.i.warm_up changed"], &[]);
        check("warm_up = \"make secrets\"", "", &["images.i.warm_up changed"], &[]);
        let own = "[profiles.linux]\nreboot = \"doas reboot\"\n";
        check("", own, &["profiles.linux.reboot changed"], &[]);
        // What commands there are is its profile's business.
        check(
            "user =",
            "profile = \"freebsd\"\nuser =",
            &["images.i.profile \"linux\" → \"freebsd\"", "images.i.shutdown changed"],
            &[],
        );
        assert_eq!(Change::of_password().to_string(), "the worker's password changed");
    }

    #[test]
    fn what_needs_a_restart_stays_as_it_was() {
        let stays = |from: &str, to: &str, restart: &[&str]| {
            let config = check(from, to, &[], restart);
            assert_eq!(keys::of(&config), keys::of(&parse(OLD).expect("it is right")), "{to}");
        };
        stays("\"w\"", "\"v\"", &["worker.name \"w\" → \"v\""]);
        stays("9990", "9991", &["worker.master \"ws://localhost:9990\" → \"ws://localhost:9991\""]);
        stays("\"/b\"", "\"/c\"", &["pool.state_dir \"/b-vms\" → \"/c-vms\"", "worker.basedir \"/b\" → \"/c\""]);
        stays("", "[pool]\nstate_dir = \"/s\"\n", &["pool.state_dir \"/b-vms\" → \"/s\""]);
        stays(
            "",
            "[pool]\nssh_port_base = 3000\naccel = \"tcg\"\n",
            &["pool.accel \"auto\" → \"tcg\"", "pool.ssh_port_base 2222 → 3000"],
        );
        stays(
            "",
            "[pool]\nqemu = \"/q\"\nqemu_img = \"/i\"\n",
            &["pool.qemu \"qemu-system-x86_64\" → \"/q\"", "pool.qemu_img \"qemu-img\" → \"/i\""],
        );
        stays("", "[log]\nformat = \"json\"\n", &["log.format \"auto\" → \"json\""]);
        let config = check(
            "",
            "[pool]\nslots = 3\naccel = \"tcg\"\n",
            &["pool.slots 2 → 3"],
            &["pool.accel \"auto\" → \"tcg\""],
        );
        assert_eq!((config.pool.slots, config.pool.accel), (3, qemu::Accel::Auto));
    }

    #[test]
    fn what_does_not_go_with_what_stays_is_refused() {
        let old = parse(&format!("{OLD}\n[pool]\nssh_port_base = 65500\nslots = 2")).expect("it is right");
        let new = parse(&format!("{OLD}\n[pool]\nssh_port_base = 2222\nslots = 100")).expect("it is right");
        let problems = old.change_to(new).expect_err("there are not as many ports").lines();
        assert_eq!(problems, ["pool.ssh_port_base = 65500: leave a port below 65536 for every slot and one more"]);
    }
}
