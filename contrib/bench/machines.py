"""The ways to get a machine, side by side."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import contestants
from guests import BY_HAND, CLONE_PARTS, COUNTED, COUNTS, CPUS, MEMORY_MIB, WAYS, Entrant, Guest
from master import Build, Master
from measurements import Measurements
from plan import Paths
from problem import Failed, Problem
from program import TICKS, Program

#: How often something is tried before the round goes on without it.
TRIES = 3

#: Seconds a build may take: eight machines that boot one after the other on a busy host.
LONGEST = 600

#: How many machines are started until there is a template of them.
PATIENCE = 5

#: Seconds of looking whether master, worker and machines are quiet, how many of them they may work, and for how long
#: that is waited for.
LOOK = 0.5
QUIET = 0.1
SETTLE = 120

#: Seconds without a start after which the worker begins to make a warm machine, and a bit.
REFILL = 1.5


class Machines:
    """Measures the ways to get a machine of one guest."""

    def __init__(self, guest: Guest, paths: Paths, master: Master, accel: str, into: Measurements) -> None:
        self._guest = guest
        self._paths = paths
        self._master = master
        self._accel = accel
        self._into = into
        #: What went wrong and was tried again, for the reader of the tables.
        self.odd: list[str] = []
        self._directory = paths.bench / guest.worker
        shutil.rmtree(self._directory, ignore_errors=True)

    def race(self, rounds: int, so_far: Callable[[], None]) -> None:
        """Measure the time that each way takes, and tell whenever there is more to see."""
        with self._worker([way for way in WAYS if way != BY_HAND], slots=2) as worker:
            for way in ("clone", "warm"):
                self._wait_for_template(way, worker)
            for number in range(rounds):
                print(
                    f"{self._guest.title}: round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", flush=True
                )
                for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                    entrant = Entrant(self._guest, way)
                    build = self._build(entrant.builder, way, worker)
                    if build is not None:
                        self._add_times(entrant, build, worker.log)
                so_far()

    def weigh(self, so_far: Callable[[], None]) -> None:
        """Measure the memory that machines take."""
        with self._worker(COUNTED, slots=max(COUNTS)) as worker:
            self._wait_for_template("clone", worker)
            for way in COUNTED:
                print(f"{self._guest.title}: memory of {max(COUNTS)} by {way}", flush=True)
                entrant = Entrant(self._guest, way)
                build = self._build(entrant.memory_builder, way, worker)
                if build is not None:
                    for count, memory in zip(COUNTS, build.properties["memory"], strict=True):
                        self._into.add(entrant, f"memory {count}", [memory])
                so_far()

    @contextmanager
    def _worker(self, ways: list[str] | tuple[str, ...], slots: int) -> Iterator[Program]:
        images = "".join(map(self._image, ways))
        worker = contestants.start_with_machines(
            self._guest.worker, self._directory, slots, images, self._paths, self._master, self._accel
        )
        try:
            self._master.wait_for_workers({self._guest.worker: worker})
            yield worker
        finally:
            worker.stop()

    def _image(self, way: str) -> str:
        """Give an image whose machines are made in one way, each with a template of its own."""
        keys = [f"cpus = {CPUS}", f"memory_mib = {MEMORY_MIB}"]
        if way != "boot":
            keys.append("template = true")
            if self._guest.warm_up:
                keys.append(f'warm_up = "{self._guest.warm_up}"')
        if way == "warm":
            keys.append("warm = 1")
        image = contestants.IMAGE.format(name=way, files=self._guest.files(self._paths), disk=self._guest.disk)
        return image + "\n".join(keys) + "\n"

    def _wait_for_template(self, way: str, worker: Program) -> None:
        """Start machines until they are made in a way that something has to be prepared for."""
        print(f"{self._guest.title}: preparing {way}", flush=True)
        entrant = Entrant(self._guest, way)
        for _ in range(PATIENCE):
            self._settle()
            if self._hows(self._master.build(entrant.builder, worker)) == {way}:
                return
        raise Problem(f"no machine by {way} after {PATIENCE} of them: see {worker.log}")

    def _build(self, builder: str, way: str, worker: Program) -> Build | None:
        """Have a builder build when all is quiet, and again if it went wrong. Gives nothing if it always does."""
        for _ in range(TRIES):
            if way == "warm":
                time.sleep(REFILL)
            self._settle()
            try:
                build = self._master.build(builder, worker, LONGEST)
            except Failed as failed:
                self._note(str(failed))
                continue
            if way == BY_HAND or self._hows(build) == {way}:
                return build
            self._note(f"{builder} had a machine by {', '.join(sorted(self._hows(build) - {way}))}")
        return None

    def _note(self, what: str) -> None:
        print(f"  odd: {what}", flush=True)
        self.odd.append(what)

    def _hows(self, build: Build) -> set[str]:
        return {machine["how"] for machine in build.properties["machines"]}

    def _add_times(self, entrant: Entrant, build: Build, log: Path) -> None:
        start, true = build.properties["spans"]
        worker, master = start["elapsed"] + true["elapsed"], true["ended"] - start["began"]
        self._into.add(entrant, "worker", [worker])
        self._into.add(entrant, "master", [master])
        said = f"{worker:.2f} s, {master:.2f} s through the master"
        if entrant.way == "clone":
            parts = clone_parts(log, build.properties["machines"][0]["slot"])
            for part, milliseconds in parts.items():
                self._into.add(entrant, part, [milliseconds / 1000])
            said += "".join(f", {part} {milliseconds} ms" for part, milliseconds in parts.items())
        print(f"  {entrant.builder}: {said}", flush=True)

    def _settle(self) -> None:
        """Wait until none of ours works: not the master after a build, nor what prepares a machine for the next."""
        deadline = time.monotonic() + SETTLE
        used = cpu(self._paths.bench)
        while time.monotonic() < deadline:
            time.sleep(LOOK)
            before, used = used, cpu(self._paths.bench)
            if abs(used - before) <= QUIET:
                return
        self._note(f"master, worker and machines were not quiet within {SETTLE} s")


def clone_parts(log: Path, slot: int) -> dict[str, int]:
    """Give the milliseconds of each part of the last clone in a slot, as the worker's log has them."""
    cloned = [line for line in log.read_text().splitlines() if re.search(rf"\bslot={slot}\b.*: vm cloned ", line)]
    if not cloned:
        raise Problem(f"the worker's log does not tell of a clone in slot {slot}: see {log}")
    found = dict(re.findall(r"\b(\w+)_ms=(\d+)", cloned[-1]))
    return {part: int(found[part]) for part in CLONE_PARTS}


def cpu(directory: Path) -> float:
    """Give the seconds of CPU of those processes that are in a directory, or were started with a path there."""
    return sum(ticks(process, directory) for process in Path("/proc").glob("[0-9]*")) / TICKS


def ticks(process: Path, directory: Path) -> int:
    try:
        is_in = process.joinpath("cwd").readlink().is_relative_to(directory)
        if not is_in and os.fsencode(directory) not in process.joinpath("cmdline").read_bytes():
            return 0
        # The second field is the program's name in parentheses, and may hold anything.
        fields = process.joinpath("stat").read_text().rpartition(")")[2].split()
    except OSError:
        # It ended meanwhile.
        return 0
    return int(fields[11]) + int(fields[12])
