"""Steps of any class, run where they have not heard of: in a machine, or on the host beside one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from buildbot import config
from buildbot.interfaces import IBuildStepFactory
from buildbot.process.buildstep import get_factory_from_step_or_factory
from buildbot.util import ComparableMixin
from twisted.internet import defer
from zope.interface import implementer

from buildbot_kvm.guest import HOST
from buildbot_kvm.judging import MAX_RETRIES, JudgingMixin, check_worker, log_console, name_step
from buildbot_kvm.mixing import mix_in
from buildbot_kvm.step import DEFAULT_VM, VMMixin, check_name, check_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildbot.process.remotecommand import RemoteCommand


def on_host(step: Any) -> PlacedStep:
    """Have a step run on the worker's host, in a factory whose other steps run in a machine.

    Takes a step of any class but this package's own, and gives what ``addStep`` takes.
    """
    return _place("on_host", step, HOST)


def step_in_vm(
    step: Any,
    vm: Any = DEFAULT_VM,
    *,
    console_log: Any = None,
    max_retries: Any = MAX_RETRIES,
) -> PlacedStep:
    """Have a step run in a machine that a StartVM step has started.

    Takes a step of any class but this package's own, and gives what ``addStep`` takes. The arguments are those of
    ``VMMixin``. For a factory whose steps all run in one machine ``in_vm`` is shorter.
    """
    check_name("step_in_vm", "vm", vm)
    if console_log is not None:
        check_name("step_in_vm", "console_log", console_log)
    check_number("step_in_vm", "max_retries", max_retries, least=0)
    return _place("step_in_vm", step, vm, console_log, max_retries)


def _place(who: str, step: Any, *where: Any) -> PlacedStep:
    factory = get_factory_from_step_or_factory(step)
    if isinstance(factory, PlacedStep):
        # What is said last, outside, holds.
        return PlacedStep(factory.inner, *where)
    if isinstance(factory.buildStep(), VMMixin):
        config.error(f"{who}: {step} has an argument vm of its own; set that instead")
    return PlacedStep(factory, *where)


@implementer(IBuildStepFactory)
class PlacedStep(ComparableMixin):
    """Makes the steps that another factory makes, and has them run in a place.

    ``inner``
        the factory that makes them;
    ``vm``
        the name of a machine, or ``HOST``;
    ``console_log``, ``max_retries``
        as those of VMMixin.
    """

    compare_attrs: ClassVar[Sequence[str]] = ("inner", "vm", "console_log", "max_retries")

    def __init__(self, inner: Any, vm: Any, console_log: Any = None, max_retries: Any = MAX_RETRIES) -> None:
        self.inner = inner
        self.vm = vm
        self.console_log = console_log
        self.max_retries = max_retries

    def buildStep(self) -> Any:
        """Make a step: the other factory's, of its class with PlacedMixin before it."""
        step = mix_in(PlacedMixin, self.inner.buildStep())
        step._vm_place = self
        step._vm_place_name = self.vm
        step._vm_place_console_log = self.console_log
        step._vm_place_max_retries = self.max_retries
        return step

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.inner} in {self.vm!r}>"


class PlacedMixin(JudgingMixin):
    """The part of a step that names the place to each of its commands, for steps of any class.

    Like its base, it takes no name that another class might have.
    """

    renderables: ClassVar[Sequence[str]] = ["_vm_place_name", "_vm_place_console_log", "_vm_place_max_retries"]

    _vm_place: PlacedStep
    _vm_place_name: Any
    _vm_place_console_log: Any
    _vm_place_max_retries: Any

    def _vm_place_now(self) -> dict[str, Any]:
        """Give the place as it is in this build, with all that is rendered."""
        return {
            "vm": self._vm_place_name,
            "console_log": self._vm_place_console_log,
            "max_retries": self._vm_place_max_retries,
        }

    def _vm_inside(self) -> Any:
        """Name the machine whose guest the step sees, before anything is rendered."""
        return self._vm_place_name

    def get_step_factory(self) -> PlacedStep:
        """Give what makes another step like this one, in the same place."""
        return self._vm_place

    def runCommand(self, command: RemoteCommand) -> defer.Deferred[Any]:
        """Run one command in the place; raise VMError where there is none, or it failed."""
        return defer.ensureDeferred(self.__run_command(command))

    async def __run_command(self, command: RemoteCommand) -> Any:
        self.__place(command)
        return await super().runCommand(command)

    def __place(self, command: RemoteCommand) -> None:
        name_step(self, command)
        # A command about machines says itself which one it is about.
        if str(command.remote_command).startswith("vm_"):
            return
        if self._vm_place_name == HOST:
            # Buildbot's own worker runs everything there.
            if self.workerVersion("vm_start"):
                command.args["vm"] = HOST
            return
        check_worker(self)
        command.args["vm"] = self._vm_place_name
        if self._vm_place_console_log is not None:
            log_console(self, command, self._vm_place_console_log)

    def _vm_max_retries(self) -> int:
        return int(self._vm_place_max_retries)

    if TYPE_CHECKING:
        workerVersion: Any
