//! What is shown on standard error while something takes its time.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::plain::plain;

/// How often what turns is turned.
const TICK: Duration = Duration::from_millis(120);

/// Shows how something goes on: on a terminal in one line that goes away, else in a line for each word of it.
#[derive(Debug)]
pub(super) struct Screen(Form);

#[derive(Debug)]
enum Form {
    /// Nothing is shown.
    Quiet,
    Lines,
    Turning(ProgressBar),
}

impl Screen {
    pub(super) fn quiet() -> Self {
        Screen(Form::Quiet)
    }

    /// For what there is more to say of.
    pub(super) fn talking() -> Self {
        if std::io::stderr().is_terminal() { Screen::turning(String::new()) } else { Screen(Form::Lines) }
    }

    /// For what there is nothing more to say of.
    pub(super) fn waiting(what: String) -> Self {
        if std::io::stderr().is_terminal() { Screen::turning(what) } else { Screen(Form::Quiet) }
    }

    fn turning(what: String) -> Self {
        let bar = ProgressBar::new_spinner().with_message(what);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Screen(Form::Turning(bar))
    }

    /// Tells how it goes on.
    pub(super) fn tell(&self, line: &str) {
        match &self.0 {
            Form::Quiet => {}
            Form::Lines => say(line),
            Form::Turning(bar) => bar.set_message(plain(line.as_bytes()).replace(['\n', '\t'], " ")),
        }
    }

    /// Takes away what would be in the way of what comes now; from here on what is told stays.
    pub(super) fn clear(&mut self) {
        if let Form::Turning(bar) = &self.0 {
            bar.finish_and_clear();
            self.0 = Form::Lines;
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Says something on standard error, which may have words of a guest in it.
pub(super) fn say(line: &str) {
    eprintln!("kvm-worker: {}", plain(line.as_bytes()));
}
