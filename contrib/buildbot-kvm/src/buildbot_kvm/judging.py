"""How a machine's failure becomes the result of a step, whoever wrote the step."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from buildbot.process.results import EXCEPTION, RETRY, statusToString
from twisted.internet import defer, error

from buildbot_kvm.failures import RESULTS, VMError, is_vm_reason, one_sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildbot.process.remotecommand import RemoteCommand

#: How often a build request may be started again before a step says EXCEPTION in place of RETRY.
MAX_RETRIES = 3


class JudgingMixin:
    """Gives a step the result that a machine's failure calls for, to be put before a class derived from BuildStep.

    The first failure of a machine decides, whatever the step makes of it: it may take a command that failed for
    an answer, or catch all exceptions. It is put before classes that have not heard of machines, so all that is not
    Buildbot's has a name that no other class would take.
    """

    #: Differences of one step from the common table of results.
    _vm_results: Mapping[str, int] = MappingProxyType({})
    _vm_error: VMError | None = None

    def run(self) -> defer.Deferred[Any]:
        """Run the step, turning a machine's failure into the result its reason calls for."""
        return defer.ensureDeferred(self.__run())

    def runCommand(self, command: RemoteCommand) -> defer.Deferred[Any]:
        """Run one command; raise VMError where the machine failed and nobody had stopped the step."""
        return defer.ensureDeferred(self.__run_command(command))

    def getResultSummary(self) -> Any:
        """Say what happened to the machine, if that is why the step ended as it did."""
        if self._vm_error is None:
            return super().getResultSummary()  # type: ignore[misc]
        return summary(self, f"{self._vm_error.sentence} ({statusToString(self.results)})")

    def getBuildResultSummary(self) -> defer.Deferred[dict[str, str]]:
        """Say the same of the build, once: all steps that come after a machine's end have the same to say."""
        return defer.ensureDeferred(self.__build_summary())

    def _vm_failed(self, failure: VMError) -> VMError:
        """Take note of a failure that the step is to end with, and give it to be raised."""
        self._vm_error = self._vm_error or failure
        return failure

    def _vm_max_retries(self) -> int:
        """Say how often the build request may be started again."""
        return MAX_RETRIES

    async def __run(self) -> Any:
        try:
            # A step may give its result at once, or as a coroutine.
            run: Any = super().run  # type: ignore[misc]
            result = await defer.maybeDeferred(run)
        except VMError as failure:
            self._vm_failed(failure)
        except error.ConnectionLost:
            raise
        except Exception:
            if self._vm_error is None:
                raise
        else:
            if self._vm_error is None:
                return result
        return await self.__result()

    async def __run_command(self, command: RemoteCommand) -> Any:
        run: Any = super().runCommand  # type: ignore[misc]
        result = await defer.maybeDeferred(run, command)
        reason = command.remote_failure_reason
        # A command that a user stopped may report that its machine failed on the way out. He wanted it so.
        if is_vm_reason(reason) and not self.stopped and not command.interrupted:
            raise self._vm_failed(VMError(reason, one_sentence(latest(command, "vm_error"), reason)))
        return result

    async def __build_summary(self) -> dict[str, str]:
        summarize: Any = super().getBuildResultSummary  # type: ignore[misc]
        said: dict[str, str] = await defer.maybeDeferred(summarize)
        if self._vm_error is not None and said.get("build") in self.build.text:
            del said["build"]
        return said

    async def __result(self) -> int:
        failure = self._vm_error
        assert failure is not None
        result = self._vm_results.get(failure.reason, RESULTS.get(failure.reason, EXCEPTION))
        if result == RETRY:
            tries = await self.__earlier_retries() + 1
            if tries > self._vm_max_retries():
                failure.sentence += f"; given up after {tries} {'try' if tries == 1 else 'tries'}"
                return int(EXCEPTION)
        return int(result)

    async def __earlier_retries(self) -> int:
        most = 0
        for request in self.build.requests:
            builds = await self.master.data.get(("buildrequests", request.id, "builds"))
            most = max(most, sum(build["results"] == RETRY for build in builds))
        return most

    if TYPE_CHECKING:
        # What BuildStep brings along.
        build: Any
        master: Any
        results: int
        stopped: bool


def summary(step: Any, text: str) -> dict[str, str]:
    """Make a step's summary of a text, without the secrets of the build in it."""
    return {"step": step.build.properties.cleanupTextFromSecrets(text) if step.build else text}


def latest(command: RemoteCommand, key: str) -> Any:
    """Give the last value a worker sent under a key of its own, None without one."""
    values = command.updates.get(key)
    return values[-1] if values else None


def check_worker(step: Any) -> None:
    """Refuse a worker without machines, which would run the command on its host.

    Raises VMError, which says what to do about it.
    """
    if not step.workerVersion("vm_start"):
        sentence = (
            f"worker {step.getWorkerName()} has no virtual machines (it does not know the command vm_start): "
            "run kvm-worker on its host, or give this builder a worker that does"
        )
        raise VMError("vm_unknown", sentence)


def name_step(step: Any, command: RemoteCommand) -> None:
    """Tell the worker which step a command is of, for ``kvm-worker status`` on its host."""
    if step.workerVersion("vm_start"):
        command.args["step"] = str(step.name)


def log_console(step: Any, command: RemoteCommand, name: str) -> None:
    """Ask the worker for the console's output while a command runs, and give it a log of the step.

    The log appears with the first line. All commands of a step share it, and it is closed with the step.
    """
    command.args["console_log"] = name
    if name in command.logs or name in command.delayedLogs:
        return

    async def log(_: RemoteCommand) -> Any:
        return step.logs.get(name) or await step.addLog(name)

    command.useLogDelayed(name, log, False)
