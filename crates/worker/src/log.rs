//! The daemon's own log, on standard error. What builds print is never in it.

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Log, LogFormat};

/// Libraries that write what passes through them, logins and builds' output included, when asked for much detail.
const TALKATIVE: [&str; 3] = ["russh=info", "tokio_tungstenite=info", "tungstenite=info"];

/// Begins to log. To be called once.
pub(crate) fn start(log: &Log) {
    let capped = TALKATIVE.iter().filter_map(|directive| directive.parse().ok());
    let filter = capped.fold(EnvFilter::new(&log.filter), EnvFilter::add_directive);
    let layer = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match log.format {
        LogFormat::Text => layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => layer.json().init(),
    }
}
