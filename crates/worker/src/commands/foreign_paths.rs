//! Paths of the host in a command for a guest that has other ones.
//!
//! What a command says about directories and files is made the guest's own before it runs. Its arguments, its variables and its
//! input are anything, so they are left as they are; but a path in them that is right on the host alone is not used in silence.

use std::path::Path;

use protocol::Command;
use protocol::command::{CommandLine, EnvValue, Shell};

/// Says where a command for a guest names the worker's base directory as the host has it; nothing if it does not.
pub(crate) fn warning(command: &Command, host: &Path, guest: &Path) -> Option<String> {
    let Command::Shell(shell) = command else { return None };
    let (here, there) = (host.to_str()?, guest.display());
    // A base directory of `/` says nothing.
    if guest == host || here.len() < 2 {
        return None;
    }
    let places = places(shell, here);
    (!places.is_empty()).then(|| {
        format!(
            "WARNING: {here}, which is the worker's basedir on the host and {there} in this machine, is in {}; use relative \
             paths, or have the step placed in the machine by buildbot-kvm, which has %(prop:builddir)s and \
             %(prop:basedir)s be the machine's",
            places.join(", ")
        )
    })
}

/// What of a command has a path in it.
fn places(shell: &Shell, path: &str) -> Vec<String> {
    let mut places = Vec::new();
    let arguments = match &shell.command {
        CommandLine::Line(line) => names(line, path),
        CommandLine::Words(words) => words.iter().any(|word| names(&word.real, path)),
    };
    if arguments {
        places.push("the command".to_owned());
    }
    for (name, value) in &shell.env {
        let named = match value {
            EnvValue::Text(text) => names(text, path),
            EnvValue::Joined(texts) => texts.iter().any(|text| names(text, path)),
            EnvValue::Removed | EnvValue::Unusable => false,
        };
        if named {
            places.push(format!("the variable {name}"));
        }
    }
    if shell.initial_stdin.as_deref().is_some_and(|input| names(input, path)) {
        places.push("the standard input".to_owned());
    }
    places
}

/// Whether a text has a path in it, and not only one that ends or goes on with other letters.
fn names(text: &str, path: &str) -> bool {
    let is_part = |char: char| char.is_alphanumeric() || "._-".contains(char);
    text.match_indices(path).any(|(at, _)| {
        let after = text[at + path.len()..].chars().next();
        // Options such as -I have it right behind them; what it can't follow is a part of a longer path.
        !in_longer_path(&text[..at]) && !after.is_some_and(is_part)
    })
}

/// Whether the last word of a text has begun a path already.
fn in_longer_path(text: &str) -> bool {
    let word = text.rsplit(|char: char| char.is_whitespace() || "=:,;\"'()".contains(char)).next();
    word.is_some_and(|word| word.contains('/') || word.ends_with(['.', '~']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::shell::program;

    #[test]
    fn a_path_is_told_from_others_that_have_it_in_them() {
        let check = |text: &str, expected: bool| assert_eq!(names(text, "/srv/w"), expected, "{text}");
        check("/srv/w", true);
        check("ls /srv/w/b", true);
        check("-I/srv/w/b", true);
        check("--prefix=/srv/w:/usr", true);
        check("\"/srv/w\"", true);
        check("/srv/work /srv/w.old /x/srv/w", false);
        check("/srv/w2 /srv/w", true);
        check("", false);
    }

    #[test]
    fn each_place_of_a_foreign_path_is_named() {
        let check = |change: fn(&mut Shell), expected: &[&str]| {
            let mut shell = program(["ls", "build"], Path::new("/g/b"));
            change(&mut shell);
            assert_eq!(places(&shell, "/srv/w"), expected);
        };
        check(|_| {}, &[]);
        check(|shell| shell.command = CommandLine::Line("cd /srv/w/b && make".to_owned()), &["the command"]);
        check(
            |shell| {
                shell.env = vec![
                    ("A".to_owned(), EnvValue::Text("/srv/w/c".to_owned())),
                    ("B".to_owned(), EnvValue::Joined(vec!["x".to_owned(), "/srv/w".to_owned()])),
                    ("C".to_owned(), EnvValue::Removed),
                ];
                shell.initial_stdin = Some("/srv/w\n".to_owned());
            },
            &["the variable A", "the variable B", "the standard input"],
        );
    }

    #[test]
    fn nothing_is_said_where_the_paths_are_the_same() {
        let command = |line: &str| {
            let mut shell = program(["x"], Path::new("/g"));
            shell.command = CommandLine::Line(line.to_owned());
            Command::Shell(Box::new(shell))
        };
        let check = |line: &str, host: &str, guest: &str, expected: bool| {
            let said = warning(&command(line), Path::new(host), Path::new(guest));
            assert_eq!(said.is_some(), expected, "{said:?}");
        };
        check("ls /srv/w", "/srv/w", "/home/ci", true);
        check("ls /srv/w", "/srv/w", "/srv/w", false);
        check("ls /", "/", "/home/ci", false);
    }
}
