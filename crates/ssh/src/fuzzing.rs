//! What the fuzz targets reach of this crate's inside.

pub use crate::copy::fuzzing::{read_archive, unpack};
use crate::launch::{Report, Scanner};

/// Takes apart what a guest prints, in one piece and byte by byte, which must come to the same.
///
/// # Panics
/// It does not, or more is held than is meant to be.
pub fn scan_login(bytes: &[u8]) {
    let whole = Scanner::new("x12").feed(bytes);
    let mut scanner = Scanner::new("x12");
    let mut line = None;
    for byte in bytes {
        line = scanner.feed(std::slice::from_ref(byte));
        if line.is_some() {
            break;
        }
    }
    assert_eq!(line.as_deref().and_then(Report::parse), whole.as_deref().and_then(Report::parse));
    assert!(scanner.rest().len() <= 128 * 1024);
}
