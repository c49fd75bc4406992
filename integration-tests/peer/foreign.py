"""A worker program in place of the worker that Buildbot's integration tests start."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildbot.data import resultspec
from buildbot.test.util import integration
from buildbot.util.service import AsyncService
from buildbot_kvm import listen_for_msgpack_on
from twisted.internet import defer, error, protocol, reactor, task
from twisted.trial.unittest import SkipTest

if TYPE_CHECKING:
    from twisted.python.failure import Failure

#: How long (seconds) a test that has ended waits for its worker to be attached and its builds to be over. Some tests
#: end while the master is about to start one. Buildbot's own worker is never there by then; ours is, and a master
#: whose worker goes in such a moment logs what makes the test an error.
SETTLE_TIMEOUT = 10.0
SETTLE_POLL = 0.05

#: How long (seconds) a worker may take to exit when the master or a signal has asked it to.
EXIT_TIMEOUT = 15.0

# What a reactor can do is described by interfaces, which mypy doesn't understand.
clock: Any = reactor
# Some tests replace what is in the module, so the real thing is kept here.
spawn = clock.spawnProcess


class Output(protocol.ProcessProtocol):
    """Writes what a process says to a file and tells when it has ended."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab")
        self.ended: defer.Deferred[None] = defer.Deferred()

    def outReceived(self, data: bytes) -> None:
        """Keep standard output."""
        self.file.write(data)

    def errReceived(self, data: bytes) -> None:
        """Keep standard error."""
        self.file.write(data)

    def processEnded(self, reason: Failure) -> None:
        """Keep how the process ended too."""
        self.file.write(f"{reason.getErrorMessage()}\n".encode())
        self.file.close()
        self.ended.callback(None)


class ForeignWorker(AsyncService):
    """Takes the place of Buildbot's SandboxedWorker, which a test starts and stops along with its master."""

    program: Path
    log: Path
    state_dir: Path
    configuration: Path | None
    settle_timeout: float

    def __init__(  # noqa: PLR0917
        self,
        masterhost: str,
        port: int,
        name: str,
        passwd: str,
        workerdir: str,
        _path: str,
        protocol: str,
        **more: Any,
    ) -> None:
        if more:
            raise SkipTest(f"takes settings of the worker that only Buildbot's own has: {', '.join(more)}")
        scheme = {"pb": "pb", "msgpack_experimental_v7": "ws"}[protocol]
        self.master_url = f"{scheme}://{masterhost}:{port}"
        self.worker_name = name
        self.password = passwd
        self.basedir = Path(workerdir).absolute()
        self.worker: Any = None
        self.output: Output | None = None
        self.process: Any = None
        self.attached = False

    def startService(self) -> Any:
        """Start the program."""
        password_file = self.basedir.with_suffix(".password")
        password_file.touch(mode=0o600)
        password_file.write_text(f"{self.password}\n")
        arguments = {
            "master": self.master_url,
            "name": self.worker_name,
            "password-file": password_file,
            "basedir": self.basedir,
        }
        if self.configuration is not None:
            arguments["config"] = self.configuration
        command = [str(self.program), "run", *(f"--{flag}={value}" for flag, value in arguments.items())]
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {
            "LANG": "C.UTF-8",
            # A test has 60 seconds, of which few shall go into waiting for another attempt to connect.
            "KVM_WORKER__CONNECTION__RETRY_MAX": "2",
            # The default is beside the basedir, and trial's paths are too long for the sockets in there. Without
            # machines, which are the same for all, a test may have several workers.
            "KVM_WORKER__POOL__STATE_DIR": str(self.state_dir / ("" if self.configuration else self.worker_name)),
            "KVM_WORKER__POOL__ACCEL": "tcg",
        }
        self.output = Output(self.log)
        self.process = spawn(self.output, command[0], args=command, env=environment)
        self.worker = self.master.workers.getWorkerByName(self.worker_name)
        attach = self.worker.attached

        async def attached(connection: Any) -> None:
            await attach(connection)
            self.attached = True

        self.worker.attached = lambda connection: defer.ensureDeferred(attached(connection))
        return super().startService()

    def shutdownWorker(self) -> defer.Deferred[None]:
        """End the program; the test calls this before it stops the master."""
        return defer.ensureDeferred(self._shut_down())

    async def _shut_down(self) -> None:
        if self.output is None or self.output.ended.called:
            return
        await self._settle()
        if self.worker.conn is not None:
            await self.worker.shutdown()
        else:
            # The master can't ask a worker that a test has left without connection.
            self._signal("TERM")
        timer = clock.callLater(EXIT_TIMEOUT, self._signal, "KILL")
        await self.output.ended
        if not timer.active():
            raise RuntimeError(f"the worker did not exit within {EXIT_TIMEOUT} s and was killed")
        timer.cancel()

    async def _settle(self) -> None:
        deadline = clock.seconds() + self.settle_timeout
        while clock.seconds() < deadline and self.output is not None and not self.output.ended.called:
            if self.attached and not await self._builds_are_left():
                return
            await task.deferLater(clock, SETTLE_POLL)

    async def _builds_are_left(self) -> bool:
        if self.worker.conn is None:
            return False
        open_requests = resultspec.Filter("complete", "eq", [False])
        spec = resultspec.ResultSpec(filters=[open_requests])
        return bool(await self.master.data.get_with_resultspec(("buildrequests",), spec))

    def _signal(self, name: str) -> None:
        with contextlib.suppress(error.ProcessExitedAlready):
            self.process.signalProcess(name)


def install(
    program: Path,
    log: Path,
    state_dir: Path,
    configuration: Path | None = None,
    settle_timeout: float = SETTLE_TIMEOUT,
) -> None:
    """Make all tests from now on start a program, and their masters listen on loopback only.

    ``configuration`` is a file for the worker, beside the flags it gets.
    """
    ForeignWorker.program = program
    ForeignWorker.log = log
    ForeignWorker.state_dir = state_dir
    ForeignWorker.configuration = configuration
    ForeignWorker.settle_timeout = settle_timeout
    # What is in this variable does not matter: that it is there makes the tests start a worker outside their process.
    os.environ["SANDBOXED_WORKER_PATH"] = str(program)
    integration.SandboxedWorker = ForeignWorker
    listen_for_msgpack_on("127.0.0.1")
