use std::path::PathBuf;

/// The files of a running machine. Their directories exist and are nobody else's business (mode 0700).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Says which process is the machine. There from QEMU's start until it was reaped.
    pub pidfile: PathBuf,
    /// QEMU's monitor. There as long as the pidfile. It takes one client at a time, which is us.
    pub qmp_socket: PathBuf,
    /// What the guest writes to its serial console. Begun anew at each start, and left for others to remove.
    pub console_log: PathBuf,
}
