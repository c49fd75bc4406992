"""A program that runs beside the benchmark and ends with it, and what the kernel says of it."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

from problem import Problem

#: Seconds a program has to end when told to.
GRACE = 30

#: How many of its last lines are shown when a program ends too early.
TAIL = 15

TICKS = os.sysconf("SC_CLK_TCK")


class Program:
    """Runs a command with its output in a file."""

    def __init__(self, name: str, command: list[str], directory: Path, environment: dict[str, str]) -> None:
        self.name = name
        # What Twisted's programs say goes to a file of their own; the output is what they said before that.
        self._logs = (directory / "twistd.log", directory.with_suffix(".log"))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                # Even a benchmark that is killed takes its programs along.
                ["setpriv", "--pdeathsig", "TERM", *command],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the benchmark, which ends things in the right order.
                start_new_session=True,
            )
        #: Readable once the program has ended.
        self.end = os.pidfd_open(self._process.pid)

    @property
    def log(self) -> Path:
        """What it printed."""
        return self._logs[-1]

    def stop(self) -> None:
        """Tell it to end, and make it after a while."""
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise Problem(f"{self.name} did not end within {GRACE} s and was killed: see {self.log}") from None
        finally:
            os.close(self.end)

    def too_early(self) -> Problem:
        lines = [
            f"\n    {line}"
            for log in self._logs
            if log.exists()
            for line in log.read_text(errors="replace").splitlines()
        ]
        last = "".join(lines[-TAIL:])
        return Problem(f"{self.name} ended too early ({self._process.wait()}); its last lines:{last}")

    def ended_within(self, seconds: float) -> bool:
        return bool(select.select([self.end], [], [], seconds)[0])

    def cpu(self) -> float:
        """Give the seconds of CPU it has used, user and system, its children's not included."""
        # The second field is the program's name in parentheses, and may hold anything.
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> float:
        """Give its resident memory in MiB."""
        return self._status("VmRSS")

    def peak_memory(self) -> float:
        """Give the most resident memory it ever had, in MiB."""
        return self._status("VmHWM")

    def _status(self, key: str) -> float:
        for line in self._proc("status").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
        raise Problem(f"the kernel does not tell {key} of {self.name}")

    def _proc(self, file: str) -> str:
        try:
            return Path(f"/proc/{self._process.pid}/{file}").read_text()
        except OSError:
            raise self.too_early() from None
