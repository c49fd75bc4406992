"""The step that gets a build its machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from buildbot import config
from buildbot.interfaces import IRenderable
from buildbot.process.results import SUCCESS

from buildbot_kvm import guest
from buildbot_kvm.command import VMCommand, whole_number
from buildbot_kvm.judging import latest
from buildbot_kvm.step import DEFAULT_VM, check_name, check_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildbot.process.remotecommand import RemoteCommand

#: What is told about a started machine, each as a property of the build.
PROPERTIES = ("image", "generation", "how", "seconds", "slot", "ssh_port", "cpus", "memory", "basedir", "address")

#: Those that the worker has another name for.
WIRE_NAMES = {"memory": "memory_mib"}

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
        run this builder's later commands in the machine although they don't say so (default False). In a factory
        that ``in_vm`` made they do, and more;
    ``network``
        name of a private network that the machine is to have a card on, shared with this builder's other machines
        that name the same (default: none);
    ``ttl``
        seconds after which the worker ends the machine if the build has not (default: the worker's
        ``pool.time_to_live``, which is also the most).

    On success the build gets the properties ``vm_image``, ``vm_generation``, ``vm_how`` (``boot``, ``clone`` of a
    template, or ``warm`` for a clone that was ready), ``vm_seconds``, ``vm_slot``, ``vm_ssh_port``, ``vm_cpus``,
    ``vm_memory`` (MiB), ``vm_basedir``, which is what the worker's base directory is called in it, and, on a network,
    ``vm_address``, with the source ``StartVM``; those of a machine with a name of its own have that in the middle:
    ``vm_builder_slot`` for ``vm="builder"``.

    A machine that did not come up never makes the step FAILURE: see ``buildbot_kvm.RESULTS``.
    """

    name = "start-vm"
    vm_command = "vm_start"
    renderables: ClassVar[Sequence[str]] = [
        "image",
        "mode",
        "cpus",
        "memory",
        "timeout",
        "bind",
        "network",
        "ttl",
    ]

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
        network: Any = None,
        ttl: Any = None,
        **kwargs: Any,
    ) -> None:
        self.image = image
        self.mode = mode
        self.cpus = cpus
        self.memory = memory
        self.timeout = timeout
        self.bind = bind
        self.network = network
        self.ttl = ttl
        check_name(self, "image", image)
        if network is not None:
            check_name(self, "network", network)
        if not IRenderable.providedBy(mode) and mode not in MODES:
            config.error(f"StartVM: mode is {mode!r} and must be one of {', '.join(MODES)}")
        for argument in ("cpus", "memory", "timeout", "ttl"):
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
        if self.network is not None:
            arguments["network"] = self.network
        numbers = {"cpus": self.cpus, "memory_mib": self.memory, "timeout": self.timeout, "ttl": self.ttl}
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
        for key in PROPERTIES:
            told = WIRE_NAMES.get(key, key)
            if told in vm:
                self.setProperty(property_name(self.vm, key), vm[told], "StartVM")
        guest.enter(self.build, self.vm, guest.Guest.told(vm), bound=bool(self.bind))
        return f"{self.called()} ready{where(vm)}{how_long(vm)}", SUCCESS

    def called(self) -> str:
        """Name the machine in a sentence, by its image where it has no name of its own."""
        if self.vm == DEFAULT_VM:
            return f"VM {self.image}"
        return f"VM {self.vm} ({self.image})"


def property_name(vm: str, key: str) -> str:
    """Give the name of a build's property about one of its machines."""
    return f"vm_{key}" if vm == DEFAULT_VM else f"vm_{vm}_{key}"


def where(vm: dict[str, Any]) -> str:
    """Say which slot a machine has, if the worker told."""
    return f" in slot {vm['slot']}" if vm.get("slot") is not None else ""


def how_long(vm: dict[str, Any]) -> str:
    """Say how something was done to a machine and in what time, as far as the worker told."""
    seconds = vm.get("seconds")
    said = [str(vm["how"])] if vm.get("how") else []
    if isinstance(seconds, (int, float)):
        # What was ready before is there in milliseconds.
        said.append(f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms")
    return f" ({', '.join(said)})" if said else ""
