//! How the worker is, in one line for people.

use std::fmt::Write as _;

use crate::pool::Census;

/// The longest text of others in a status, in characters.
const MAX_TEXT: usize = 300;

/// What the main loop knows of itself at the end of a turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    /// What the worker does: `running`, `draining` and so on.
    pub state: &'static str,
    /// How many commands run.
    pub commands: usize,
    /// How many of the master's builders are not served.
    pub refused: usize,
}

/// The line to the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    Connecting,
    LoggingIn,
    Up,
    /// And is tried again later.
    Down {
        why: String,
    },
}

impl Standing {
    pub(super) fn drains(&self) -> bool {
        self.state == "draining"
    }

    /// `draining; connected to pb://master.example.org:9989; 3 commands run; 2 of 4 slots in use, 1 waiting`
    pub(super) fn line(&self, master: &str, link: &Link, census: &Census) -> String {
        let mut line = String::new();
        // Writing to a String does not fail.
        if self.state != "running" {
            let _ = write!(line, "{}; ", self.state);
        }
        let _ = match link {
            Link::Connecting => write!(line, "connecting to {master}"),
            Link::LoggingIn => write!(line, "logging in at {master}"),
            Link::Up => write!(line, "connected to {master}"),
            Link::Down { why } => write!(line, "not connected to {master}: {why}"),
        };
        let _ = match self.refused {
            0 => Ok(()),
            1 => write!(line, "; 1 builder refused"),
            refused => write!(line, "; {refused} builders refused"),
        };
        let _ = match self.commands {
            0 => Ok(()),
            1 => write!(line, "; 1 command runs"),
            commands => write!(line, "; {commands} commands run"),
        };
        if census.slots > 0 {
            let broken = u16::try_from(census.quarantined.len()).unwrap_or(u16::MAX);
            let used = census.slots.saturating_sub(census.free).saturating_sub(broken);
            let _ = write!(line, "; {used} of {} slots in use", census.slots);
            if broken > 0 {
                let _ = write!(line, ", {broken} can't be cleaned");
            }
            if census.waiting > 0 {
                let _ = write!(line, ", {} waiting", census.waiting);
            }
        }
        line
    }
}

/// A text that others had a hand in, such as a master. A line's end in it would begin another assignment of the message.
pub(super) fn one_line(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(slots: u16, free: u16, broken: u16, waiting: usize) -> Census {
        let quarantined = (0..broken).map(|slot| (slot, "why".to_owned())).collect();
        Census { slots, free, quarantined, waiting, ..Census::default() }
    }

    #[test]
    fn the_status_says_what_matters() {
        let check = |state, link: Link, commands, census, expected: &str| {
            assert_eq!(Standing { state, commands, refused: 0 }.line("pb://m:9989", &link, &census), expected);
        };
        let none = || slots(0, 0, 0, 0);
        let down = Link::Down { why: "no answer".to_owned() };
        check("running", Link::Connecting, 0, none(), "connecting to pb://m:9989");
        check("running", Link::LoggingIn, 0, none(), "logging in at pb://m:9989");
        check("running", down.clone(), 0, none(), "not connected to pb://m:9989: no answer");
        check("running", Link::Up, 1, none(), "connected to pb://m:9989; 1 command runs");
        check("running", Link::Up, 0, slots(4, 2, 0, 0), "connected to pb://m:9989; 2 of 4 slots in use");
        check("running", Link::Up, 0, slots(4, 0, 0, 1), "connected to pb://m:9989; 4 of 4 slots in use, 1 waiting");
        check(
            "running",
            Link::Up,
            0,
            slots(2, 1, 1, 0),
            "connected to pb://m:9989; 0 of 2 slots in use, 1 can't be cleaned",
        );
        check(
            "draining",
            Link::Up,
            3,
            slots(4, 2, 0, 0),
            "draining; connected to pb://m:9989; 3 commands run; 2 of 4 slots in use",
        );
    }

    #[test]
    fn builders_that_are_refused_are_counted() {
        let line = |refused| {
            Standing { state: "running", commands: 0, refused }.line("pb://m:9989", &Link::Up, &slots(0, 0, 0, 0))
        };
        assert_eq!(line(1), "connected to pb://m:9989; 1 builder refused");
        assert_eq!(line(2), "connected to pb://m:9989; 2 builders refused");
    }

    #[test]
    fn nobody_adds_to_the_message() {
        assert_eq!(one_line("no\nMAINPID=1\r\u{1b}[31mred"), "no MAINPID=1  [31mred");
        assert_eq!(one_line(&"ä".repeat(1000)).chars().count(), MAX_TEXT);
    }
}
