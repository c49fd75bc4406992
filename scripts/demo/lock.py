"""One demo at a time in one directory."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

from events import Event, Events
from problem import Problem

#: Seconds the programs of a demo that was killed have to end.
GRACE = 90


class Unlocked:
    """The event that the programs of an earlier demo have ended."""


class Lock:
    """Keeps a second demo away for as long as the first one, or a program of its, runs.

    There are two locks. One is the demo's own and gone with it, however it ends. The other one is handed to its
    programs, which may take a while longer to shut down when the demo is killed.
    """

    def __init__(self, directory: Path, events: Events) -> None:
        self._directory = directory
        self._events = events
        self._demo = directory.joinpath("lock").open("a")
        self._programs = directory.joinpath("programs.lock").open("a")

    def __enter__(self) -> Lock:
        try:
            fcntl.flock(self._demo, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(f"another ./demo is running in {self._directory}: stop it first") from None
        threading.Thread(target=self._wait_for_programs, daemon=True).start()
        self._events.wait(GRACE, is_unlocked, "the end of an earlier demo's master and worker")
        return self

    def __exit__(self, *_: object) -> None:
        self._demo.close()
        self._programs.close()

    def fileno(self) -> int:
        """Give the descriptor that a program is to inherit."""
        return self._programs.fileno()

    def _wait_for_programs(self) -> None:
        fcntl.flock(self._programs, fcntl.LOCK_EX)
        self._events.put(Unlocked())


def is_unlocked(event: Event) -> bool:
    return isinstance(event, Unlocked)
