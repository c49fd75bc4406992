"""Binds all that Buildbot's tests have a worker do to guests of that worker."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import socket
import subprocess
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from buildbot.process.remotecommand import RemoteCommand
from buildbot.worker.protocols import msgpack, pb
from twisted.internet import defer
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

#: How many machines a test may have at a time: one for each of its builders.
SLOTS = 4

#: How long (seconds) a guest may take to answer; software emulation on a loaded machine is slow.
BOOT_TIMEOUT = 100

#: How long (seconds) a test may take.
TEST_TIMEOUT = 240

#: How long (seconds) a test that has ended waits for its builds to be over; one may be about to get a machine.
SETTLE_TIMEOUT = 100.0

#: What the guests call themselves.
HOSTNAME = "guest"

#: Where the tests of this repository look for ports, and how many are taken at a time. They lock the same files.
PORTS = range(21_000, 31_000, 8)


class Guests:
    """Gets each build of a test a machine of its own before its first step, and binds the builder to it.

    The worker is configured to run nothing on its host, so what is not bound fails. Each machine is asked for its
    name before the build goes on, and that has to be the guest's.
    """

    def __init__(self, images: Path) -> None:
        """``images`` is the directory that ``scripts/setup image`` makes."""
        self.images = images
        #: How each machine came to be, and how long (seconds) that took.
        self.machines: list[tuple[str, float]] = []
        self.commands: Counter[str] = Counter()
        self.problems: list[str] = []
        self._builds = itertools.count(1)
        self._first_port, self._port_lock = reserve_ports()

    def install(self, configuration: Path) -> None:
        """Write the worker's configuration, and have all masters of this process bind their builds from now on."""
        configuration.write_text(self._configuration({}))
        for connection in (pb.Connection, msgpack.Connection):
            self._bind_builds_over(connection)
            self._count_commands_over(connection)

    def make_template(self, program: Path, scratch: Path, state_dir: Path, log: Path) -> None:
        """Have the guest booted and frozen once, so that each machine of the tests is a clone."""
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {"LANG": "C.UTF-8", "KVM_WORKER__POOL__STATE_DIR": str(state_dir)}
        password = scratch / "no-password"
        password.touch(mode=0o600)
        password.write_text("none\n")
        # It needs no master.
        worker_table = {"name": "template", "master": "pb://127.0.0.1:9", "password_file": str(password)}
        configuration = scratch / "template.toml"
        configuration.write_text(self._configuration(worker_table | {"basedir": str(scratch / "template")}))
        run = [str(program), "run", f"--config={configuration}"]
        worker = subprocess.Popen(run, env=environment, stderr=subprocess.PIPE, text=True)
        with log.open("a") as said:
            try:
                assert worker.stderr is not None
                for line in worker.stderr:
                    said.write(line)
                    if " started " in line:
                        break
                make = [str(program), "image", "template", f"--config={configuration}", "guest"]
                subprocess.run(make, env=environment, check=True, timeout=2 * BOOT_TIMEOUT)
            finally:
                worker.terminate()
                said.write(worker.communicate()[1])

    def report(self) -> str:
        """Say what ran in guests."""
        commands = ", ".join(f"{count} {name}" for name, count in sorted(self.commands.items()))
        return f"in guests: {len(self.machines)} machines were started and ran {commands or 'nothing'}"

    def _configuration(self, worker: dict[str, str]) -> str:
        image = {
            "disk": str(self.images / "debian-build.qcow2"),
            "kernel": str(self.images / "vmlinuz"),
            "initrd": str(self.images / "initrd.img"),
            "append": "root=/dev/vda console=ttyS0 no_timer_check",
            "memory_mib": 384,
            "user": "buildbot",
            "key": str(self.images / "id_ed25519"),
            "host_key": (self.images / "host_key.pub").read_text().strip(),
            "boot_timeout": BOOT_TIMEOUT,
            "template": True,
            # By default it is the path that the host has, and each test has another one.
            "guest_basedir": "/home/buildbot",
        }
        pool = {"slots": SLOTS, "ssh_port_base": self._first_port, "accel": "tcg"}
        tables: dict[str, dict[str, Any]] = {
            "worker": {"host_commands": False} | worker,
            "pool": pool,
            "images.guest": image,
        }
        lines = []
        for name, table in tables.items():
            lines.append(f"[{name}]")
            # A text, number or truth of TOML is written as one of JSON.
            lines.extend(f"{key} = {json.dumps(value)}" for key, value in table.items())
        return "\n".join(lines) + "\n"

    def _bind_builds_over(self, connection_class: Any) -> None:
        # The master calls this when a build begins, between the ping of the worker and the first step, and waits for
        # it. Nothing of it is a step, so the numbers and names of steps are as ever.
        start_build = connection_class.remoteStartBuild

        async def start(connection: Any, builder: str) -> None:
            started = start_build(connection, builder)
            if started is not None:
                await started
            await self._bind(connection, builder)

        connection_class.remoteStartBuild = lambda *args: defer.ensureDeferred(start(*args))

    async def _bind(self, connection: Any, builder: str) -> None:
        arguments = {"image": "guest", "vm": "default", "bind": True, "build": next(self._builds)}
        started = await run(connection, builder, "vm_start", arguments)
        if started.rc != 0:
            self.problems.append(f"no machine for {builder}: {started.updates.get('vm_error')}")
            return
        vm = started.updates["vm"][-1]
        self.machines.append((str(vm["how"]), float(vm["seconds"])))
        shell = {"command": ["uname", "-n"], "workdir": ".", "want_stdout": True, "want_stderr": True, "logfiles": {}}
        asked = await run(connection, builder, "shell", shell, collectStdout=True)
        if (asked.rc, asked.stdout.strip()) != (0, HOSTNAME):
            self.problems.append(f"a command of {builder} saw {asked.stdout!r} (rc {asked.rc}) as its machine's name")

    def _count_commands_over(self, connection_class: Any) -> None:
        start_command = connection_class.remoteStartCommand

        def start(connection: Any, remote: Any, *arguments: Any) -> Any:
            if not isinstance(remote, Own):
                self.commands[remote.remote_command] += 1
            return start_command(connection, remote, *arguments)

        connection_class.remoteStartCommand = start


