//! What a guest's tools complain of.

use std::io;

use nix::libc;

/// The C libraries' words for an error: glibc's, then musl's where they differ.
const WORDS: &[(&str, i32)] = &[
    ("No such file or directory", libc::ENOENT),
    ("Permission denied", libc::EACCES),
    ("Not a directory", libc::ENOTDIR),
    ("Is a directory", libc::EISDIR),
    ("File exists", libc::EEXIST),
    ("No space left on device", libc::ENOSPC),
    ("Read-only file system", libc::EROFS),
    ("Operation not permitted", libc::EPERM),
    ("File name too long", libc::ENAMETOOLONG),
    ("Filename too long", libc::ENAMETOOLONG),
    ("Too many levels of symbolic links", libc::ELOOP),
    ("Symbolic link loop", libc::ELOOP),
    ("No such device or address", libc::ENXIO),
    ("No such device", libc::ENODEV),
    ("Input/output error", libc::EIO),
    ("I/O error", libc::EIO),
    ("Disk quota exceeded", libc::EDQUOT),
    ("Quota exceeded", libc::EDQUOT),
    ("File too large", libc::EFBIG),
    ("Text file busy", libc::ETXTBSY),
    ("Device or resource busy", libc::EBUSY),
    ("Resource busy", libc::EBUSY),
    ("Directory not empty", libc::ENOTEMPTY),
    ("Invalid argument", libc::EINVAL),
    ("Operation not supported", libc::EOPNOTSUPP),
    ("Not supported", libc::EOPNOTSUPP),
    ("Cannot allocate memory", libc::ENOMEM),
    ("Out of memory", libc::ENOMEM),
    ("Argument list too long", libc::E2BIG),
    ("Stale file handle", libc::ESTALE),
    ("Too many open files", libc::EMFILE),
];

/// What a tool of the guest complained of, as the error the host would have given.
pub(super) fn refusal(stderr: &str) -> io::Error {
    let text = stderr.trim();
    // The last line: a tool that ends in failure says last what of.
    match WORDS.iter().find(|(words, _)| text.ends_with(words)) {
        Some((_, errno)) => io::Error::from_raw_os_error(*errno),
        None => io::Error::other(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tools_complaint_is_an_errno() {
        let check = |text: &str, errno| assert_eq!(refusal(text).raw_os_error(), errno, "{text}");
        check("stat: cannot statx '/x': No such file or directory\n", Some(libc::ENOENT));
        check("mkdir: can't create directory '/y': Permission denied", Some(libc::EACCES));
        check("cat: /dev/x: No such device or address\n", Some(libc::ENXIO));
        check("mv: can't rename '/z': Filename too long\n", Some(libc::ENAMETOOLONG));
        check("something else", None);
    }

    #[test]
    fn the_words_are_those_of_this_c_library_or_musls() {
        let ours = WORDS.iter().filter(|(words, errno)| nix::errno::Errno::from_raw(*errno).desc() == *words);
        assert!(ours.count() > 20);
    }
}
