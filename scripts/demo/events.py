"""Everything the demo waits for comes through one queue, so that every wait has a deadline and hears Ctrl-C."""

from __future__ import annotations

import queue
import signal
import time
from dataclasses import dataclass
from typing import Any, Callable

from problem import Problem


class Interrupted(Exception):
    """The user wants it to end."""


@dataclass(frozen=True)
class Line:
    """A line that a program wrote."""

    program: str
    text: str


@dataclass(frozen=True)
class Exit:
    """A program ended, with this status or minus the signal that ended it."""

    program: str
    status: int


@dataclass(frozen=True)
class Told:
    """The master told what happened: `kind` is the last word of the event's key."""

    subject: str
    kind: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Signal:
    """Ctrl-C, or a polite kill."""


Event = Any


class Events:
    """The queue, with the signals in it."""

    def __init__(self) -> None:
        # This kind of queue may be written to by a signal handler.
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self.put(Signal()))

    def put(self, event: Event) -> None:
        self._queue.put(event)

    def wait(self, seconds: float, wanted: Callable[[Event], bool], what: str) -> Event:
        """Give the first event that is wanted. `wanted` sees each event once, in order.

        Raises Interrupted at a signal, and Problem, which says that `what` did not happen, after so many seconds.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                event = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise Problem(f"{what}: not within {seconds:.0f} s") from None
            if isinstance(event, Signal):
                raise Interrupted
            if wanted(event):
                return event

    def wait_for_interrupt(self) -> None:
        """Wait without an end for the user, or for a program that should not end."""
        while True:
            event = self._queue.get()
            if isinstance(event, Signal):
                return
            if isinstance(event, Exit):
                raise Problem(f"the {event.program} ended by itself ({event.status}): see its log")
