//! How a guest's shell wants its words quoted.

/// A family of shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// POSIX `sh`: dash, busybox ash, bash, ksh.
    Posix,
}

/// A string with a NUL byte in it, which no shell can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("contains a NUL byte")]
pub struct NulByte;

impl Shell {
    /// Quotes bytes as exactly one word that the shell does not interpret, whatever they are.
    pub fn quote(self, word: &[u8]) -> Result<Vec<u8>, NulByte> {
        match self {
            Self::Posix => quote_posix(word),
        }
    }
}

/// Within single quotes only the single quote itself ends the string.
fn quote_posix(word: &[u8]) -> Result<Vec<u8>, NulByte> {
    let mut quoted = Vec::with_capacity(word.len() + 2);
    quoted.push(b'\'');
    for &byte in word {
        match byte {
            0 => return Err(NulByte),
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn check(word: &[u8], expected: Result<&[u8], NulByte>) {
        assert_eq!(Shell::Posix.quote(word), expected.map(<[u8]>::to_vec));
    }

    #[test]
    fn words_are_quoted_whatever_they_hold() {
        check(b"", Ok(b"''"));
        check(b"plain", Ok(b"'plain'"));
        check(b"two words", Ok(b"'two words'"));
        check(b"it's", Ok(b"'it'\\''s'"));
        check(b"$HOME `id` \\ \"", Ok(b"'$HOME `id` \\ \"'"));
        check(b"a\nb", Ok(b"'a\nb'"));
        check(b"\xff\xfe", Ok(b"'\xff\xfe'"));
        check(b"a\0b", Err(NulByte));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_real_shell_reads_back_what_was_quoted(words in prop::collection::vec(prop::collection::vec(1u8.., 0..40), 0..8)) {
            let mut script = b"printf '%s\\0' start".to_vec();
            for word in &words {
                script.push(b' ');
                script.extend(Shell::Posix.quote(word).expect("no word holds a NUL byte"));
            }
            let output = Command::new("/bin/sh").arg("-c").arg(std::ffi::OsString::from_vec(script)).output().expect("run sh");
            let mut expected = b"start\0".to_vec();
            for word in &words {
                expected.extend(word);
                expected.push(0);
            }
            prop_assert_eq!(output.stdout, expected);
        }
    }
}
