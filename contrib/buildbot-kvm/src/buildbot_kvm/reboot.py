"""The step that restarts a machine's system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from buildbot.process.results import SUCCESS

from buildbot_kvm import guest
from buildbot_kvm.command import VMCommand, whole_number
from buildbot_kvm.judging import latest
from buildbot_kvm.step import DEFAULT_VM, check_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildbot.process.remotecommand import RemoteCommand


class RebootVM(VMCommand):
    """Restart a machine's system and wait until commands can run in it again.

    It keeps its disk, its slot and its name; what ran in it is gone. For a build that installs a kernel, or asks
    whether a service comes up by itself.

    ``vm``
        the machine's name (default ``"default"``);
    ``timeout``
        seconds until it must answer again (default: the image's time for booting);
    ``console_log``
        name of a log for what the guest's serial console prints meanwhile (default: none).
    """

    name = "reboot-vm"
    vm_command = "vm_reboot"
    renderables: ClassVar[Sequence[str]] = ["timeout"]

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

    def arguments(self) -> dict[str, Any]:
        """Give the arguments of ``vm_reboot``."""
        return {} if self.timeout is None else {"timeout": whole_number("timeout", self.timeout)}

    def doing(self) -> str:
        """Say what is going on, for the web page."""
        return f"rebooting {self.called()}"

    def done(self, command: RemoteCommand) -> tuple[str, int]:
        """Say how long it took."""
        vm = latest(command, "vm") or {}
        if vm:
            guest.update(self.build, self.vm, guest.Guest.told(vm))
        seconds = vm.get("reboot_seconds")
        time = f" ({seconds:.1f} s)" if isinstance(seconds, (int, float)) else ""
        return f"{self.called()} rebooted{time}", SUCCESS
