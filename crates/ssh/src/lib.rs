//! One ssh session with one guest: commands, signals to process trees, bulk copy.
//!
//! [`wait_until_ready`] polls a booting guest and hands over a [`Session`]; [`Session::connect`] makes one try.
//! A session is one TCP connection over which any number of [`Process`]es and copies run side by side, as many at a
//! time as the server allows. The guest needs nothing but an ssh server, a POSIX `sh` and, for copies, `tar`:
//! OpenSSH or dropbear, GNU tools or busybox. What differs between systems is a [`Dialect`].
//!
//! This crate does not start virtual machines, does not know who asked for a command, and keeps no state on disk:
//! host keys and private keys are the caller's to store.

mod channel;
mod connect;
mod copy;
mod dialect;
mod error;
mod exec;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host_key;
mod host_path;
mod identity;
mod launch;
mod output;
mod process;
mod pump;
mod ready;
mod said;
mod session;
mod shell;
mod signal;
mod stdin;
mod tar_time;
mod target;

pub use copy::{Copied, CopyError, CopyOptions, Limits, Side, Skipped};
pub use dialect::Dialect;
pub use error::{ConnectError, ExecError, Lost, OutputError, SignalError};
pub use exec::{BadExec, Exec, Missing, Pty};
pub use host_key::{BadHostKey, HostKey, HostKeyPolicy};
pub use host_path::HostPath;
pub use identity::{Identity, IdentityError};
pub use process::{Event, Exit, Output, Process, Signaller};
pub use ready::{NotReady, Readiness, Ready, wait_until_ready};
pub use session::Session;
pub use shell::{Shell, Unquotable};
pub use signal::{Detour, Signal, Signalled, UnknownSignal};
pub use stdin::{Stdin, StdinClosed};
pub use tar_time::TarTime;
pub use target::{Processor, Target, Timing};
