//! Profiles: what guests of one kind have in common.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use protocol::command::Name;
use ssh::{Dialect, Shell};

use super::problem::Problems;
use super::section::Section;

/// The profiles that there are without any in the configuration.
pub(super) const BUILT_IN: &str = include_str!("profiles.toml");

/// How to speak with a guest beyond what ssh says, and the commands for what only its own system can do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Profile {
    /// What it is called.
    pub name: Name,
    /// The shell that runs the commands below, and how commands are signalled.
    pub dialect: Dialect,
    /// Prints the guest's time in seconds since 1970 on a line, then its environment: `NAME=VALUE`, each ended by a NUL.
    pub environment: Template,
    /// Shuts the guest down.
    pub shutdown: Template,
    /// Restarts the guest.
    pub reboot: Template,
    /// Sets the guest's clock to `{time}` seconds since 1970.
    pub clock: Template,
    /// Gives the card `{mac}` the address `{address}` in a network of `{prefix}` bits.
    pub network: Template,
    /// Replaces the names that an earlier call gave to addresses by `{hosts}`: a line `ADDRESS NAME` for each.
    pub hosts: Template,
    /// Makes `{directory}`, which builds' directories are to be in, for the image's user.
    pub basedir: Template,
    /// Readies the guest for being frozen; gets the program of [`crate::pool`]'s restorer on its standard input.
    pub prepare: Template,
    /// Makes a clone look new: see [`crate::pool`]'s part about clones for what is said over its standard streams.
    pub restore: Template,
}

/// A command line with names in braces that words are put in place of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Template(String);

impl Template {
    /// A command line. An empty one stands for what the guest has no command for.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Template(text.into())
    }

    /// Whether there is no command.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The command line with each `{NAME}` replaced by its word, quoted for the shell; nothing if there is no command.
    /// Other braces mean what they mean to the shell.
    pub(super) fn fill(&self, shell: Shell, words: &[(&str, &str)]) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let mut filled = String::with_capacity(self.0.len());
        let mut rest = self.0.as_str();
        while let Some(at) = rest.find('{') {
            let (before, after) = rest.split_at(at);
            filled.push_str(before);
            let found = words.iter().find_map(|(name, word)| {
                let rest = after.strip_prefix('{')?.strip_prefix(name)?.strip_prefix('}')?;
                Some((word, rest))
            });
            rest = match found {
                Some((word, rest)) => {
                    // Words are the worker's own: numbers, addresses and names, without NUL bytes.
                    let quoted = shell.quote(word.as_bytes()).unwrap_or_default();
                    filled.push_str(&String::from_utf8_lossy(&quoted));
                    rest
                }
                None => {
                    filled.push('{');
                    &after[1..]
                }
            };
        }
        filled.push_str(rest);
        Some(filled)
    }
}

