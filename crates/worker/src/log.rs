//! The daemon's own log, on standard error. What builds print is never in it.

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Log, LogFormat};

/// Begins to log. To be called once.
pub(crate) fn start(log: &Log) {
    let filter = EnvFilter::new(&log.filter);
    let layer = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match log.format {
        LogFormat::Text => layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => layer.json().init(),
    }
}
