"""The machines of builder demo-2009, which nobody looks after when a build is cut short."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from paths import Paths

#: Seconds a machine has to end.
GRACE = 10


def stop_leftovers(paths: Paths) -> None:
    """Stop the machines that this demo's builds left behind.

    A number in a file may be another process's by now: one that was started elsewhere is left alone.
    """
    for file in paths.worker.glob("*/build/kvm_pid_*"):
        try:
            pid = int(file.read_text())
            # The descriptor stands for this very process, whatever becomes of its number.
            process = os.pidfd_open(pid)
        except (ValueError, OSError):
            continue
        try:
            if Path(f"/proc/{pid}/cwd").readlink() == file.parent.resolve():
                stop(process)
                file.unlink(missing_ok=True)
        except OSError:
            continue
        finally:
            os.close(process)


def stop(process: int) -> None:
    """End a process politely, then for good."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            signal.pidfd_send_signal(process, number)
        except ProcessLookupError:
            return
        if select.select([process], [], [], GRACE)[0]:
            return
