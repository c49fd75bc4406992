//! Tables with aligned columns.

use super::style::{Colour, Style};

/// A field of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    colour: Option<Colour>,
    /// Whether it is aligned at the right, as numbers are.
    right: bool,
}

impl Cell {
    /// A text, which is made printable; a dash in place of none.
    pub(super) fn text(text: impl AsRef<str>) -> Self {
        let text = crate::plain::plain(text.as_ref().as_bytes()).replace(['\n', '\t'], " ");
        Cell { text: if text.is_empty() { "-".to_owned() } else { text }, colour: None, right: false }
    }

    /// Something that may not be known.
    pub(super) fn maybe(value: Option<impl ToString>) -> Self {
        Cell::text(value.map(|value| value.to_string()).unwrap_or_default())
    }

    /// The same at the right.
    pub(super) fn right(mut self) -> Self {
        self.right = true;
        self
    }

    /// The same in a colour, where there are any.
    pub(super) fn in_colour(mut self, colour: Option<Colour>) -> Self {
        self.colour = colour;
        self
    }
}

/// Lines for a table with a heading. Columns of which nothing is known are left out.
pub(super) fn lines<const N: usize>(heading: [&str; N], rows: &[[Cell; N]], style: Style) -> Vec<String> {
    let used: Vec<usize> = (0..N).filter(|column| rows.iter().any(|row| row[*column].text != "-")).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].text.chars().count());
        cells.fold(heading[column].chars().count(), usize::max)
    };
    let widths: Vec<usize> = used.iter().map(|column| width(*column)).collect();
    let line = |cells: Vec<(String, usize, bool, Option<Colour>)>| {
        let cells: Vec<String> = cells
            .into_iter()
            .map(|(text, width, right, colour)| {
                let padding = " ".repeat(width.saturating_sub(text.chars().count()));
                let text = style.paint(&text, colour);
                if right { padding + &text } else { text + &padding }
            })
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    let columns = || used.iter().copied().zip(widths.iter().copied());
    let heading = line(
        columns()
            .map(|(column, width)| {
                let right = rows.first().is_some_and(|row| row[column].right);
                (heading[column].to_owned(), width, right, Some(Colour::Bold))
            })
            .collect(),
    );
    let rows = rows.iter().map(|row| {
        let cell = |(column, width): (usize, usize)| {
            let Cell { text, colour, right } = row[column].clone();
            (text, width, right, colour)
        };
        line(columns().map(cell).collect())
    });
    std::iter::once(heading).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_have_to_be() {
        let row = |slot: &str, builder: &str, pid: Option<u32>| {
            [Cell::text(slot).right(), Cell::text(builder), Cell::maybe(pid).right()]
        };
        let rows = [row("0", "nightly", Some(4711)), row("10", "grün", None)];
        let table = lines(["SLOT", "BUILDER", "PID"], &rows, Style::PLAIN);
        assert_eq!(table, ["SLOT  BUILDER   PID", "   0  nightly  4711", "  10  grün        -"]);
        let table = lines(["SLOT", "BUILDER", "PID"], &[row("0", "\u{1b}[2Jx\ny", None)], Style::PLAIN);
        assert_eq!(table, ["SLOT  BUILDER", "   0  x y"]);
        assert_eq!(lines(["SLOT"], &[], Style::PLAIN), [""]);
    }

    #[test]
    fn colours_do_not_count() {
        let rows = [[Cell::text("up").in_colour(Some(Colour::Green)), Cell::text("b")]];
        let table = lines(["STATE", "BUILDER"], &rows, Style::COLOURED);
        assert_eq!(table, ["\u{1b}[1mSTATE\u{1b}[0m  \u{1b}[1mBUILDER\u{1b}[0m", "\u{1b}[32mup\u{1b}[0m     b"]);
    }
}
