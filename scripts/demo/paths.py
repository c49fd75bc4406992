"""Where everything is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Everything the demo reads is in the clone, everything it writes below `demo` in the cache."""

    clone: Path
    cache: Path

    @classmethod
    def of_this_clone(cls) -> Paths:
        clone = Path(__file__).resolve().parents[2]
        return cls(clone, Path(os.environ.get("KVM_WORKER_CACHE") or clone / ".cache").absolute())

    @property
    def examples(self) -> Path:
        return self.clone / "contrib" / "examples"

    @property
    def project(self) -> Path:
        return self.examples / "hello"

    @property
    def program(self) -> Path:
        target = os.environ.get("CARGO_TARGET_DIR") or "target"
        return self.clone / target / "debug" / "kvm-worker"

    @property
    def images(self) -> Path:
        return self.cache / "images"

    @property
    def demo(self) -> Path:
        return self.cache / "demo"

    @property
    def repository(self) -> Path:
        return self.demo / "hello.git"

    @property
    def repository_log(self) -> Path:
        return self.demo / "git.log"

    @property
    def password(self) -> Path:
        return self.demo / "password"

    @property
    def master(self) -> Path:
        return self.demo / "master"

    @property
    def master_log(self) -> Path:
        return self.demo / "master.log"

    @property
    def worker(self) -> Path:
        return self.demo / "worker"

    @property
    def worker_log(self) -> Path:
        return self.demo / "worker.log"

    @property
    def disks(self) -> Path:
        return self.demo / "vms"

    def shown(self, path: Path) -> str:
        """Give a path as short as it can be typed."""
        relative = os.path.relpath(path)
        return relative if len(relative) < len(str(path)) else str(path)
