use std::future::Future;

use crate::Vm;
use crate::qmp::QmpError;

impl Vm {
    /// Waits until the file of the machine's first disk is written to beyond this many bytes, at least 1. For a qcow2
    /// overlay, which grows at its end, that is about the space it takes; what the guest frees is used again first.
    /// QEMU watches one limit a disk: a later call takes it from the earlier one.
    ///
    /// The future is independent of the `Vm`. It waits for ever once QEMU has exited, which has causes of its own.
    ///
    /// # Errors
    /// If QEMU can't set the limit.
    pub fn grows_beyond(&self, bytes: u64) -> impl Future<Output = Result<(), QmpError>> + Send + use<> {
        let qmp = self.qmp().clone();
        async move { qmp.written_beyond(NODE, bytes).await }
    }
}

/// The file below the first disk.
const NODE: &str = "disk0-file";
