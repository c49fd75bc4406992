//! Colours, where they are wanted.

/// Whether there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    coloured: bool,
}

/// What can be told by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Bold,
    Dim,
    Green,
    Yellow,
    Red,
}

impl Style {
    #[cfg(test)]
    pub(super) const PLAIN: Style = Style { coloured: false };
    #[cfg(test)]
    pub(super) const COLOURED: Style = Style { coloured: true };

    /// That of standard output: coloured on a terminal that has colours, unless NO_COLOR (no-color.org) is set.
    pub(super) fn of_stdout() -> Self {
        let choice = anstream::AutoStream::choice(&std::io::stdout());
        Style { coloured: choice != anstream::ColorChoice::Never }
    }

    /// A text in a colour.
    pub(super) fn paint(self, text: &str, colour: Option<Colour>) -> String {
        let Some(colour) = colour.filter(|_| self.coloured) else { return text.to_owned() };
        let code = match colour {
            Colour::Bold => 1,
            Colour::Dim => 2,
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Red => 31,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}
