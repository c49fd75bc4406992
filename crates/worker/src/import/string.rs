//! Python's string literals.

/// A literal at the beginning of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Literal {
    /// What it says, or why that can't be told; `None` if it is never closed.
    pub value: Option<Result<String, &'static str>>,
    /// Its length in bytes, with prefix and quotes.
    pub length: usize,
}

/// The literal that a text begins with.
pub(super) fn literal(text: &str) -> Option<Literal> {
    let quote_at = text.bytes().take(3).position(|byte| matches!(byte, b'\'' | b'"'))?;
    let prefix = text[..quote_at].to_ascii_lowercase();
    if !["", "r", "u", "b", "f", "t", "br", "rb", "ur", "fr", "rf", "tr", "rt"].contains(&prefix.as_str()) {
        return None;
    }
    let quoted = &text[quote_at..];
    let quote = &quoted[..1];
    let triple = quote.repeat(3);
    let (delimiter, many_lines) = if quoted.starts_with(&triple) { (triple.as_str(), true) } else { (quote, false) };
    let body = &quoted[delimiter.len()..];
    let Some(end) = end(body, delimiter, many_lines) else { return Some(Literal { value: None, length: 0 }) };
    let length = quote_at + delimiter.len() + end + delimiter.len();
    let body = body[..end].replace("\r\n", "\n");
    let value = if prefix.contains(['f', 't']) && body.contains(['{', '}']) {
        Err("is put together when the file runs")
    } else if prefix.contains('r') {
        Ok(body)
    } else {
        unescape(&body, prefix.contains('b'))
    };
    Some(Literal { value: Some(value), length })
}

/// Where the closing delimiter is.
fn end(body: &str, delimiter: &str, many_lines: bool) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        if escaped {
            escaped = c == '\r' && body[at + 1..].starts_with('\n');
        } else if c == '\\' {
            escaped = true;
        } else if body[at..].starts_with(delimiter) {
            return Some(at);
        } else if c == '\n' && !many_lines {
            return None;
        }
    }
    None
}

/// Replaces the escapes (Python 3's language reference, "Escape sequences"). Bytes have to be UTF-8.
fn unescape(body: &str, bytes: bool) -> Result<String, &'static str> {
    const BAD: &str = "has an escape that is not understood";
    let mut out: Vec<u8> = Vec::with_capacity(body.len());
    // What `\xe9` stands for: a byte of bytes, a character of a text.
    let push_code = |out: &mut Vec<u8>, code: u32| -> Result<(), &'static str> {
        match u8::try_from(code) {
            Ok(byte) if bytes => out.push(byte),
            _ => {
                let c = char::from_u32(code).ok_or(BAD)?;
                out.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(())
    };
    let mut rest = body;
    while let Some(at) = rest.find('\\') {
        out.extend(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { return Err(BAD) };
        let code_of = |digits: usize| {
            let digits =
                rest.get(1..1 + digits).filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit())).ok_or(BAD)?;
            u32::from_str_radix(digits, 16).map_err(|_| BAD)
        };
        let mut length = c.len_utf8();
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c as u8),
            'a' => out.push(7),
            'b' => out.push(8),
            't' => out.push(b'\t'),
            'n' => out.push(b'\n'),
            'v' => out.push(11),
            'f' => out.push(12),
            'r' => out.push(b'\r'),
            '0'..='7' => {
                length = rest.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
                push_code(&mut out, u32::from_str_radix(&rest[..length], 8).map_err(|_| BAD)?)?;
            }
            'x' => {
                push_code(&mut out, code_of(2)?)?;
                length = 3;
            }
            'u' if !bytes => {
                push_code(&mut out, code_of(4)?)?;
                length = 5;
            }
            'U' if !bytes => {
                push_code(&mut out, code_of(8)?)?;
                length = 9;
            }
            'N' if !bytes => return Err(BAD),
            // Python leaves an escape that it does not know as it is.
            _ => {
                out.push(b'\\');
                length = 0;
            }
        }
        rest = &rest[length..];
    }
    out.extend(rest.as_bytes());
    String::from_utf8(out).map_err(|_| "is not UTF-8 text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(source: &str, expected: Result<&str, &'static str>) {
        let literal = literal(source).unwrap();
        assert_eq!(literal.value.unwrap().as_deref().map_err(|why| *why), expected, "{source}");
        assert_eq!(&source[literal.length..], "", "{source}");
    }

    #[test]
    fn strings_say_what_they_say_in_python() {
        check("'plain'", Ok("plain"));
        check("\"it's\"", Ok("it's"));
        check(r#"'it\'s"q\\b'"#, Ok(r#"it's"q\b"#));
        check("'''a'b\nc'''", Ok("a'b\nc"));
        check("\"\"\"\"quoted\" \"\"\"", Ok("\"quoted\" "));
        check("''", Ok(""));
        check("u'ü'", Ok("ü"));
        check(r"r'\n'", Ok(r"\n"));
        check(r"R'\''", Ok(r"\'"));
        check(r"'\x41\101\u00e9\U0001f600\t'", Ok("AA\u{e9}\u{1f600}\t"));
        check(r"'\xe9'", Ok("\u{e9}"));
        check(r"b'\xc3\xa9\u0041'", Ok("\u{e9}\\u0041"));
        check(r"'C:\dir\q'", Ok(r"C:\dir\q"));
        check("'a\\\nb'", Ok("ab"));
        check("'a\\\r\nb'", Ok("ab"));
        check("f'plain'", Ok("plain"));
    }

    #[test]
    fn strings_that_cannot_be_told_say_why() {
        check("f'{host}'", Err("is put together when the file runs"));
        check(r"b'\xff'", Err("is not UTF-8 text"));
        check(r"'\N{DASH}'", Err("has an escape that is not understood"));
        check(r"'\xg0'", Err("has an escape that is not understood"));
        check(r"'\ud800'", Err("has an escape that is not understood"));
        check("'\\xé'", Err("has an escape that is not understood"));
    }

    #[test]
    fn only_a_string_is_a_string() {
        let check = |source: &str, expected: Option<Literal>| assert_eq!(literal(source), expected, "{source}");
        let unclosed = || Some(Literal { value: None, length: 0 });
        check("name", None);
        check("x'y'", None);
        check("a == 'b'", None);
        check("'never", unclosed());
        check("'never\n'", unclosed());
        check("'never\\'", unclosed());
        check("'''never''", unclosed());
    }
}
