"""The step that gives a machine back."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from buildbot.process.results import EXCEPTION, FAILURE, SKIPPED, SUCCESS, WARNINGS
from twisted.internet import defer
from twisted.python.failure import Failure

from buildbot_kvm import guest
from buildbot_kvm.command import VMCommand, whole_number
from buildbot_kvm.judging import latest
from buildbot_kvm.start import how_long, property_name
from buildbot_kvm.step import DEFAULT_VM, check_name, check_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildbot.process.remotecommand import RemoteCommand

#: How long (seconds) ``keep_on_failure=True`` keeps a machine.
KEEP = 3600


class StopVM(VMCommand):
    """Shut a machine down and give its slot back.

    ``vm``
        the machine's name (default ``"default"``);
    ``timeout``
        seconds the guest has to shut down by itself before it is made to (default: the worker's);
    ``console_log``
        name of a log for what the guest's serial console prints meanwhile (default: none);
    ``keep_on_failure``
        where the build has failed, by its code or by an exception, keep the machine running for so many seconds, or
        one hour if True, for a person to look into. The builder is rid of it. The step says how to get in;
    ``save``
        name of an image: where the build has succeeded so far, shut the machine down cleanly and publish its disk as
        the image's next generation, which the property ``vm_saved_generation`` then names. A failed build
        publishes nothing.

    The step runs always (``alwaysRun``), after a failure and after a user stopped the build too. Where there is no
    machine to stop, as after a StartVM that failed, it is SKIPPED. One that could not be stopped cleanly, or
    had died before, makes the step WARNINGS and not worse: what the build found out stays as it is, and the
    worker deals with the machine. One that could not be saved is what ``buildbot_kvm.RESULTS`` says.
    """

    name = "stop-vm"
    vm_command = "vm_stop"
    renderables: ClassVar[Sequence[str]] = ["timeout", "keep_on_failure", "save"]
    alwaysRun = True
    haltOnFailure = False
    _saving = False
    _keeping = False

    def __init__(
        self,
        vm: Any = DEFAULT_VM,
        timeout: Any = None,
        console_log: Any = None,
        *,
        keep_on_failure: Any = None,
        save: Any = None,
        **kwargs: Any,
    ) -> None:
        self.timeout = timeout
        self.keep_on_failure = keep_on_failure
        self.save = save
        if timeout is not None:
            check_number(self, "timeout", timeout)
        if keep_on_failure is not None and not isinstance(keep_on_failure, bool):
            check_number(self, "keep_on_failure", keep_on_failure)
        if save is not None:
            check_name(self, "save", save)
        super().__init__(vm=vm, console_log=console_log, **kwargs)

    def run(self) -> defer.Deferred[int]:
        """Stop the machine, unless the worker is one that never had any."""
        if not self.workerVersion("vm_stop"):
            self._done = f"no {self.called()} to stop"
            return defer.succeed(SKIPPED)
        self._decide()
        return super().run()

    def interrupt(self, reason: str | Failure) -> Any:
        """Interrupt the command, if it runs already, and a wait for locks.

        A user who stops the build in the moment before the worker is told wants the machine stopped all the more:
        a step that ended here would leave it running.
        """
        if self.cmd is not None or self.locks or isinstance(reason, Failure):
            return super().interrupt(reason)
        self._decide()
        return defer.succeed(None)

    def _decide(self) -> None:
        """Find out from the build so far what is to become of the machine."""
        results = self.build.results
        self._saving = bool(self.save) and not self.build.stopped and results in {None, SUCCESS, WARNINGS}
        self._keeping = bool(self.keep_on_failure) and not self.build.stopped and results in {FAILURE, EXCEPTION}
        if not self._saving:
            # What the build found out does not depend on this machine any more.
            self._vm_results = {"vm_stop_failed": WARNINGS, "vm_lost": WARNINGS}

    def arguments(self) -> dict[str, Any]:
        """Give the arguments of ``vm_stop``."""
        arguments: dict[str, Any] = {"missing_ok": True}
        if self.timeout is not None:
            arguments["timeout"] = whole_number("timeout", self.timeout)
        if self._saving:
            arguments["missing_ok"] = False
            arguments["save"] = self.save
        elif self._keeping:
            keep = KEEP if self.keep_on_failure is True else self.keep_on_failure
            arguments["keep"] = whole_number("keep_on_failure", keep)
        return arguments

    def doing(self) -> str:
        """Say what is going on, for the web page."""
        return f"{'saving' if self._saving else 'stopping'} {self.called()}"

    def done(self, command: RemoteCommand) -> tuple[str, int]:
        """Tell a machine that was stopped from one that is kept, that was saved, or that was not there."""
        vm = latest(command, "vm") or {}
        guest.leave(self.build, self.vm)
        if vm.get("slot") is None:
            return f"no {self.called()} to stop", SKIPPED
        if vm.get("how") == "kept":
            self.news = True
            return self._kept(vm), SUCCESS
        if self._saving:
            self.setProperty(property_name(self.vm, "saved_generation"), vm.get("generation"), "StopVM")
            return f"{self.called()} saved as generation {vm.get('generation')} of {self.save}{how_long(vm)}", SUCCESS
        unsaved = ", not saved as the build did not succeed" if self.save else ""
        return f"{self.called()} stopped{how_long(vm)}{unsaved}", SUCCESS

    def _kept(self, vm: dict[str, Any]) -> str:
        until = datetime.fromtimestamp(self.master.reactor.seconds() + vm.get("seconds_kept", 0), timezone.utc)
        way_in = f"; on the host of {self.getWorkerName()}: {vm['login']}" if vm.get("login") else ""
        return f"{self.called()} kept until {until:%H:%M} UTC{way_in}"
