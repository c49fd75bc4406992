use std::fmt;

use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;

use super::client::Qmp;
use super::message::Event;

/// QEMU has stopped the guest of its own accord, and it will not go on by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halt {
    /// QEMU's word for the state (`RunState`): `io-error`, `internal-error`, `guest-panicked`.
    pub status: String,
    /// What is known about why: for `io-error` the system's error on the host's disk.
    pub reason: Option<String>,
}

impl Halt {
    /// Whether the host's disk is the cause, as it is when it is full. The others are the guest's, or of what executes its
    /// code.
    pub fn is_of_disk(&self) -> bool {
        self.status == DISK
    }

    /// Whether the guest's kernel has panicked, and its panic device has said so.
    pub fn is_panic(&self) -> bool {
        self.status == PANIC
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{}: {reason}", self.status),
            None => f.write_str(&self.status),
        }
    }
}

/// The run state of a guest whose write to the host's disk failed.
const DISK: &str = "io-error";

/// The run state of a guest whose kernel has panicked.
const PANIC: &str = "guest-panicked";

/// Run states in which nobody has asked for the stop (QEMU 10.0, `RunState`).
const HALTED: [&str; 3] = [DISK, "internal-error", PANIC];

impl Qmp {
    /// Waits until QEMU has stopped the guest of its own accord. Waits for ever if the connection closes, which has causes
    /// of its own.
    pub async fn halted(&self) -> Halt {
        let mut events = self.events();
        let mut reason = None;
        loop {
            // Asked once before any event as well: it may have happened already.
            if let Ok(status) = self.status().await
                && HALTED.contains(&status.as_str())
            {
                return Halt { status, reason };
            }
            loop {
                match events.recv().await {
                    Ok(Event::Other { name, data }) if name == "BLOCK_IO_ERROR" => reason = text(&data["reason"]),
                    Ok(Event::Stop) | Err(RecvError::Lagged(_)) => break,
                    Ok(_) => {}
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        }
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
