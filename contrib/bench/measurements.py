"""One round of measuring, and what comes of several."""

from __future__ import annotations

import filecmp
import os
import random
import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable
from contextlib import ExitStack
from pathlib import Path

import contestants
from master import Build, Master
from plan import CONTESTANTS, COPIER, COPIES, Contestant, Paths, Sizes
from problem import Problem
from program import Program


class Measurements:
    """What was measured of each contestant, by the name of the measure, over all rounds."""

    def __init__(self) -> None:
        self._values: dict[tuple[Hashable, str], list[float]] = defaultdict(list)

    def add(self, contestant: Hashable, measure: str, values: Iterable[float]) -> None:
        self._values[contestant, measure].extend(values)

    def count(self, contestant: Hashable, measure: str) -> int:
        """Give how many values there are."""
        return len(self._values.get((contestant, measure), ()))

    def median(self, contestant: Hashable, measure: str) -> float | None:
        """Give the middle value, or nothing if there is none."""
        values = self._values.get((contestant, measure))
        return statistics.median(values) if values else None

    def percentile95(self, contestant: Hashable, measure: str) -> float | None:
        """Give the value that 95 of 100 do not exceed."""
        values = self._values.get((contestant, measure), [])
        if len(values) < 2:
            return values[0] if values else None
        return statistics.quantiles(values, n=20, method="inclusive")[-1]


class Round:
    """All tasks, each done by one contestant after the other, so that what slows the machine slows them all."""

    def __init__(self, number: int, paths: Paths, sizes: Sizes, master: Master, into: Measurements) -> None:
        self._order = CONTESTANTS if number % 2 == 0 else CONTESTANTS[::-1]
        self._paths = paths
        self._sizes = sizes
        self._master = master
        self._into = into

    def run(self) -> None:
        """Measure with worker processes that nobody used before, and stop them."""
        with ExitStack() as stack:
            workers = {}
            for contestant in self._order:
                workers[contestant] = contestants.start(contestant, self._paths, self._master)
                stack.callback(workers[contestant].stop)
            self._master.wait_for_workers({each.name: worker for each, worker in workers.items()})
            self._measure(workers)

    def copy(self) -> None:
        """Measure copies into one guest and out of it, by each way after the other."""
        with ExitStack() as stack:
            copier = contestants.start_copier(self._paths, self._master)
            stack.callback(copier.stop)
            make_copied(self._paths.copies, self._sizes)
            self._master.wait_for_workers({COPIER.name: copier})
            self._master.settle()
            print(f"  {COPIER.name}: copies", flush=True)
            build = self._master.build("copies", copier)
        for (what, direction, way), seconds in zip(COPIES, build.seconds, strict=True):
            self._into.add(COPIER, f"{what} {direction} {way}", [seconds])

    def _measure(self, workers: dict[Contestant, Program]) -> None:
        for contestant, worker in workers.items():
            # Programs load parts of themselves when they are first needed.
            self._build("true", contestant, worker)
            self._into.add(contestant, "idle", [worker.memory()])
        for task in (self._true, self._log, self._upload, self._download):
            for contestant, worker in workers.items():
                # Or else a task pays for what the one before it left the master to do.
                self._master.settle()
                task(contestant, worker)
        for contestant, worker in workers.items():
            self._into.add(contestant, "peak", [worker.peak_memory()])
            self._into.add(contestant, "after", [worker.memory()])

    def _true(self, contestant: Contestant, worker: Program) -> None:
        build = self._build("true", contestant, worker)
        self._into.add(contestant, "true", build.seconds)

    def _log(self, contestant: Contestant, worker: Program) -> None:
        build = self._timed("log", contestant, worker)
        lines = self._master.lines(build)
        # The header has some lines, too.
        if lines < self._sizes.lines:
            raise Problem(f"{contestant.name}: only {lines} of the log's {self._sizes.lines} lines arrived")

    def _upload(self, contestant: Contestant, worker: Program) -> None:
        uploaded = self._master.uploads / contestant.name
        self._timed("upload", contestant, worker)
        if not filecmp.cmp(self._paths.file, uploaded, shallow=False):
            raise Problem(f"{contestant.name}: the file did not arrive as it was")
        uploaded.unlink()

    def _download(self, contestant: Contestant, worker: Program) -> None:
        if contestant.protocol == "msgpack":
            # A master of Buildbot 4.3.0 sends nothing; there is no worker that could help it.
            return
        downloaded = contestants.builddir(contestant, self._paths, f"download-{contestant.name}") / "downloaded"
        self._timed("download", contestant, worker)
        if not filecmp.cmp(self._paths.file, downloaded, shallow=False):
            raise Problem(f"{contestant.name}: the file did not arrive as it was")
        downloaded.unlink()

    def _timed(self, task: str, contestant: Contestant, worker: Program) -> Build:
        """Have a task done, and note what CPU the worker used and how long the steps took."""
        before = worker.cpu()
        build = self._build(task, contestant, worker)
        self._into.add(contestant, f"{task} CPU", [worker.cpu() - before])
        self._into.add(contestant, f"{task} time", [sum(build.seconds)])
        return build

    def _build(self, task: str, contestant: Contestant, worker: Program) -> Build:
        print(f"  {contestant.name}: {task}", flush=True)
        return self._master.build(f"{task}-{contestant.name}", worker)


def make_copied(directory: Path, sizes: Sizes) -> None:
    """Make what is copied: a file of bytes that nothing can make shorter, and a tree of small files of them."""
    directory.mkdir(parents=True)
    directory.joinpath("file").write_bytes(os.urandom(sizes.copied))
    for number in range(sizes.files):
        file = directory / "tree" / str(number // 100) / str(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(random.randint(0, 4000)))
