//! The daemon's own log: to the journal, a terminal or a file, whatever standard error is. What builds and guests print is
//! never in it, nor are secrets.
//!
//! Where a line is from is in its spans: `line` (the connection to the master), `command`, `vm`, `spare` and `template`. They are
//! made at the level `error`, so that a warning tells of its slot and builder whatever the filter says.

mod destination;

use std::io;
use std::sync::OnceLock;

use tracing::{Level, Metadata, warn};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use self::destination::Destination;
use crate::config::{Log, LogFormat};

/// Libraries that write what passes through them, logins and builds' output included, when asked for much detail.
const TALKATIVE: [&str; 2] = ["tokio_tungstenite", "tungstenite"];

/// Libraries that repeat a guest's words in their warnings, as often as it likes.
const GUESTS_VOICE: [&str; 1] = ["russh"];

/// What the journal has as the name of this program.
const IDENTIFIER: &str = "kvm-worker";

/// The filter that is in use.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The form that lines have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Entries of the journal, each field by itself.
    Journal,
    /// For a person who looks on.
    Colour,
    /// For a file.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Begins to log. To be called once.
pub(crate) fn start(log: &Log) {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&log.filter));
    let _ = FILTER.set(handle);
    let mut form = form(log.format, Destination::of_stderr());
    let mut unreachable = None;
    let journal = match form {
        Form::Journal => journal().map_err(|error| unreachable = Some(error)).ok(),
        _ => None,
    };
    let output = match journal {
        Some(journal) => journal.boxed(),
        None => {
            if form == Form::Journal {
                form = Form::Plain;
            }
            let layer = fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(form == Form::Colour);
            match form {
                Form::Json => layer.json().boxed(),
                Form::Colour => layer.compact().boxed(),
                Form::Plain | Form::Journal => layer.boxed(),
            }
        }
    };
    tracing_subscriber::registry().with(filter).with(filter_fn(is_harmless)).with(output).init();
    if let Some(error) = unreachable {
        warn!("the journal's socket can't be reached, so the log goes to standard error as text: {error}");
    }
}

/// Has another filter decide what is logged from now on. The format stays what it was at the start.
pub(crate) fn reload(log: &Log) {
    if let Some(filter) = FILTER.get() {
        // Fails only if nothing logs any more.
        let _ = filter.reload(EnvFilter::new(&log.filter));
    }
}

fn form(format: LogFormat, stderr: Destination) -> Form {
    match (format, stderr) {
        (LogFormat::Journald, _) | (LogFormat::Auto, Destination::Journal) => Form::Journal,
        (LogFormat::Auto | LogFormat::Text, Destination::Terminal) => Form::Colour,
        (LogFormat::Auto | LogFormat::Text, _) => Form::Plain,
        (LogFormat::Json, _) => Form::Json,
    }
}

/// Fields are named like ours, in capitals: `BUILDER`, `SLOT`, `COMMAND_ID`.
fn journal() -> io::Result<tracing_journald::Layer> {
    let priorities =
        PriorityMappings { info: Priority::Informational, debug: Priority::Debug, ..PriorityMappings::new() };
    let layer = tracing_journald::Layer::new()?;
    Ok(layer.with_field_prefix(None).with_syslog_identifier(IDENTIFIER.to_owned()).with_priority_mappings(priorities))
}

/// Whether a line is none of those that have builds' output, guests' words or secrets in them, whatever the filter says.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let crate_name = metadata.target().split("::").next().unwrap_or_default();
    !GUESTS_VOICE.contains(&crate_name) && (*metadata.level() <= Level::INFO || !TALKATIVE.contains(&crate_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_in_the_form_that_is_asked_for_or_suits_their_reader() {
        use Destination::{Journal, Other, Terminal};
        let check = |format, stderr, expected| assert_eq!(form(format, stderr), expected, "{format:?} {stderr:?}");
        check(LogFormat::Auto, Journal, Form::Journal);
        check(LogFormat::Auto, Terminal, Form::Colour);
        check(LogFormat::Auto, Other, Form::Plain);
        check(LogFormat::Text, Journal, Form::Plain);
        check(LogFormat::Text, Terminal, Form::Colour);
        check(LogFormat::Text, Other, Form::Plain);
        for stderr in [Journal, Terminal, Other] {
            check(LogFormat::Json, stderr, Form::Json);
            check(LogFormat::Journald, stderr, Form::Journal);
        }
    }

    #[test]
    fn nothing_makes_libraries_tell_what_passes_through_them() {
        let (filter, handle) = reload::Layer::new(EnvFilter::new("trace,russh::client=trace"));
        let subscriber = tracing_subscriber::registry().with(filter).with(filter_fn(is_harmless));
        tracing::subscriber::with_default(subscriber, || {
            assert!(tracing::enabled!(target: "tungstenite::protocol", Level::INFO));
            assert!(tracing::enabled!(target: "russhington", Level::TRACE));
            assert!(tracing::enabled!(target: "kvm_worker::daemon", Level::TRACE));
            assert!(!tracing::enabled!(target: "russh::client::encrypted", Level::ERROR));
            assert!(!tracing::enabled!(target: "russh", Level::TRACE));
            assert!(!tracing::enabled!(target: "tungstenite::protocol", Level::TRACE));
            handle.reload(EnvFilter::new("warn,qemu=debug")).expect("the subscriber is there");
            assert!(!tracing::enabled!(target: "kvm_worker::daemon", Level::INFO));
            assert!(tracing::enabled!(target: "kvm_worker::daemon", Level::WARN));
            assert!(tracing::enabled!(target: "qemu::owner", Level::DEBUG));
        });
    }
}
