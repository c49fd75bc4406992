//! A command's progress as PB carries it: one list of `[{key: value}, 0]` (Buildbot 4.3.0, `buildbot_worker.pb`).
//!
//! Text goes without the places and times of its lines: the master finds the lines itself.

use super::banana::{Encoder, SIZE_LIMIT, TooLong};
use crate::message::{Stream, Update};

/// Writes `updates` as the argument of a command's `update`.
///
/// # Errors
/// A value that can't be split is longer than PB carries.
pub(super) fn write(encoder: &mut Encoder, updates: &[Update]) -> Result<(), TooLong> {
    let elements = updates.iter().map(|update| match update {
        Update::Text(_, lines) => pieces(&lines.text).count(),
        _ => 1,
    });
    encoder.tagged("list", elements.sum())?;
    updates.iter().try_for_each(|update| elements_of(encoder, update))
}

fn elements_of(encoder: &mut Encoder, update: &Update) -> Result<(), TooLong> {
    match update {
        Update::Text(stream, lines) => pieces(&lines.text).try_for_each(|piece| match stream {
            Stream::Header => element(encoder, "header", |encoder| encoder.text(piece)),
            Stream::Stdout => element(encoder, "stdout", |encoder| encoder.text(piece)),
            Stream::Stderr => element(encoder, "stderr", |encoder| encoder.text(piece)),
            Stream::Log(name) => element(encoder, "log", |encoder| {
                encoder.tuple(2)?;
                encoder.text(name)?;
                encoder.text(piece)
            }),
        }),
        Update::Rc(rc) => element(encoder, "rc", |encoder| {
            encoder.int((*rc).into());
            Ok(())
        }),
        Update::Elapsed(seconds) => element(encoder, "elapsed", |encoder| {
            encoder.float(*seconds);
            Ok(())
        }),
        Update::FailureReason(reason) => element(encoder, "failure_reason", |encoder| encoder.text(reason)),
        Update::Files(names) => element(encoder, "files", |encoder| {
            encoder.tagged("list", names.len())?;
            names.iter().try_for_each(|name| encoder.text(name))
        }),
        Update::Stat(numbers) => element(encoder, "stat", |encoder| {
            encoder.tuple(numbers.len())?;
            numbers.iter().for_each(|number| encoder.int(*number));
            Ok(())
        }),
        Update::Other(key, value) => element(encoder, key, |encoder| encoder.value(value)),
    }
}

fn element(
    encoder: &mut Encoder,
    key: &str,
    value: impl FnOnce(&mut Encoder) -> Result<(), TooLong>,
) -> Result<(), TooLong> {
    encoder.tagged("list", 2)?;
    encoder.dictionary(1)?;
    encoder.key(key)?;
    value(encoder)?;
    // The number of the update, of which old masters expect an acknowledgement.
    encoder.int(0);
    Ok(())
}

/// The text in pieces that are not too long, cut after a newline where there is one.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        if text.len() <= SIZE_LIMIT {
            rest = None;
            return Some(text);
        }
        let longest = char_boundary(text, SIZE_LIMIT);
        let cut = text[..longest].rfind('\n').map_or(longest, |newline| newline + 1);
        let (piece, others) = text.split_at(cut);
        rest = Some(others);
        Some(piece)
    })
}

/// The largest place up to `most` at which the text may be cut.
pub(super) fn char_boundary(text: &str, most: usize) -> usize {
    (0..=most.min(text.len())).rev().find(|place| text.is_char_boundary(*place)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_after_a_line_and_nothing_is_lost() {
        let check = |text: String, lengths: &[usize]| {
            let cut: Vec<_> = pieces(&text).collect();
            assert_eq!(cut.concat(), text);
            assert_eq!(cut.iter().map(|piece| piece.len()).collect::<Vec<_>>(), lengths);
        };
        check(String::new(), &[0]);
        check("x".repeat(SIZE_LIMIT), &[SIZE_LIMIT]);
        check("x".repeat(SIZE_LIMIT + 1), &[SIZE_LIMIT, 1]);
        check(format!("x{}", "ü".repeat(SIZE_LIMIT / 2)), &[SIZE_LIMIT - 1, 2]);
        check(format!("a\nb\n{}", "x".repeat(SIZE_LIMIT)), &[4, SIZE_LIMIT]);
    }
}
