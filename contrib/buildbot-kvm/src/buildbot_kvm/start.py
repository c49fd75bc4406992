"""The step that gets a build its machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from buildbot import config
from buildbot.interfaces import IRenderable
from buildbot.process.results import SUCCESS

from buildbot_kvm.command import VMCommand, whole_number
from buildbot_kvm.step import DEFAULT_VM, check_name, check_number, latest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildbot.process.remotecommand import RemoteCommand

#: What is told about a started machine, each as a property of the build.
PROPERTIES = ("image", "generation", "how", "seconds", "slot", "ssh_port")

MODES = ("fresh", "persistent")


class StartVM(VMCommand):
    """Start a machine for this build and wait until commands can run in it.

    ``image``
        name of the image in the worker's configuration;
    ``vm``
        what this builder calls the machine (default ``"default"``). Other steps name it in their ``vm``;
    ``mode``
        ``"fresh"`` (default): a machine that no other build has touched and whose disk is thrown away;
        ``"persistent"``: one that keeps its disk between this builder's builds;
    ``cpus``, ``memory``
        number of virtual processors, and memory in MiB (default: the image's);
    ``timeout``
        seconds from the start of the machine to its first answer over ssh (default: the image's);
    ``console_log``
        name of a log for the guest's serial console (default: none);
    ``bind``
        run this builder's later commands in the machine although they don't say so, for steps that have
        no ``vm`` argument (default False).

    On success the build gets the properties ``vm_image``, ``vm_generation``, ``vm_how`` (``boot``, ...),
    ``vm_seconds``, ``vm_slot`` and ``vm_ssh_port``, with the source ``StartVM``; those of a machine with a name
    of its own have that in the middle: ``vm_builder_slot`` for ``vm="builder"``.

    A machine that did not come up never makes the step FAILURE: see ``buildbot_kvm.RESULTS``.
    """

    name = "start-vm"
    vm_command = "vm_start"
    renderables: ClassVar[Sequence[str]] = ["image", "mode", "cpus", "memory", "timeout", "bind"]

    def __init__(
        self,
        image: Any,
        *,
        vm: Any = DEFAULT_VM,
        mode: Any = "fresh",
        cpus: Any = None,
        memory: Any = None,
        timeout: Any = None,
        console_log: Any = None,
        bind: Any = False,
        **kwargs: Any,
    ) -> None:
        self.image = image
        self.mode = mode
        self.cpus = cpus
        self.memory = memory
        self.timeout = timeout
        self.bind = bind
        check_name(self, "image", image)
        if not IRenderable.providedBy(mode) and mode not in MODES:
            config.error(f"StartVM: mode is {mode!r} and must be one of {', '.join(MODES)}")
        for argument in ("cpus", "memory", "timeout"):
            if getattr(self, argument) is not None:
                check_number(self, argument, getattr(self, argument))
        super().__init__(vm=vm, console_log=console_log, **kwargs)

    def arguments(self) -> dict[str, Any]:
        """Give the arguments of ``vm_start``. Those left to the image aren't sent."""
        arguments = {
            "image": self.image,
            "mode": self.mode,
            "bind": bool(self.bind),
            "build": self.build.buildid,
        }
        numbers = {"cpus": self.cpus, "memory_mib": self.memory, "timeout": self.timeout}
        for name, value in numbers.items():
            if value is not None:
                arguments[name] = whole_number(name, value)
        return arguments

    def doing(self) -> str:
        """Say what is going on, for the web page."""
        return f"starting {self.called()}"

    def done(self, command: RemoteCommand) -> tuple[str, int]:
        """Set the properties of the machine that is ready."""
        vm = latest(command, "vm") or {}
        prefix = "vm" if self.vm == DEFAULT_VM else f"vm_{self.vm}"
        for key in PROPERTIES:
            if key in vm:
                self.setProperty(f"{prefix}_{key}", vm[key], "StartVM")
        return f"{self.called()} ready{where(vm)}{how_long(vm)}", SUCCESS

    def called(self) -> str:
        """Name the machine in a sentence, by its image where it has no name of its own."""
        if self.vm == DEFAULT_VM:
            return f"VM {self.image}"
        return f"VM {self.vm} ({self.image})"


def where(vm: dict[str, Any]) -> str:
    """Say which slot a machine has, if the worker told."""
    return f" in slot {vm['slot']}" if vm.get("slot") is not None else ""


def how_long(vm: dict[str, Any]) -> str:
    """Say how something was done to a machine and in what time, as far as the worker told."""
    seconds = vm.get("seconds")
    said = [str(vm["how"])] if vm.get("how") else []
    if isinstance(seconds, (int, float)):
        said.append(f"{seconds:.1f} s")
    return f" ({', '.join(said)})" if said else ""
