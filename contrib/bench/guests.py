"""The guests that machines are made of, and the ways to get one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plan import Paths

#: By hand, and kvm-worker's three. Each of those is an image of this name, and what the worker says of its machines.
BY_HAND = "2009"
WAYS = (BY_HAND, "boot", "clone", "warm")

#: What a clone takes its time for, by the names in the worker's log: QEMU until its guest runs, ssh's answer, and
#: making it look new.
CLONE_PARTS = ("qemu", "login", "refresh")

#: How many machines' memory is measured, each number more than the one before, and of which ways.
COUNTS = (1, 4, 8)
COUNTED = ("boot", "clone")

#: What each machine has.
CPUS = 1
MEMORY_MIB = 1024


@dataclass(frozen=True)
class Guest:
    """A system in a machine."""

    name: str
    title: str
    #: Where scripts/setup or contrib/bench/run has it made, in the cache.
    directory: str
    disk: str
    #: What runs in it before it is frozen.
    warm_up: str | None = None

    @property
    def worker(self) -> str:
        """The worker that has machines of it."""
        return f"machines-{self.name}"

    def files(self, paths: Paths) -> Path:
        return paths.cache / self.directory

    def told(self, paths: Paths) -> dict[str, Any]:
        """Give what the master's configuration needs to know of it."""
        return {
            "name": self.name,
            "worker": self.worker,
            "files": str(self.files(paths)),
            "disk": self.disk,
            "cpus": CPUS,
            "memory": MEMORY_MIB,
        }


GUESTS = (
    Guest("small", "small guest", "images", "debian-plain.qcow2"),
    Guest(
        "systemd",
        "Debian with systemd",
        "images-systemd",
        "debian-systemd.qcow2",
        # It answers before the last of its services is up. What is frozen is to have nothing more to do.
        "systemctl is-system-running --wait >/dev/null || true",
    ),
)


@dataclass(frozen=True)
class Entrant:
    """A way to get a machine of a guest."""

    guest: Guest
    way: str

    @property
    def builder(self) -> str:
        return f"{self.way}-{self.guest.name}"

    @property
    def memory_builder(self) -> str:
        return f"memory-{self.builder}"
