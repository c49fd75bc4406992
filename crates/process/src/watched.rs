use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime in whose context this is called.
#[allow(unsafe_code)]
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it exists.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Waits for ever, in place of readiness that can't be had any more. That is so only where the runtime's IO is shut down:
/// whoever waits then is about to be dropped.
pub(crate) async fn runtime_is_gone() {
    std::future::pending().await
}
