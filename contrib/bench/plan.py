"""What is measured: the sizes, where things lie, and who competes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROTOCOLS = ("pb", "msgpack")
PROGRAMS = ("buildbot-worker", "kvm-worker")


@dataclass(frozen=True)
class Contestant:
    """A worker program that speaks one of the protocols."""

    program: str
    protocol: str

    @property
    def name(self) -> str:
        return f"{self.program}-{self.protocol}"


CONTESTANTS = tuple(Contestant(program, protocol) for protocol in PROTOCOLS for program in PROGRAMS)


@dataclass(frozen=True)
class Sizes:
    """How much is measured in one build."""

    #: The log's lines: the numbers from 1. Three million of them are 23 MB.
    lines: int
    #: The bytes of the file that goes up and down.
    file: int
    #: The steps that run `true`.
    steps: int
    #: The bytes of the file that goes into a guest and out of it.
    copied: int
    #: The files of the tree that does so, of 2 kB each on average.
    files: int


FULL = Sizes(lines=3_000_000, file=100_000_000, steps=20, copied=50_000_000, files=2_000)
SMALL = Sizes(lines=3_000, file=1_000_000, steps=3, copied=1_000_000, files=200)

#: What is copied between host and guest, in which direction, and by whom: the order of the steps that do it.
WHATS = ("file", "tree")
DIRECTIONS = ("in", "out")
WAYS = ("vm_copy", "scp", "tar")
COPIES = tuple((what, direction, way) for what in WHATS for direction in DIRECTIONS for way in WAYS)

#: The worker that has a guest.
COPIER = Contestant("kvm-worker", "guest")


@dataclass(frozen=True)
class Paths:
    """Everything that is written lies below `bench` in the cache, but for the page."""

    clone: Path
    cache: Path

    @classmethod
    def of_this_clone(cls) -> Paths:
        clone = Path(__file__).resolve().parents[2]
        return cls(clone, Path(os.environ.get("KVM_WORKER_CACHE") or clone / ".cache").absolute())

    @property
    def bench(self) -> Path:
        return self.cache / "bench"

    @property
    def master(self) -> Path:
        return self.bench / "master"

    @property
    def file(self) -> Path:
        """The file that goes up and down."""
        return self.bench / "file"

    @property
    def copies(self) -> Path:
        """What is copied into guests and out of them: the copier's builder's directory."""
        return self.bench / COPIER.name / "basedir" / "copies" / "build"

    @property
    def images(self) -> Path:
        """The guests that scripts/setup makes."""
        return self.cache / "images"

    @property
    def configuration(self) -> Path:
        return Path(__file__).with_name("master.cfg")

    @property
    def page(self) -> Path:
        return self.clone / "docs" / "benchmarks.md"

    @property
    def kvm_worker(self) -> Path:
        return self.clone / (os.environ.get("CARGO_TARGET_DIR") or "target") / "release" / "kvm-worker"
