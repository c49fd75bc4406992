//! How a guest's shell wants its words quoted.

/// A family of shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// POSIX `sh`: dash, busybox ash, bash, ksh.
    Posix,
    /// Windows PowerShell, 5.1 and later.
    PowerShell,
    /// `cmd.exe`. A word is quoted for `cmd` and for the program that gets it, which takes its command line apart as
    /// Microsoft's C runtime and `CommandLineToArgvW` do.
    Cmd,
}

/// Why a string can't be a word of a shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unquotable {
    /// No shell can hold it.
    #[error("contains a NUL byte")]
    Nul,
    /// `cmd` ends a command there.
    #[error("contains a line end, which cmd.exe can't pass on")]
    LineEnd,
    /// Windows knows text only.
    #[error("is not UTF-8, which a Windows guest needs")]
    NotText,
}

impl Shell {
    /// Quotes bytes as exactly one word that the shell does not interpret, whatever they are.
    ///
    /// # Errors
    /// If the shell can't hold them: a NUL byte anywhere, what is not UTF-8 on Windows, a line end in `cmd`.
    pub fn quote(self, word: &[u8]) -> Result<Vec<u8>, Unquotable> {
        if word.contains(&0) {
            return Err(Unquotable::Nul);
        }
        match self {
            Self::Posix => Ok(quote_posix(word)),
            Self::PowerShell => Ok(quote_powershell(text(word)?).into_bytes()),
            Self::Cmd => {
                let word = text(word)?;
                if word.contains(['\n', '\r']) {
                    return Err(Unquotable::LineEnd);
                }
                Ok(escape_cmd(&quote_argument(word)).into_bytes())
            }
        }
    }
}

fn text(word: &[u8]) -> Result<&str, Unquotable> {
    std::str::from_utf8(word).map_err(|_| Unquotable::NotText)
}