class Own(RemoteCommand):  # type: ignore[misc]
    """A command of ours, not of a test."""


async def run(connection: Any, builder: str, name: str, arguments: dict[str, Any], **more: Any) -> Any:
    """Have the worker run a command that belongs to no step."""
    command = Own(name, arguments, stdioLogName=None, **more)
    command.worker = connection.worker
    # A step hears of this from its build.
    lost: Any = Failure
    subscription = connection.notifyOnDisconnect(lambda: command.interrupt(lost(ConnectionLost())))
    try:
        await command.run(None, connection, builder)
    finally:
        subscription.unsubscribe()
    return command


def reserve_ports() -> tuple[int, IO[str]]:
    """Find ports in a row that nobody has; they are ours as long as the file that is given too is open."""
    directory = Path(tempfile.gettempdir(), "kvm-worker-test-ports")
    if not directory.is_dir():
        directory.mkdir(exist_ok=True)
        # Whoever else tests here makes locks of their own in it; those of other users can't be opened.
        directory.chmod(0o1777)
    for first in PORTS:
        try:
            lock = (directory / str(first)).open("w")
        except PermissionError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        if all(is_free(port) for port in range(first, first + PORTS.step)):
            return first, lock
        lock.close()
    raise RuntimeError(f"no {PORTS.step} ports are free together in {PORTS}; end what holds them")


def is_free(port: int) -> bool:
    """Tell whether nobody listens on a port of the loopback interface."""
    with closing(socket.socket()) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
