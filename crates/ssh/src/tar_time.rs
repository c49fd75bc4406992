//! When a member of a tar archive was modified, to the nanosecond and before 1970, too.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;

use tar::Header;

/// A moment, as file systems have it, and as tar archives tell it: whole seconds in a member's header, and all of it in a pax
/// header before that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TarTime {
    /// Since 1970; negative before.
    pub seconds: i64,
    /// And so many after that.
    pub nanoseconds: u32,
}

impl TarTime {
    /// When a file was modified.
    pub fn of(metadata: &Metadata) -> Self {
        TarTime::at(metadata.mtime(), metadata.mtime_nsec())
    }

    /// What a file system says: seconds since 1970, and nanoseconds after that, of which there are less than a second's.
    pub(crate) fn at(seconds: i64, nanoseconds: i64) -> Self {
        TarTime { seconds, nanoseconds: nanoseconds.try_into().unwrap_or(0) }
    }

    /// What a header says. One before 1970 is read as if it had no sign.
    ///
    /// # Errors
    /// It says no number.
    pub fn of_header(header: &Header) -> io::Result<Self> {
        Ok(TarTime { seconds: header.mtime()?.cast_signed(), nanoseconds: 0 })
    }

    /// Has a header say the seconds. Before 1970 that is a binary number with all bits above set, as GNU and busybox tar have it
    /// and Python's `tarfile` reads it.
    pub fn set(self, header: &mut Header) {
        match u64::try_from(self.seconds) {
            Ok(seconds) => header.set_mtime(seconds),
            Err(_) => {
                let field = &mut header.as_old_mut().mtime;
                field.fill(0xff);
                field[4..].copy_from_slice(&self.seconds.to_be_bytes());
            }
        }
    }

    /// The contents of a pax header that says all of it; none if the member's own header does.
    pub fn pax_header(self) -> Option<Vec<u8>> {
        (self.nanoseconds > 0).then(|| pax_record("mtime", &self.to_string()))
    }

    /// Reads what a pax header says: a decimal number. None if it is no such thing.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, number) = text.strip_prefix('-').map_or((false, text), |number| (true, number));
        let (seconds, fraction) = number.split_once('.').unwrap_or((number, ""));
        if !seconds.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let seconds: i64 = seconds.parse().ok()?;
        let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
        Some(match (negative, nanoseconds) {
            (false, _) => TarTime { seconds, nanoseconds },
            (true, 0) => TarTime { seconds: -seconds, nanoseconds },
            (true, _) => TarTime { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
        })
    }
}

/// As pax headers have it.
impl fmt::Display for TarTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TarTime { seconds, nanoseconds } = *self;
        match seconds < 0 && nanoseconds > 0 {
            true => write!(f, "-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
            false => write!(f, "{seconds}.{nanoseconds:09}"),
        }
    }
}

/// A record of a pax header: its own length in digits, which count, a key and a value.
pub(crate) fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len();
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    format!("{length}{rest}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_decimal_number() {
        let check = |seconds, nanoseconds, text: &str| {
            let time = TarTime { seconds, nanoseconds };
            assert_eq!((time.to_string().as_str(), TarTime::parse(text)), (text, Some(time)));
        };
        check(0, 0, "0.000000000");
        check(12, 345_000_000, "12.345000000");
        check(-1, 999_999_999, "-0.000000001");
        check(-1000, 0, "-1000.000000000");
        check(-1001, 750_000_000, "-1000.250000000");
        assert_eq!(TarTime::parse("7"), Some(TarTime { seconds: 7, nanoseconds: 0 }));
        assert_eq!(TarTime::parse("-7"), Some(TarTime { seconds: -7, nanoseconds: 0 }));
        assert_eq!(TarTime::parse("7.12345678999"), Some(TarTime { seconds: 7, nanoseconds: 123_456_789 }));
        for bad in ["+1", "x", "1.x", "--1", "1.+5", "99999999999999999999"] {
            assert_eq!(TarTime::parse(bad), None, "{bad}");
        }
    }
}
