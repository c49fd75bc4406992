//! What became of an old worker's settings, for the one who runs the import.

use std::fmt;

/// What was done with each setting. It holds no secret.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// What means the same here.
    pub carried: Vec<String>,
    /// What has another name here, or works otherwise.
    pub different: Vec<String>,
    /// What has no place in the configuration, each with its remedy.
    pub dropped: Vec<String>,
    /// What could not be understood, or needs more than a file.
    pub by_hand: Vec<String>,
    /// What to do next.
    pub next: Vec<String>,
}

impl Report {
    /// Whether the configuration can be used as it is.
    pub(crate) fn is_complete(&self) -> bool {
        self.by_hand.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("Carried over", &self.carried),
            ("Different here", &self.different),
            ("Not carried over", &self.dropped),
            ("To set by hand", &self.by_hand),
            ("Next", &self.next),
        ];
        for (heading, lines) in parts.into_iter().filter(|(_, lines)| !lines.is_empty()) {
            writeln!(f, "{heading}:")?;
            for line in lines {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}

/// A text from a file as it may be shown on a terminal.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 100;
    let mut quoted = format!("{:?}", text.chars().take(LONGEST).collect::<String>());
    if text.chars().nth(LONGEST).is_some() {
        quoted.push_str("...");
    }
    quoted
}
