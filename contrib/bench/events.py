"""What the master tells as it happens."""

from __future__ import annotations

import json
import select
import socket
import time
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from problem import Failed, Problem
from program import Program

#: Seconds within which the master answers.
ANSWER = 30


class Events:
    """The master's event stream, which hears of programs that end, too."""

    def __init__(self, port: int, subjects: Iterable[str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER)
        # To a client of this version of HTTP the stream comes as it is, without marks between its pieces.
        self._socket.sendall(b"GET /sse/listen HTTP/1.0\r\n\r\n")
        self._unread = b""
        listener = next(self._data(ANSWER, [])).decode()
        for subject in subjects:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/sse/add/{listener}/{subject}", timeout=ANSWER):
                pass

    def messages(self, seconds: float, programs: Iterable[Program], what: str) -> Iterator[tuple[list[str], Any]]:
        """Give key and message of each event, for so many seconds. Raises Failed then, Problem if a program ends."""
        try:
            for data in self._data(seconds, programs):
                event = json.loads(data)
                yield event["key"], event["message"]
        except TimeoutError:
            raise Failed(f"{what}: not within {seconds:.0f} s; the logs are in .cache/bench") from None

    def _data(self, seconds: float, programs: Iterable[Program]) -> Iterator[bytes]:
        deadline = time.monotonic() + seconds
        ends = {program.end: program for program in programs}
        while True:
            line, found, rest = self._unread.partition(b"\n")
            if found:
                self._unread = rest
                if line.startswith(b"data: "):
                    yield line.removeprefix(b"data: ")
                continue
            ready, _, _ = select.select([self._socket.fileno(), *ends], [], [], max(0.0, deadline - time.monotonic()))
            for end in ready:
                if end in ends:
                    raise ends[end].too_early()
            if not ready:
                raise TimeoutError
            received = self._socket.recv(65536)
            if not received:
                raise Problem("the master closed its event stream: see its log in .cache/bench")
            self._unread += received
