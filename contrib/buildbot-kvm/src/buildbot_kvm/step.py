"""What all steps share: how a machine's failure becomes a result, and the log of its console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from buildbot import config
from buildbot.interfaces import IRenderable
from buildbot.process.buildstep import BuildStepCancelled
from buildbot.process.results import EXCEPTION, RETRY, statusToString
from twisted.internet import defer

from buildbot_kvm.failures import RESULTS, VMError, is_vm_reason, one_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildbot.process.remotecommand import RemoteCommand

#: The machine's name where a step is given none. A builder may use several machines at once, by name.
DEFAULT_VM = "default"


class VMMixin:
    """The part of a step that knows about machines, to be put before a class derived from BuildStep.

    It takes three arguments, all renderable:

    ``vm``
        name of the builder's machine (default ``"default"``);
    ``console_log``
        name of a log of this step for what the guest's serial console prints while the step runs
        (default: none). The log appears with the first line;
    ``max_retries``
        how often a build request may be started again before the step says EXCEPTION in place of RETRY
        (default 3). All builds of the request that ended as RETRY are counted, whatever the cause.
    """

    renderables: ClassVar[Sequence[str]] = ["vm", "console_log", "max_retries"]

    #: Whether the worker must be one that has machines. A worker which has none would run the command on the host.
    needs_vms: ClassVar[bool] = True
    #: Differences of one step from the common table of results.
    own_results: ClassVar[dict[str, int]] = {}

    _vm_error: VMError | None = None

    def __init__(
        self,
        vm: Any = DEFAULT_VM,
        console_log: Any = None,
        max_retries: Any = 3,
        **kwargs: Any,
    ) -> None:
        self.vm = vm
        self.console_log = console_log
        self.max_retries = max_retries
        check_name(self, "vm", vm)
        if console_log is not None:
            check_name(self, "console_log", console_log)
        # Comparing a renderable gives another renderable, which is true.
        if isinstance(console_log, str) and console_log in {"stdio", *(kwargs.get("logfiles") or {})}:
            config.error(
                f"{type(self).__name__}: console_log {console_log!r} is the name of another log of this step"
            )
        check_number(self, "max_retries", max_retries, least=0)
        super().__init__(**kwargs)

    def run(self) -> defer.Deferred[int]:
        """Run the step, turning a machine's failure into the result its reason calls for."""
        return defer.ensureDeferred(self._run())

    def runCommand(self, command: RemoteCommand) -> defer.Deferred[Any]:
        """Run one command; raise VMError where the machine failed and BuildStepCancelled where a user did stop it."""
        return defer.ensureDeferred(self._run_command(command))

    def getResultSummary(self) -> Any:
        """Say what happened to the machine, if that is why the step ended as it did."""
        if self._vm_error is None:
            return super().getResultSummary()  # type: ignore[misc]
        return self.summary(f"{self._vm_error.sentence} ({statusToString(self.results)})")

    def summary(self, text: str) -> dict[str, str]:
        """Make a summary of a text, without the secrets of the build in it."""
        return {"step": self.build.properties.cleanupTextFromSecrets(text) if self.build else text}

    def log_console(self, command: RemoteCommand) -> None:
        """Ask the worker for the console's output while a command runs, and give it a log."""
        if self.console_log is None:
            return
        command.args["console_log"] = self.console_log
        command.useLogDelayed(self.console_log, lambda _: self.addLog(self.console_log), True)

    async def _run(self) -> int:
        try:
            if self.needs_vms:
                self._check_worker()
            return int(await super().run())  # type: ignore[misc]
        except VMError as error:
            self._vm_error = error
            return await self._result_of(error)

    async def _run_command(self, command: RemoteCommand) -> Any:
        result = await super().runCommand(command)  # type: ignore[misc]
        if self.stopped or command.interrupted:
            # Whatever the worker said on its way out, a user wanted it so. A VM that was being started or
            # stopped then reports a failure of its own, which must not start the build again.
            raise BuildStepCancelled
        reason = command.remote_failure_reason
        if is_vm_reason(reason):
            raise VMError(reason, one_sentence(latest(command, "vm_error"), reason))
        return result

    async def _result_of(self, error: VMError) -> int:
        result = self.own_results.get(error.reason, RESULTS.get(error.reason, EXCEPTION))
        if result == RETRY:
            tries = await self._earlier_retries() + 1
            if tries > int(self.max_retries):
                error.sentence += f"; given up after {tries} {'try' if tries == 1 else 'tries'}"
                return int(EXCEPTION)
        return int(result)

    async def _earlier_retries(self) -> int:
        most = 0
        for request in self.build.requests:
            builds = await self.master.data.get(("buildrequests", request.id, "builds"))
            most = max(most, sum(build["results"] == RETRY for build in builds))
        return most

    def _check_worker(self) -> None:
        if not self.workerVersion("vm_start"):
            raise VMError(
                "vm_unknown",
                f"worker {self.getWorkerName()} has no virtual machines (it does not know the command vm_start): "
                "run kvm-worker on its host, or give this builder a worker that does",
            )

    if TYPE_CHECKING:
        # What BuildStep brings along.
        addLog: Any
        build: Any
        getWorkerName: Any
        master: Any
        results: int
        stopped: bool
        workerVersion: Any


def latest(command: RemoteCommand, key: str) -> Any:
    """Give the last value a worker sent under a key of its own, None without one."""
    values = command.updates.get(key)
    return values[-1] if values else None


def check_name(step: object, argument: str, value: Any) -> None:
    """Refuse at configuration time what can't be the name of a machine or log."""
    if IRenderable.providedBy(value):
        return
    if not isinstance(value, str) or not value:
        config.error(f"{type(step).__name__}: {argument} is {value!r} and must be a name")


def check_number(step: object, argument: str, value: Any, least: int = 1) -> None:
    """Refuse at configuration time what is no number, or too small a one."""
    if IRenderable.providedBy(value):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
        config.error(f"{type(step).__name__}: {argument} is {value!r} and must be a number, {least} or more")
