//! Whom to blame for a machine that was not made: the host, which may have what was wanting the next time, or what the machine
//! was made of.

use qemu::{BootError, Exit, StartError};

/// Whether a QEMU did not start for want of something that the host has to give.
pub(super) fn start_is_hosts(error: &StartError) -> bool {
    match error {
        StartError::Occupied { .. } | StartError::Pidfile(_) | StartError::File { .. } | StartError::Spawn(_) => true,
        StartError::Exited(exit) => exit_is_hosts(exit),
        _ => false,
    }
}

/// Whether the host is to blame for a machine that did not answer.
pub(super) fn boot_is_hosts<E>(error: &BootError<E>) -> bool {
    match error {
        // What executes its code may stop it, too, because of what is in its memory.
        BootError::Halted(halt) => halt.is_of_disk(),
        BootError::Exited(exit) => exit_is_hosts(exit),
        _ => false,
    }
}

/// Whether QEMU was ended by somebody else, such as the kernel for want of memory, or ended for want of something that the
/// host has to give. What a template does to it ends it by other signals (SIGABRT, SIGBUS, SIGSEGV) and with other words.
pub(super) fn exit_is_hosts(exit: &Exit) -> bool {
    let killed = matches!(exit.status, process::ExitStatus::Signal(2 | 9 | 15));
    // It has one exit code for all that it complains of (QEMU 7.2 to 10.0).
    let words = ["host forwarding rule", "Cannot allocate memory", "Too many open files", "No space left on device"];
    killed || words.iter().any(|words| exit.stderr.contains(words))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_template_is_to_blame_for_what_qemu_makes_of_it() {
        let check = |status: process::ExitStatus, stderr: &str, expected: bool| {
            let exit = qemu::Exit { status, stderr: stderr.to_owned(), cause: None, lived: Duration::ZERO };
            assert_eq!(exit_is_hosts(&exit), expected, "{exit}");
        };
        let failed = process::ExitStatus::Code(1);
        check(failed, "qemu: Not a migration stream", false);
        check(failed, "qemu: Image is not in qcow2 format", false);
        check(failed, "qemu: Could not set up host forwarding rule 'tcp:127.0.0.1:2222-:22'", true);
        check(failed, "qemu: cannot set up guest memory 'ram0': Cannot allocate memory", true);
        check(process::ExitStatus::Signal(9), "", true);
        check(process::ExitStatus::Signal(15), "", true);
        check(process::ExitStatus::Signal(7), "", false);
        check(process::ExitStatus::Signal(11), "", false);
    }

    #[test]
    fn a_guest_that_was_stopped_is_the_template_s_fault_unless_the_disk_was_full() {
        let check = |status: &str, expected: bool| {
            let halt = qemu::qmp::Halt { status: status.to_owned(), reason: None };
            assert_eq!(boot_is_hosts(&qemu::BootError::<String>::Halted(halt)), expected, "{status}");
        };
        check("io-error", true);
        check("internal-error", false);
        check("guest-panicked", false);
    }
}
