"""What all steps of this package share: the machine's name, and the log of its console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from buildbot import config
from buildbot.interfaces import IRenderable
from buildbot.process.buildstep import BuildStepCancelled
from twisted.internet import defer

from buildbot_kvm.failures import VMError
from buildbot_kvm.guest import HOST
from buildbot_kvm.judging import MAX_RETRIES, JudgingMixin, check_worker, log_console, name_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildbot.process.remotecommand import RemoteCommand

#: The machine's name where a step is given none. A builder may use several machines at once, by name.
DEFAULT_VM = "default"


class VMMixin(JudgingMixin):
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

    def __init__(
        self,
        vm: Any = DEFAULT_VM,
        console_log: Any = None,
        max_retries: Any = MAX_RETRIES,
        **kwargs: Any,
    ) -> None:
        self.vm = vm
        self.console_log = console_log
        self.max_retries = max_retries
        check_machine(self, vm)
        if console_log is not None:
            check_name(self, "console_log", console_log)
        # Comparing a renderable gives another renderable, which is true.
        if isinstance(console_log, str) and console_log in {"stdio", *(kwargs.get("logfiles") or {})}:
            config.error(
                f"{type(self).__name__}: console_log {console_log!r} is the name of another log of this step"
            )
        check_number(self, "max_retries", max_retries, least=0)
        super().__init__(**kwargs)

    def runCommand(self, command: RemoteCommand) -> defer.Deferred[Any]:
        """Run one command; raise VMError where the machine failed and BuildStepCancelled where a user did stop it."""
        return defer.ensureDeferred(self._run_command(command))

    async def _run_command(self, command: RemoteCommand) -> Any:
        check_worker(self)
        name_step(self, command)
        command.args["vm"] = machine_name(self, self.vm)
        if self.console_log is not None:
            log_console(self, command, self.console_log)
        result = await super().runCommand(command)
        if self.stopped or command.interrupted:
            # Half an answer is none: no property is to be made of it.
            raise BuildStepCancelled
        return result

    def _vm_inside(self) -> Any:
        """Name the machine whose guest the step sees, before anything is rendered."""
        return self.vm

    def _vm_max_retries(self) -> int:
        return int(self.max_retries)


def check_name(step: object, argument: str, value: Any) -> None:
    """Refuse at configuration time what can't be the name of a machine or log."""
    if IRenderable.providedBy(value):
        return
    if not isinstance(value, str) or not value:
        config.error(f"{called(step)}: {argument} is {value!r} and must be a name")


def check_machine(step: object, vm: Any) -> None:
    """Refuse at configuration time what can't be the name of a machine."""
    check_name(step, "vm", vm)
    # Comparing a renderable gives another renderable, which is true.
    if isinstance(vm, str) and vm == HOST:
        config.error(
            f"{called(step)}: vm is '{HOST}', which no machine is called; for a step on the host use on_host"
        )


def machine_name(step: Any, vm: Any) -> str:
    """Take the name of a machine as it was rendered.

    Raises VMError where it is none: no property has a step run on the host.
    """
    if isinstance(vm, str) and vm and vm != HOST:
        return vm
    sentence = f"vm is {vm!r} in this build, and must be the name of a machine"
    raise step._vm_failed(VMError("vm_bad_arguments", sentence))


def check_number(step: object, argument: str, value: Any, least: int = 1) -> None:
    """Refuse at configuration time what is no number, or too small a one."""
    if IRenderable.providedBy(value):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
        config.error(f"{called(step)}: {argument} is {value!r} and must be a number, {least} or more")


def called(step: object) -> str:
    """Give the name of the thing whose argument is wrong: a step's class, or what the text says."""
    return step if isinstance(step, str) else type(step).__name__
