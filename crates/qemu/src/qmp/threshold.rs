use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::client::{Qmp, QmpError};
use super::message::Event;

impl Qmp {
    /// Waits until a block node is written to beyond this offset, at least 1. A node has one such limit: a later call takes
    /// it from the earlier one. Waits for ever if the connection closes, which has causes of its own.
    ///
    /// # Errors
    /// If QEMU can't set the limit. One that does not answer in time is told again.
    pub async fn written_beyond(&self, node: &str, offset: u64) -> Result<(), QmpError> {
        loop {
            let mut events = self.events();
            // Set anew if events were lost: QEMU forgets a limit when it has told that it is reached.
            let limit = json!({ "node-name": node, "write-threshold": offset });
            match self.execute("block-set-write-threshold", limit).await {
                Ok(_) => {}
                // It may have done so, or not. A host that is slow now will not be so for ever.
                Err(QmpError::TimedOut { .. }) => continue,
                Err(QmpError::Closed) => std::future::pending().await,
                Err(error) => return Err(error),
            }
            loop {
                match events.recv().await {
                    Ok(Event::Other { name, data }) if name == "BLOCK_WRITE_THRESHOLD" && data["node-name"] == node => {
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        }
    }
}
