use std::future::Future;

use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use crate::Vm;
use crate::qmp::{Event, QmpError};

impl Vm {
    /// Waits until the file of the machine's first disk is written to beyond this many bytes, at least 1. For a qcow2
    /// overlay, which grows at its end, that is about the space it takes; what the guest frees is used again first.
    /// QEMU watches one limit a disk: a later call takes it from the earlier one.
    ///
    /// The future is independent of the `Vm`. It waits for ever once QEMU has exited, which has causes of its own.
    ///
    /// # Errors
    /// If QEMU can't set the limit.
    pub fn grows_beyond(&self, bytes: u64) -> impl Future<Output = Result<(), QmpError>> + Send + 'static {
        let qmp = self.qmp().clone();
        async move {
            let mut events = qmp.events();
            loop {
                // Set anew after events were lost: a limit holds until it is reached once.
                match qmp
                    .execute("block-set-write-threshold", json!({ "node-name": NODE, "write-threshold": bytes }))
                    .await
                {
                    Ok(_) => {}
                    Err(QmpError::Closed) => std::future::pending().await,
                    Err(error) => return Err(error),
                }
                loop {
                    match events.recv().await {
                        Ok(Event::Other { name, data })
                            if name == "BLOCK_WRITE_THRESHOLD" && data["node-name"] == NODE =>
                        {
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
}

/// The file below the first disk.
const NODE: &str = "disk0-file";
