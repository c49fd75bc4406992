//! What of a program's environment has to be said to a guest.

use std::ffi::{OsStr, OsString};
use std::io;

/// The variables that differ from the guest's own; without a value, those that are to be removed.
///
/// # Errors
/// A name that is not text.
pub(super) fn changed<'a>(
    own: &'a [(String, String)],
    wanted: &'a [(OsString, OsString)],
) -> io::Result<Vec<(&'a str, Option<&'a OsStr>)>> {
    let mut changes = Vec::new();
    for (name, value) in wanted {
        let name = name.to_str().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("the environment variable {name:?} is not UTF-8"))
        })?;
        if !own.iter().any(|(own_name, own_value)| own_name == name && OsStr::new(own_value) == value) {
            changes.push((name, Some(value.as_os_str())));
        }
    }
    let removed = own.iter().filter(|(name, _)| !wanted.iter().any(|(wanted, _)| wanted == OsStr::new(name)));
    changes.extend(removed.map(|(name, _)| (name.as_str(), None)));
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_sent_to_the_guest() {
        let own = [("A", "1"), ("B", "2"), ("C", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let wanted = [("A", "1"), ("B", "two"), ("D", "4")].map(|(k, v)| (OsString::from(k), OsString::from(v)));
        let expected = vec![("B", Some(OsStr::new("two"))), ("D", Some(OsStr::new("4"))), ("C", None)];
        assert_eq!(changed(&own, &wanted).unwrap(), expected);
    }
}
