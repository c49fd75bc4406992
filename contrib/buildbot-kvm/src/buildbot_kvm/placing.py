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
from buildbot_kvm.step import DEFAULT_VM, VMMixin, check_machine, check_name, check_number, machine_name
from buildbot_kvm.stop import StopVM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildbot.process.remotecommand import RemoteCommand


def on_host(step: Any) -> PlacedStep:
    """Have a step run on the worker's host, in a factory whose other steps run in a machine.

    Takes a step of any class but this package's own, and gives what ``addStep`` takes.
    """
    return _place("on_host", step, None)


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
    check_machine("step_in_vm", vm)
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
        the name of a machine, renderable, or None for the host;
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
        return f"<{type(self).__name__} of {self.inner} {'on the host' if self.vm is None else f'in {self.vm!r}'}>"


class AddingMixin:
    """The part of a step that has the steps that it adds to its build run where it runs."""

    def _vm_place_now(self) -> dict[str, Any]:
        """Give the place of the step as it is in this build, as arguments of PlacedStep."""
        raise NotImplementedError

    def setBuild(self, build: Any) -> None:
        """Belong to a build."""
        super().setBuild(build)  # type: ignore[misc]
        mix_in(PlacingBuildMixin, build)


class PlacedMixin(AddingMixin, JudgingMixin):
    """The part of a step that names the place to each of its commands, for steps of any class.

    Like its base, it takes no name that another class might have.
    """

    renderables: ClassVar[Sequence[str]] = ["_vm_place_name", "_vm_place_console_log", "_vm_place_max_retries"]

    _vm_place: PlacedStep
    _vm_place_name: Any
    _vm_place_console_log: Any
    _vm_place_max_retries: Any

    def _vm_place_now(self) -> dict[str, Any]:
        """Give the place with all that is rendered."""
        return {
            "vm": None if self._vm_place.vm is None else self._vm_place_name,
            "console_log": self._vm_place_console_log,
            "max_retries": self._vm_place_max_retries,
        }

    def _vm_inside(self) -> Any:
        """Name the machine whose guest the step sees, before anything is rendered."""
        return HOST if self._vm_place.vm is None else self._vm_place_name

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
        if self._vm_place.vm is None:
            # Buildbot's own worker runs everything there.
            if self.workerVersion("vm_start"):
                command.args["vm"] = HOST
            return
        check_worker(self)
        command.args["vm"] = machine_name(self, self._vm_place_name)
        if self._vm_place_console_log is not None:
            log_console(self, command, self._vm_place_console_log)

    def _vm_max_retries(self) -> int:
        return int(self._vm_place_max_retries)

    if TYPE_CHECKING:
        workerVersion: Any


def placed(factory: Any, **place: Any) -> Any:
    """Have the steps that a factory makes run in a place, unless they have one already."""
    if isinstance(factory, PlacedStep) or isinstance(factory.buildStep(), VMMixin):
        return factory
    return PlacedStep(factory, **place)


class PlacingBuildMixin:
    """The part of a build that gives the steps that a step adds to it the place of that one."""

    steps: list[Any]
    currentStep: Any

    def setupBuildSteps(self, step_factories: Any) -> Any:
        """Make steps, of those that a running step adds in its place."""
        if isinstance(self.currentStep, AddingMixin):
            place = self.currentStep._vm_place_now()
            step_factories = [placed(get_factory_from_step_or_factory(step), **place) for step in step_factories]
        return super().setupBuildSteps(step_factories)  # type: ignore[misc]

    def addStepsAfterLastStep(self, step_factories: Any) -> None:
        """Add steps to the end, which is before that of the machines if they may be in one."""
        if not isinstance(self.currentStep, AddingMixin):
            super().addStepsAfterLastStep(step_factories)  # type: ignore[misc]
            return
        end = len(self.steps)
        while end and isinstance(self.steps[end - 1], StopVM):
            end -= 1
        stops = self.steps[end:]
        del self.steps[end:]
        super().addStepsAfterLastStep(step_factories)  # type: ignore[misc]
        self.steps.extend(stops)
