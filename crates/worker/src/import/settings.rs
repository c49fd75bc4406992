//! What an old worker was told, as this one's configuration says it.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::report::shown;
use crate::config::MasterAddress;

/// What goes into the configuration. What is absent has to be set by hand, or is left at its default.
#[derive(PartialEq, Eq)]
pub(super) struct Settings {
    pub name: Option<String>,
    pub master: Option<MasterAddress>,
    pub password: Option<String>,
    /// Absolute.
    pub basedir: PathBuf,
    pub delete_leftover_dirs: bool,
    /// In seconds, as is the next.
    pub connect_timeout: Option<i64>,
    pub retry_max: Option<i64>,
}

impl Settings {
    /// The configuration file. The password is not in it.
    pub(super) fn toml(&self, tac: &Path, password_file: &Path) -> String {
        let mut out = format!(
            "# Written by `kvm-worker import` from {}.\n\
             # `kvm-worker print-config` shows every key, what it does and its default.\n\n\
             [worker]\n",
            shown(&tac.to_string_lossy()),
        );
        let mut text = |key: &str, value: Option<String>| {
            let line = match value {
                Some(value) => format!("{key} = {}", quoted(&value)),
                None => format!("# {key} = \"...\"  # to set by hand"),
            };
            out += &line;
            out.push('\n');
        };
        text("name", self.name.clone());
        text("master", self.master.as_ref().map(MasterAddress::to_string));
        text("password_file", Some(password_file.to_string_lossy().into_owned()));
        text("basedir", Some(self.basedir.to_string_lossy().into_owned()));
        if self.delete_leftover_dirs {
            out += "delete_leftover_dirs = true\n";
        }
        let times = [("connect_timeout", self.connect_timeout), ("retry_max", self.retry_max)];
        if times.iter().any(|(_, seconds)| seconds.is_some()) {
            out += "\n[connection]\n";
        }
        for (key, seconds) in times {
            if let Some(seconds) = seconds {
                // Writing to a String does not fail.
                let _ = writeln!(out, "{key} = {seconds}");
            }
        }
        out += "\n# Machines need images: a table [images.NAME] for each. Without one, builds run on the host as before.\n";
        out
    }
}

/// A text as TOML's basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                // Writing to a String does not fail.
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
