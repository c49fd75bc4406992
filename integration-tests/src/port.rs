//! TCP ports of the loopback interface that no other test has.

use std::env;
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, bail};

/// Below what Linux gives to outgoing connections (`ip_local_port_range`), above what services have.
const RANGE: Range<u16> = 21_000..31_000;

/// How many ports stand together, at most.
const BLOCK: u16 = 8;

/// Some consecutive ports, reserved among all tests on this machine by a lock on a file.
///
/// Choosing a port by binding to 0 and closing it again would let the kernel give it to somebody else, in the time
/// when the process it is meant for starts or restarts.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    _lock: File,
}

impl Ports {
    /// Reserves a block of 8 ports which nobody listens on.
    pub fn reserve() -> Result<Ports> {
        let directory = env::temp_dir().join("kvm-worker-test-ports");
        if !directory.is_dir() {
            fs::create_dir_all(&directory).context("make a directory for the locks of ports")?;
            // Whoever else tests here makes locks of their own in it; those of other users can't be opened.
            fs::set_permissions(&directory, Permissions::from_mode(0o1777)).context("share the locks of ports")?;
        }
        for first in RANGE.step_by(usize::from(BLOCK)) {
            let path = directory.join(first.to_string());
            let lock = match File::create(&path) {
                Ok(lock) => lock,
                Err(error) if error.kind() == ErrorKind::PermissionDenied => continue,
                Err(error) => return Err(error).with_context(|| format!("make {}", path.display())),
            };
            if lock.try_lock().is_ok() && (first..first + BLOCK).all(is_free) {
                return Ok(Ports { first, _lock: lock });
            }
        }
        bail!("no {BLOCK} ports are free together in {RANGE:?}; end what holds them")
    }

    /// The port at a place in the block, from 0.
    pub fn get(&self, place: u16) -> u16 {
        assert!(place < BLOCK, "a block has {BLOCK} ports");
        self.first + place
    }
}

/// Whether nobody listens on a port of the loopback interface.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