impl Profile {
    /// One of its commands, with words in place of their names; nothing if the guest has no such command.
    pub(crate) fn fill(&self, command: &Template, words: &[(&str, &str)]) -> Option<String> {
        command.fill(self.dialect.shell, words)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A profile as it is written down, with what it says itself only.
#[derive(Debug, Clone, Default)]
struct Draft {
    base: Option<Name>,
    shell: Option<Shell>,
    processes: Option<Dialect>,
    environment: Option<Template>,
    shutdown: Option<Template>,
    reboot: Option<Template>,
    clock: Option<Template>,
    network: Option<Template>,
    hosts: Option<Template>,
    basedir: Option<Template>,
    prepare: Option<Template>,
    restore: Option<Template>,
}

impl Draft {
    fn parse(mut section: Section<'_>) -> Self {
        let mut template = |key| section.optional(key, |text: String| Ok::<_, &str>(Template(text)));
        let draft = Draft {
            environment: template("environment"),
            shutdown: template("shutdown"),
            reboot: template("reboot"),
            clock: template("clock"),
            network: template("network"),
            hosts: template("hosts"),
            basedir: template("basedir"),
            prepare: template("prepare"),
            restore: template("restore"),
            base: section.optional("base", |text: String| Name::new(&text).ok_or("the name of a profile")),
            shell: section.optional("shell", |text: String| match text.as_str() {
                "posix" => Ok(Shell::Posix),
                "powershell" => Ok(Shell::PowerShell),
                "cmd" => Ok(Shell::Cmd),
                _ => Err("\"posix\", \"powershell\" or \"cmd\""),
            }),
            processes: section.optional("processes", |text: String| match text.as_str() {
                "proc" => Ok(Dialect::LINUX),
                "ps" => Ok(Dialect::BSD),
                "taskkill" => Ok(Dialect::WINDOWS),
                _ => Err("\"proc\", \"ps\" or \"taskkill\""),
            }),
        };
        section.finish();
        draft
    }

    /// Takes from another what this one does not say.
    fn or(self, base: Draft) -> Draft {
        Draft {
            base: base.base,
            shell: self.shell.or(base.shell),
            processes: self.processes.or(base.processes),
            environment: self.environment.or(base.environment),
            shutdown: self.shutdown.or(base.shutdown),
            reboot: self.reboot.or(base.reboot),
            clock: self.clock.or(base.clock),
            network: self.network.or(base.network),
            hosts: self.hosts.or(base.hosts),
            basedir: self.basedir.or(base.basedir),
            prepare: self.prepare.or(base.prepare),
            restore: self.restore.or(base.restore),
        }
    }

    /// The profile, unless something is missing: then the key, and what to do about it.
    fn finish(self, name: &Name) -> Result<Profile, (&'static str, String)> {
        let missing = |key| (key, "is missing; set it, or base to a profile that has it such as \"linux\"".to_owned());
        let shell = self.shell.ok_or_else(|| missing("shell"))?;
        let processes = self.processes.ok_or_else(|| missing("processes"))?;
        if processes.is_posix() != (shell == Shell::Posix) {
            let remedy = "does not go with the shell; choose \"proc\" or \"ps\" with \"posix\", and \"taskkill\" with the others";
            return Err(("processes", remedy.to_owned()));
        }
        let cloned = self.restore.as_ref().is_some_and(|command| !command.is_empty());
        if cloned && shell != Shell::Posix {
            let remedy = "goes with the shell \"posix\"; leave it empty: such guests are booted, not cloned";
            return Err(("restore", remedy.to_owned()));
        }
        Ok(Profile {
            name: name.clone(),
            dialect: Dialect { shell, ..processes },
            environment: self.environment.ok_or_else(|| missing("environment"))?,
            shutdown: self.shutdown.unwrap_or_default(),
            reboot: self.reboot.unwrap_or_default(),
            clock: self.clock.unwrap_or_default(),
            network: self.network.unwrap_or_default(),
            hosts: self.hosts.unwrap_or_default(),
            basedir: self.basedir.unwrap_or_default(),
            prepare: self.prepare.unwrap_or_default(),
            restore: self.restore.unwrap_or_default(),
        })
    }
}

/// Reads the profiles, built-in ones included, and notes what is wrong with them.
pub(super) fn parse(sections: Vec<(Name, Section<'_>)>, problems: &Problems) -> BTreeMap<Name, Arc<Profile>> {
    let drafts: BTreeMap<Name, Draft> =
        sections.into_iter().map(|(name, section)| (name, Draft::parse(section))).collect();
    let mut profiles = BTreeMap::new();
    for name in drafts.keys() {
        match resolve(name, &drafts) {
            Ok(profile) => {
                profiles.insert(name.clone(), Arc::new(profile));
            }
            Err((key, remedy)) => problems.note(format!("profiles.{name}.{key}"), remedy),
        }
    }
    profiles
}

/// Follows a profile's bases; says which key is wrong, and how.
fn resolve(name: &Name, drafts: &BTreeMap<Name, Draft>) -> Result<Profile, (&'static str, String)> {
    let mut draft = drafts[name].clone();
    // More steps than there are profiles lead in a circle.
    for _ in 0..=drafts.len() {
        let Some(base) = draft.base.take() else {
            return draft.finish(name);
        };
        let Some(found) = drafts.get(&base) else {
            return Err(("base", format!("'{base}' is not a profile; there are {}", list(drafts.keys()))));
        };
        draft = draft.or(found.clone());
    }
    Err(("base", "leads back to the profile itself; name one that does not".to_owned()))
}

/// The profile of images that name none.
pub(super) fn default(profiles: &BTreeMap<Name, Arc<Profile>>) -> Arc<Profile> {
    let linux = profiles.iter().find(|(name, _)| name.as_str() == "linux").map(|(_, profile)| Arc::clone(profile));
    // It is missing only from a configuration that breaks it, which is not handed out.
    linux.unwrap_or_else(|| {
        Arc::new(Profile {
            name: Name::default_vm(),
            dialect: Dialect::LINUX,
            environment: Template::default(),
            shutdown: Template::default(),
            reboot: Template::default(),
            clock: Template::default(),
            network: Template::default(),
            hosts: Template::default(),
            basedir: Template::default(),
            prepare: Template::default(),
            restore: Template::default(),
        })
    })
}

/// Names, for people.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    names.map(Name::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_put_in_place_of_their_names_and_nothing_else_is() {
        let check = |template: &str, expected: Option<&str>| {
            let words = [("mac", "02:00"), ("hosts", "it's\n")];
            let filled = Template::new(template).fill(Shell::Posix, &words);
            assert_eq!(filled.as_deref(), expected, "{template}");
        };
        check("", None);
        check("true", Some("true"));
        check("a {mac}{mac} b", Some("a '02:00''02:00' b"));
        check("printf {hosts}", Some("printf 'it'\\''s\n'"));
        check("{ echo ${x%/*}; } {mac {no} {", Some("{ echo ${x%/*}; } {mac {no} {"));
    }
}
