"""The kvm-worker."""

from __future__ import annotations

import shutil

from events import Event, Events, Told
from lock import Lock
from master import Master
from paths import Paths
from ports import free_ports
from problem import Problem
from program import Program

#: Seconds within which a worker finds its master.
CONNECT = 60

#: Those of the configuration. Templates are made on a port of their own.
SLOTS = 3

#: The longest path (bytes) under which the worker has sockets.
LONGEST = 80


class Worker:
    """The worker of contrib/examples/kvm-worker.toml, with paths and ports of the demo's own."""

    def __init__(self, paths: Paths, events: Events, lock: Lock, master: Master) -> None:
        self._paths = paths
        self._events = events
        self._master = master
        self._program = Program("worker", events, lock, paths.worker_log)

    def start(self) -> None:
        """Start it, and wait until the master says that it is connected."""
        self._look_for_parts()
        self._paths.worker.mkdir(exist_ok=True)
        self._forget_disks_of_an_old_guest()
        self._program.start(
            [str(self._paths.program), "run", "--config", str(self._paths.examples / "kvm-worker.toml")],
            cwd=self._paths.demo,
            environment=self._environment(),
        )
        self._events.wait(CONNECT, self._is_connected, "the worker's connection to the master")

    def is_running(self) -> bool:
        return self._program.is_running()

    def stop(self) -> None:
        self._program.stop()

    def must_run(self, event: Event) -> None:
        self._program.must_run(event)

    def _environment(self) -> dict[str, str]:
        """Give the worker's configuration as far as it differs from the file."""
        images = self._paths.images
        keys = {
            "WORKER__MASTER": f"pb://127.0.0.1:{self._master.worker_port}",
            "WORKER__PASSWORD_FILE": self._paths.password,
            "WORKER__BASEDIR": self._paths.worker,
            "POOL__SLOTS": SLOTS,
            "POOL__SSH_PORT_BASE": free_ports(2222, SLOTS + 1),
            "POOL__STATE_DIR": self._paths.disks,
            # The load may be that of the compiler, just before.
            "POOL__WARM_MAX_LOAD": 1000,
        }
        for image in ("debian-build", "debian-plain"):
            table = f"IMAGES__{image.upper()}__"
            keys[table + "DISK"] = images / f"{image}.qcow2"
            keys[table + "KERNEL"] = images / "vmlinuz"
            keys[table + "INITRD"] = images / "initrd.img"
            keys[table + "KEY"] = images / "id_ed25519"
            keys[table + "HOST_KEY"] = " ".join(images.joinpath("host_key.pub").read_text().split()[:2])
        return {f"KVM_WORKER__{key}": str(value) for key, value in keys.items()}

    def _forget_disks_of_an_old_guest(self) -> None:
        """Remove the machines' disks if the guest was made anew: they are overlays on the old one, and no good."""
        guest = self._paths.images.joinpath("debian-build.qcow2").stat()
        made_for = f"{guest.st_size} {guest.st_mtime_ns}\n"
        marker = self._paths.demo / "disks-made-for"
        if not marker.exists() or marker.read_text() != made_for:
            shutil.rmtree(self._paths.disks, ignore_errors=True)
            marker.write_text(made_for)

    def _is_connected(self, event: Event) -> bool:
        self._program.must_run(event)
        self._master.must_run(event)
        return isinstance(event, Told) and (event.subject, event.kind) == ("workers", "connected")

    def _look_for_parts(self) -> None:
        if not self._paths.program.exists():
            raise Problem(f"{self._paths.program} is missing: run ./demo, which builds it")
        if not self._paths.images.joinpath("debian-build.qcow2").exists():
            raise Problem(f"there is no guest in {self._paths.images}: scripts/setup image makes it")
        if len(bytes(self._paths.disks)) > LONGEST:
            raise Problem(
                f"{self._paths.disks} is too long a path: set KVM_WORKER_CACHE to a short one, like /var/tmp/kvm"
            )
