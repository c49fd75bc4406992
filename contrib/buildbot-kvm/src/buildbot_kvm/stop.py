"""The step that gives a machine back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from buildbot.process.results import SKIPPED, SUCCESS, WARNINGS
from twisted.internet import defer

from buildbot_kvm.command import VMCommand, whole_number
from buildbot_kvm.start import how_long
from buildbot_kvm.step import DEFAULT_VM, check_number, latest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildbot.process.remotecommand import RemoteCommand


class StopVM(VMCommand):
    """Shut a machine down and give its slot back.

    ``vm``
        the machine's name (default ``"default"``);
    ``timeout``
        seconds the guest has to shut down by itself before it is made to (default: the worker's);
    ``console_log``
        name of a log for what the guest's serial console prints meanwhile (default: none).

    The step runs always (``alwaysRun``), after a failure and after a user stopped the build too. Where there is no
    machine to stop, as after a StartVM that failed, it is SKIPPED. One that could not be stopped cleanly, or
    had died before, makes the step WARNINGS and not worse: what the build found out stays as it is, and the
    worker deals with the machine.
    """

    name = "stop-vm"
    vm_command = "vm_stop"
    renderables: ClassVar[Sequence[str]] = ["timeout"]
    alwaysRun = True
    haltOnFailure = False
    needs_vms = False
    own_results: ClassVar[dict[str, int]] = {"vm_stop_failed": WARNINGS, "vm_lost": WARNINGS}

    def __init__(
        self,
        vm: Any = DEFAULT_VM,
        timeout: Any = None,
        console_log: Any = None,
        **kwargs: Any,
    ) -> None:
        self.timeout = timeout
        if timeout is not None:
            check_number(self, "timeout", timeout)
        super().__init__(vm=vm, console_log=console_log, **kwargs)

    def run(self) -> defer.Deferred[int]:
        """Stop the machine, unless the worker is one that never had any."""
        if not self.workerVersion("vm_stop"):
            self._done = f"no {self.called()} to stop"
            return defer.succeed(SKIPPED)
        return super().run()

    def arguments(self) -> dict[str, Any]:
        """Give the arguments of ``vm_stop``."""
        arguments: dict[str, Any] = {"missing_ok": True}
        if self.timeout is not None:
            arguments["timeout"] = whole_number("timeout", self.timeout)
        return arguments

    def doing(self) -> str:
        """Say what is going on, for the web page."""
        return f"stopping {self.called()}"

    def done(self, command: RemoteCommand) -> tuple[str, int]:
        """Tell a machine that was stopped from one that was not there."""
        vm = latest(command, "vm") or {}
        if vm.get("slot") is None:
            return f"no {self.called()} to stop", SKIPPED
        return f"{self.called()} stopped{how_long(vm)}", SUCCESS
