//! How a worker is, once a second, until somebody has seen enough.

use std::io::{self, IsTerminal, Read};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::{look_at, page, print};
use crate::config::Config;
use crate::exit;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// The keys that end it: q, and what Ctrl-C and Ctrl-D are without a meaning of their own.
const ENOUGH: [u8; 4] = [b'q', b'Q', 3, 4];

/// Shows it until a key, a signal or, where it goes to no terminal, the end of the worker or of its reader ends it.
pub(super) fn watch(config: &Config, json: bool) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(&error.into()),
    };
    let result = runtime.block_on(look_on(config, json));
    // The thread that waits for a key may wait for ever.
    runtime.shutdown_background();
    match result {
        Ok(()) => exit::code(exit::DONE),
        Err(error) => exit::failed(&error),
    }
}

async fn look_on(config: &Config, json: bool) -> anyhow::Result<()> {
    let terminal = if json { None } else { Terminal::take() };
    let mut keys = terminal.as_ref().map(|_| keys());
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let over = async {
            let [interrupt, terminate, hangup] = &mut signals;
            tokio::select! {
                () = enough(&mut keys) => {}
                () = next(interrupt) => {}
                () = next(terminate) => {}
                () = next(hangup) => {}
            }
        };
        let turn = async {
            ticks.tick().await;
            let config = config.clone();
            // It blocks, and a key is to be heard meanwhile.
            tokio::task::spawn_blocking(move || look_at(&config)).await
        };
        let looked = tokio::select! {
            () = over => return Ok(()),
            looked = turn => looked?,
        };
        let printed = match &terminal {
            Some(terminal) => {
                // The worker may be back in a moment.
                let text =
                    looked.and_then(|status| page(&status, false)).unwrap_or_else(|error| format!("{error:#}\n"));
                terminal.draw(&text)
            }
            None => {
                let text = page(&looked?, json)?;
                print(if json { text } else { text + "\n" }.as_bytes())
            }
        };
        match printed {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            printed => printed?,
        }
    }
}

async fn next(signal: &mut io::Result<tokio::signal::unix::Signal>) {
    match signal {
        Ok(signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

async fn enough(keys: &mut Option<mpsc::Receiver<u8>>) {
    if let Some(keys) = keys {
        while let Some(key) = keys.recv().await {
            if ENOUGH.contains(&key) {
                return;
            }
        }
    }
    std::future::pending().await
}

/// The keys that are pressed.
fn keys() -> mpsc::Receiver<u8> {
    let (pressed, keys) = mpsc::channel(1);
    std::thread::spawn(move || {
        for key in io::stdin().lock().bytes() {
            if key.is_err() || key.is_ok_and(|key| pressed.blocking_send(key).is_err()) {
                return;
            }
        }
    });
    keys
}

/// A terminal whose screen is ours until this is dropped.
struct Terminal {
    before: Termios,
}

impl Terminal {
    /// Takes it, if there is one to write to and to read keys from.
    fn take() -> Option<Self> {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return None;
        }
        let before = tcgetattr(io::stdin()).ok()?;
        let mut silent = before.clone();
        // Keys come at once and do not show. Ctrl-C is one of them, so that the screen is given back.
        silent.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &silent).ok()?;
        // The other screen, which leaves what was there alone; no cursor.
        print(b"\x1b[?1049h\x1b[?25l").ok()?;
        Some(Terminal { before })
    }

    /// Draws over what is there, so that nothing flickers.
    fn draw(&self, text: &str) -> io::Result<()> {
        let (width, height) = terminal_size::terminal_size()
            .map_or((80, 24), |(width, height)| (usize::from(width.0), usize::from(height.0)));
        let mut screen = "\x1b[H".to_owned();
        for line in text.lines().take(height.saturating_sub(1)) {
            screen += &fit(line, width);
            screen += "\x1b[K\r\n";
        }
        screen += "\x1b[J";
        print(screen.as_bytes())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = print(b"\x1b[?25h\x1b[?1049l");
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

/// As much of a line as fits, with its colours, which take no place.
fn fit(line: &str, width: usize) -> String {
    let (mut fitting, mut taken, mut in_colour) = (String::new(), 0, false);
    for char in line.chars() {
        match char {
            '\u{1b}' => in_colour = true,
            'm' if in_colour => {
                in_colour = false;
                fitting.push(char);
                continue;
            }
            _ => {}
        }
        if !in_colour {
            taken += 1;
            if taken > width {
                continue;
            }
        }
        fitting.push(char);
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_where_the_screen_ends_and_its_colours_are_not() {
        let check = |line: &str, width, expected: &str| assert_eq!(fit(line, width), expected, "{line:?}");
        check("grün", 4, "grün");
        check("grün", 3, "grü");
        check("\u{1b}[32mup\u{1b}[0m  b", 3, "\u{1b}[32mup\u{1b}[0m ");
        check("\u{1b}[32mstarting\u{1b}[0m", 3, "\u{1b}[32msta\u{1b}[0m");
        check("", 3, "");
    }
}
