"""A step that is one VM command, as all but the shell steps are."""

from __future__ import annotations

from typing import Any, ClassVar

from buildbot.process.buildstep import BuildStep
from buildbot.process.remotecommand import RemoteCommand
from buildbot.process.results import statusToString
from twisted.internet import defer

from buildbot_kvm.failures import VMError, one_sentence
from buildbot_kvm.guest import HOST
from buildbot_kvm.judging import latest, summary
from buildbot_kvm.step import DEFAULT_VM, VMMixin


class _Command(BuildStep):
    """Sends the command and hands its answer on, knowing nothing of machines' failures."""

    def run(self) -> defer.Deferred[int]:
        return defer.ensureDeferred(self._send())

    async def _send(self) -> int:
        log = await self.addLog("stdio")
        # From here to the sending nothing is waited for: what the arguments say of the build still holds.
        command = RemoteCommand(self.vm_command, self.arguments())
        command.useLog(log)
        self.sent = True
        await self.runCommand(command)
        if command.rc != 0:
            # No worker of ours does that; better wrong by a word than green.
            reason = f"{self.vm_command} ended with {command.rc}"
            raise VMError(reason, one_sentence(latest(command, "vm_error"), reason))
        self._done, result = self.done(command)
        # The worker's own words are in the log.
        if self.news:
            await log.addHeader(f"{self._done}\n")
        return int(result)


class VMCommand(VMMixin, _Command):
    """A step that runs one VM command, and whose result is that command's.

    All arguments of a BuildStep are taken too, those of VMMixin as described there.
    """

    #: The name of the command on the wire.
    vm_command: ClassVar[str]

    haltOnFailure = True
    flunkOnFailure = True
    #: Whether what was done is news to who reads the log.
    news = False
    #: Whether the worker was told, or is going to be at once.
    sent = False
    _done: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Give the command's own arguments; ``vm`` and ``console_log`` are added to them when it is sent."""
        raise NotImplementedError

    def _vm_inside(self) -> str:
        """See the host: the step is about a machine, and not in one."""
        return HOST

    def doing(self) -> str:
        """Say what is going on, for the web page."""
        raise NotImplementedError

    def done(self, command: RemoteCommand) -> tuple[str, int]:
        """Take in the answer of a command that succeeded: a text for the web page and the step's result."""
        raise NotImplementedError

    def called(self) -> str:
        """Name the machine in a sentence."""
        return "VM" if self.vm == DEFAULT_VM else f"VM {self.vm}"

    def getCurrentSummary(self) -> Any:
        """Say what is going on, in the words of the configuration if it has some."""
        if self.description is not None:
            return super().getCurrentSummary()
        return summary(self, self.doing())

    def getResultSummary(self) -> Any:
        """Say what was done, in the words of the configuration if it has some."""
        if self._vm_error or self.descriptionDone or self.description:
            return super().getResultSummary()
        if self._done is None:
            return summary(self, f"{self.doing()} ({statusToString(self.results)})")
        return summary(self, self._done)


def whole_number(argument: str, value: Any) -> int:
    """Take a number that a property may have brought along as text.

    Raises VMError where it is none: that is known only after rendering, when the build runs already.
    """
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        sentence = f"{argument} is {value!r} and must be a whole number above 0"
        raise VMError("vm_bad_arguments", sentence)
    return number
