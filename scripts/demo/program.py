"""A program that runs beside the demo and ends with it."""

from __future__ import annotations

import collections
import ctypes
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import IO

from events import Events, Exit, Line
from lock import Lock
from problem import Problem

#: How long a program may take to end when told to, in seconds. The worker shuts its machines down in that time.
GRACE = 60

#: How many of its last lines are shown when a program ends too early.
TAIL = 15

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Program:
    """Copies its output to a log file and, line by line, to the events."""

    def __init__(self, name: str, events: Events, lock: Lock, log: Path) -> None:
        self.name = name
        self._events = events
        self._lock = lock
        self._log = log
        self._last: collections.deque[str] = collections.deque(maxlen=TAIL)
        self._process: subprocess.Popen[str] | None = None

    def start(self, command: list[str], cwd: Path, environment: dict[str, str]) -> None:
        """Start it in a session of its own: Ctrl-C is for the demo, which ends things in the right order."""
        parent = os.getpid()

        def end_with_the_demo() -> None:
            # Even a demo that is killed takes its programs along, so the next one finds the machine as it should be.
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=(self._lock.fileno(),),
            preexec_fn=end_with_the_demo,  # noqa: PLW1509 - no thread of ours holds a lock the child needs
        )
        self._process = process
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()
        threading.Thread(target=self._wait, args=(process,), daemon=True).start()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Tell it to end, and make it after a while."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Problem(f"the {self.name} did not end within {GRACE} s and was killed: see {self._log}") from None

    def must_run(self, event: object) -> None:
        """Raise Problem at the event that says that it ended."""
        if isinstance(event, Exit) and event.program == self.name:
            lines = "".join(f"\n    {line}" for line in self._last)
            raise Problem(f"the {self.name} ended too early ({event.status}); its last lines:{lines}")

    def _read(self, output: IO[str]) -> None:
        with self._log.open("w") as log:
            for line in output:
                log.write(line)
                log.flush()
                text = line.rstrip("\n")
                self._last.append(text)
                self._events.put(Line(self.name, text))

    def _wait(self, process: subprocess.Popen[str]) -> None:
        self._events.put(Exit(self.name, process.wait()))