/// Within single quotes only the single quote itself ends the string.
fn quote_posix(word: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(word.len() + 2);
    quoted.push(b'\'');
    for &byte in word {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// PowerShell takes typographic single quotes for single quotes (about_Quoting_Rules); doubled, each stands for itself.
pub(crate) fn quote_powershell(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('\'');
    for character in word.chars() {
        if is_powershell_quote(character) {
            quoted.push(character);
        }
        quoted.push(character);
    }
    quoted.push('\'');
    quoted
}

fn is_powershell_quote(character: char) -> bool {
    matches!(character, '\'' | '\u{2018}'..='\u{201b}')
}

/// Quotes an argument of a Windows program: backslashes are themselves, except before a double quote, where each one and
/// the quote need another in front ("Parsing C command-line arguments" in Microsoft's documentation).
pub(crate) fn quote_argument(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('"');
    let mut backslashes = 0;
    for character in word.chars() {
        match character {
            '\\' => backslashes += 1,
            '"' => {
                quoted.extend(std::iter::repeat_n('\\', backslashes + 1));
                backslashes = 0;
            }
            _ => backslashes = 0,
        }
        quoted.push(character);
    }
    quoted.extend(std::iter::repeat_n('\\', backslashes));
    quoted.push('"');
    quoted
}

/// Puts a caret before all that `cmd` gives a meaning to, the double quotes included, so that for `cmd` nothing is within
/// quotes, where carets would be themselves. A variable is not found either with a caret in its name.
fn escape_cmd(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() * 2);
    for character in text.chars() {
        if "()%!^\"<>&|".contains(character) {
            escaped.push('^');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(shell: Shell, word: &[u8], expected: Result<&[u8], Unquotable>) {
        assert_eq!(shell.quote(word), expected.map(<[u8]>::to_vec));
    }

    #[test]
    fn words_are_quoted_whatever_they_hold() {
        let check = |word, expected| check(Shell::Posix, word, expected);
        check(b"", Ok(b"''"));
        check(b"plain", Ok(b"'plain'"));
        check(b"two words", Ok(b"'two words'"));
        check(b"it's", Ok(b"'it'\\''s'"));
        check(b"$HOME `id` \\ \"", Ok(b"'$HOME `id` \\ \"'"));
        check(b"a\nb", Ok(b"'a\nb'"));
        check(b"\xff\xfe", Ok(b"'\xff\xfe'"));
        check(b"a\0b", Err(Unquotable::Nul));
    }

    #[test]
    fn words_are_quoted_for_powershell() {
        let check = |word: &str, expected: &str| check(Shell::PowerShell, word.as_bytes(), Ok(expected.as_bytes()));
        check("", "''");
        check("$env:PATH `n \" ; |", "'$env:PATH `n \" ; |'");
        check("it's", "'it''s'");
        check("it\u{2019}s", "'it\u{2019}\u{2019}s'");
        check("a\nb", "'a\nb'");
    }

    #[test]
    fn words_are_quoted_for_cmd_and_the_program_behind_it() {
        let check = |word: &str, expected: &str| check(Shell::Cmd, word.as_bytes(), Ok(expected.as_bytes()));
        check("", r#"^"^""#);
        check(r"C:\Program Files\x", r#"^"C:\Program Files\x^""#);
        check(r"ends in \", r#"^"ends in \\^""#);
        check(r#"say "hi""#, r#"^"say \^"hi\^"^""#);
        check(r#"a\"b"#, r#"^"a\\\^"b^""#);
        check("%PATH% & more", r#"^"^%PATH^% ^& more^""#);
    }

    #[test]
    fn what_a_shell_cannot_hold_is_refused() {
        for shell in [Shell::PowerShell, Shell::Cmd] {
            check(shell, b"a\0b", Err(Unquotable::Nul));
            check(shell, b"\xff", Err(Unquotable::NotText));
        }
        check(Shell::Cmd, b"a\nb", Err(Unquotable::LineEnd));
        check(Shell::Cmd, b"a\rb", Err(Unquotable::LineEnd));
    }

    /// A model of how PowerShell reads words of single-quoted strings; nothing if there is anything else.
    fn read_powershell(line: &str) -> Option<Vec<String>> {
        let mut words = Vec::new();
        let mut rest = line.chars().peekable();
        loop {
            while rest.next_if_eq(&' ').is_some() {}
            let Some(open) = rest.next() else { return Some(words) };
            if !"'\u{2018}\u{2019}\u{201a}\u{201b}".contains(open) {
                return None;
            }
            let mut word = String::new();
            loop {
                let character = rest.next()?;
                if "'\u{2018}\u{2019}\u{201a}\u{201b}".contains(character) {
                    // The second of two stands for a quote.
                    match rest.next_if(|next| "'\u{2018}\u{2019}\u{201a}\u{201b}".contains(*next)) {
                        Some(second) => word.push(second),
                        None => break,
                    }
                } else {
                    word.push(character);
                }
            }
            words.push(word);
        }
    }

    /// A model of what `cmd /c` makes of a line: variables first, then carets; nothing if an operator is left to act.
    fn read_cmd(line: &str) -> Option<String> {
        // A name between two percent signs is a variable's. All of these are set but those with a caret in their names,
        // which nobody sets; those that are not set stay as they are on a command line.
        let mut parts = line.split('%');
        let mut expanded = parts.next()?.to_owned();
        let parts: Vec<_> = parts.collect();
        let mut index = 0;
        while index < parts.len() {
            let is_name = index + 1 < parts.len();
            if is_name && !parts[index].is_empty() && !parts[index].contains('^') {
                return None;
            }
            expanded.push('%');
            expanded.push_str(parts[index]);
            index += 1;
        }
        let (mut read, mut in_quotes) = (String::new(), false);
        let mut rest = expanded.chars();
        while let Some(character) = rest.next() {
            match character {
                '^' if !in_quotes => read.push(rest.next()?),
                '"' => {
                    in_quotes = !in_quotes;
                    read.push('"');
                }
                '&' | '|' | '<' | '>' | '(' | ')' if !in_quotes => return None,
                _ => read.push(character),
            }
        }
        Some(read)
    }

    /// A model of `CommandLineToArgvW` for all arguments but the program's name.
    fn read_arguments(line: &str) -> Vec<String> {
        let (mut words, mut word, mut in_quotes) = (Vec::new(), None::<String>, false);
        let mut rest = line.chars().peekable();
        while let Some(&next) = rest.peek() {
            if !in_quotes && (next == ' ' || next == '\t') {
                rest.next();
                words.extend(word.take());
                continue;
            }
            let word = word.get_or_insert_default();
            let mut backslashes = 0;
            while rest.next_if_eq(&'\\').is_some() {
                backslashes += 1;
            }
            if rest.next_if_eq(&'"').is_some() {
                word.extend(std::iter::repeat_n('\\', backslashes / 2));
                if backslashes % 2 == 1 || in_quotes && rest.next_if_eq(&'"').is_some() {
                    word.push('"');
                } else {
                    in_quotes = !in_quotes;
                }
            } else if backslashes > 0 {
                word.extend(std::iter::repeat_n('\\', backslashes));
            } else {
                word.extend(rest.next());
            }
        }
        words.extend(word);
        words
    }

    #[test]
    fn the_models_read_as_microsoft_documents() {
        // The examples of "Parsing C command-line arguments".
        assert_eq!(read_arguments(r#""a b c" d e"#), ["a b c", "d", "e"]);
        assert_eq!(read_arguments(r#""ab\"c" "\\" d"#), ["ab\"c", "\\", "d"]);
        assert_eq!(read_arguments(r#"a\\\b d"e f"g h"#), [r"a\\\b", "de fg", "h"]);
        assert_eq!(read_arguments(r#"a\\\"b c d"#), [r#"a\"b"#, "c", "d"]);
        assert_eq!(read_arguments(r#"a\\\\"b c" d e"#), [r"a\\b c", "d", "e"]);
        assert_eq!(read_arguments(r#"a"b"" c d"#), [r#"ab" c d"#]);
        assert_eq!(read_cmd("a & b"), None);
        assert_eq!(read_cmd("\"a & b\" ^& c"), Some("\"a & b\" & c".to_owned()));
        assert_eq!(read_cmd("100% %PATH%"), None);
        assert_eq!(read_cmd("100% of ^%PATH^%"), Some("100% of %PATH%".to_owned()));
        assert_eq!(read_powershell("'a''b' \u{2018}c'"), Some(vec!["a'b".to_owned(), "c".to_owned()]));
        assert_eq!(read_powershell("'a' b"), None);
    }

    fn words(characters: &'static str) -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(prop::string::string_regex(characters).expect("a pattern"), 0..6)
    }

    fn joined(shell: Shell, words: &[String]) -> String {
        let quoted = words.iter().map(|word| shell.quote(word.as_bytes()).expect("it can be held"));
        String::from_utf8(quoted.collect::<Vec<_>>().join(&b' ')).expect("text")
    }

    proptest! {
        #[test]
        fn powershell_reads_back_what_was_quoted(words in words("(['\u{2018}\u{2019}\u{201a}\u{201b}\"$`\\\\ ;\n]|[^\0]){0,20}")) {
            prop_assert_eq!(read_powershell(&joined(Shell::PowerShell, &words)), Some(words));
        }

        #[test]
        fn a_windows_program_behind_cmd_reads_back_what_was_quoted(words in words("([\"\\\\%^&|<>()! A]|[^\0\r\n]){0,20}")) {
            let line = read_cmd(&joined(Shell::Cmd, &words));
            prop_assert_eq!(line.map(|line| read_arguments(&line)), Some(words));
        }

        #[test]
        fn a_windows_program_reads_back_what_was_quoted(words in words("([\"\\\\ \t]|[^\0]){0,20}")) {
            let line: Vec<_> = words.iter().map(|word| quote_argument(word)).collect();
            prop_assert_eq!(read_arguments(&line.join(" ")), words);
        }
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
