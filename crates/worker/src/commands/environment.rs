//! The environment of a shell command, after the rules of Buildbot 4.3.0's worker.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use protocol::command::EnvValue;

use super::Failure;

/// Lays what the master wants changed over the `base` of the place. Sorted by name.
///
/// `${NAME}` in a value stands for a variable of `base`; lists are joined with colons; what the master says of
/// `PYTHONPATH` goes before the one that is there; `PWD` is the workdir.
///
/// # Errors
/// A value is neither text nor a list of texts.
pub(super) fn compose(
    base: Vec<(OsString, OsString)>,
    changes: &[(String, EnvValue)],
    workdir: &Path,
) -> Result<Vec<(OsString, OsString)>, Failure> {
    let base: BTreeMap<OsString, OsString> = base.into_iter().collect();
    let mut environment = base.clone();
    for (name, value) in changes {
        let mut value = match value {
            EnvValue::Removed => {
                environment.remove(OsStr::new(name));
                continue;
            }
            EnvValue::Unusable => {
                return Err(Failure(format!("'env' values must be strings or lists; key '{name}' is incorrect")));
            }
            EnvValue::Text(text) => text.clone(),
            EnvValue::Joined(texts) => texts.join(":"),
        };
        if name == "PYTHONPATH" {
            value.push_str(":${PYTHONPATH}");
        }
        environment.insert(name.into(), substitute(&value, &base));
    }
    environment.insert("PWD".into(), normalised(workdir).into());
    Ok(environment.into_iter().collect())
}

/// What a terminal that a command gets is called, unless its environment says: one that everybody has a description of.
const TERMINAL: &str = "xterm";

/// Says what kind of terminal the program has, unless the environment does or the master wants the variable removed.
pub(super) fn name_terminal(environment: &mut Vec<(OsString, OsString)>, changes: &[(String, EnvValue)]) {
    let removed = changes.iter().any(|(name, value)| name == "TERM" && matches!(value, EnvValue::Removed));
    if let Err(place) = environment.binary_search_by(|(name, _)| name.as_os_str().cmp(OsStr::new("TERM")))
        && !removed
    {
        environment.insert(place, ("TERM".into(), TERMINAL.into()));
    }
}

/// Replaces each `${NAME}` by the variable's value, or by nothing.
fn substitute(value: &str, variables: &BTreeMap<OsString, OsString>) -> OsString {
    let mut replaced = Vec::new();
    let mut rest = value;
    while let Some(start) = rest.find("${") {
        let (before, reference) = rest.split_at(start);
        replaced.extend_from_slice(before.as_bytes());
        let name_length = reference[2..].bytes().take_while(|&b| b.is_ascii_alphanumeric() || b == b'_').count();
        let (name, after) = reference[2..].split_at(name_length);
        rest = match after.strip_prefix('}') {
            Some(after) => {
                let value = variables.get(OsStr::new(name));
                replaced.extend_from_slice(value.map_or(&[], |value| value.as_bytes()));
                after
            }
            None => {
                replaced.extend_from_slice(b"${");
                &reference[2..]
            }
        };
    }
    replaced.extend_from_slice(rest.as_bytes());
    OsString::from_vec(replaced)
}

/// The path without `.` and `..`, as it reads.
fn normalised(path: &Path) -> PathBuf {
    let mut normalised = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normalised.pop();
            }
            other => normalised.push(other),
        }
    }
    normalised
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_a_name_unless_the_master_says_otherwise() {
        let term = EnvValue::Text("linux".to_owned());
        let check = |base: &[(&str, &str)], changes: &[(String, EnvValue)], expected: &[(&str, &str)]| {
            let base = base.iter().map(|(name, value)| (name.into(), value.into())).collect();
            let mut environment = compose(base, changes, Path::new("/w")).unwrap();
            name_terminal(&mut environment, changes);
            let expected: Vec<(OsString, OsString)> =
                expected.iter().map(|(name, value)| (name.into(), value.into())).collect();
            assert_eq!(environment, expected);
        };
        check(&[("A", "1"), ("Z", "2")], &[], &[("A", "1"), ("PWD", "/w"), ("TERM", "xterm"), ("Z", "2")]);
        check(&[("TERM", "vt100")], &[], &[("PWD", "/w"), ("TERM", "vt100")]);
        check(&[("TERM", "vt100")], &[("TERM".to_owned(), term)], &[("PWD", "/w"), ("TERM", "linux")]);
        check(&[("TERM", "vt100")], &[("TERM".to_owned(), EnvValue::Removed)], &[("PWD", "/w")]);
    }

    fn vars(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn compose_from(base: &[(&str, &str)], name: &str, value: EnvValue) -> Result<Vec<(OsString, OsString)>, Failure> {
        compose(vars(base), &[(name.to_owned(), value)], Path::new("/w"))
    }

    #[track_caller]
    fn check(base: &[(&str, &str)], name: &str, value: EnvValue, expected: &[(&str, &str)]) {
        assert_eq!(compose_from(base, name, value), Ok(vars(expected)));
    }

    fn text(text: &str) -> EnvValue {
        EnvValue::Text(text.to_owned())
    }

    #[test]
    fn values_are_added_replaced_and_removed() {
        check(&[("A", "1"), ("B", "2")], "C", text("3"), &[("A", "1"), ("B", "2"), ("C", "3"), ("PWD", "/w")]);
        check(&[("A", "1"), ("B", "2")], "A", text("3"), &[("A", "3"), ("B", "2"), ("PWD", "/w")]);
        check(&[("A", "1"), ("B", "2")], "A", EnvValue::Removed, &[("B", "2"), ("PWD", "/w")]);
    }

    #[test]
    fn references_stand_for_variables_of_the_place() {
        check(&[("A", "1")], "B", text("<${A}${NONE}${}>"), &[("A", "1"), ("B", "<1>"), ("PWD", "/w")]);
        check(&[("A", "1")], "A", text("${A}:2"), &[("A", "1:2"), ("PWD", "/w")]);
        check(&[], "B", text("$A ${A ${A-1} ${"), &[("B", "$A ${A ${A-1} ${"), ("PWD", "/w")]);
        check(&[("A", "1")], "B", text("${${A}"), &[("A", "1"), ("B", "${1"), ("PWD", "/w")]);
    }

    #[test]
    fn lists_are_joined() {
        let list = EnvValue::Joined(vec!["/a".to_owned(), "${HOME}/b".to_owned()]);
        check(&[("HOME", "/h")], "PATH", list, &[("HOME", "/h"), ("PATH", "/a:/h/b"), ("PWD", "/w")]);
    }

    #[test]
    fn pythonpath_goes_before_the_one_that_is_there() {
        check(&[], "PYTHONPATH", text("/pp"), &[("PWD", "/w"), ("PYTHONPATH", "/pp:")]);
        check(&[("PYTHONPATH", "/x")], "PYTHONPATH", text("/pp"), &[("PWD", "/w"), ("PYTHONPATH", "/pp:/x")]);
    }

    #[test]
    fn pwd_is_the_workdir_as_it_reads() {
        assert_eq!(compose(vec![], &[], Path::new("/w/./a/../b/")), Ok(vars(&[("PWD", "/w/b")])));
    }

    #[test]
    fn other_values_are_refused() {
        let failure = Failure("'env' values must be strings or lists; key 'X' is incorrect".to_owned());
        assert_eq!(compose_from(&[], "X", EnvValue::Unusable), Err(failure));
    }
}
