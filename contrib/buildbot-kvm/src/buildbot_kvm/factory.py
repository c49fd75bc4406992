"""Factories whose builds run in a fresh machine each, step by step unchanged."""

from __future__ import annotations

import copy
from typing import Any, cast

from buildbot import config
from buildbot.process.buildstep import get_factory_from_step_or_factory
from buildbot.process.factory import BuildFactory

from buildbot_kvm.guest import HOST
from buildbot_kvm.judging import MAX_RETRIES
from buildbot_kvm.mixing import mix_in
from buildbot_kvm.placing import PlacingBuildMixin, placed
from buildbot_kvm.start import StartVM
from buildbot_kvm.step import DEFAULT_VM
from buildbot_kvm.stop import StopVM

#: The longest name of a step (characters) that Buildbot's database takes.
LONGEST_NAME = 50


def in_vm(
    factory: Any,
    image: Any,
    *,
    vm: str = DEFAULT_VM,
    mode: Any = "fresh",
    cpus: Any = None,
    memory: Any = None,
    timeout: Any = None,
    network: Any = None,
    ttl: Any = None,
    console_log: Any = None,
    keep_on_failure: Any = None,
    save: Any = None,
    max_retries: Any = MAX_RETRIES,
) -> BuildFactory:
    """Have all steps of a factory run in a machine of their build.

    ``factory``
        a BuildFactory, of any class, or a list of steps. It stays as it is;
    ``image``, ``vm``, ``mode``, ``cpus``, ``memory``, ``timeout``, ``network``, ``ttl``
        the machine, as described at StartVM;
    ``keep_on_failure``, ``save``
        what becomes of it, as described at StopVM;
    ``console_log``
        name of a log, of each step, for what the guest's serial console prints while the step runs (default: none);
    ``max_retries``
        as described at VMMixin, for all steps.

    Gives a factory of the same class: a StartVM, the steps, each of its own class and with its own arguments, and a
    StopVM. What is added to it later runs in the machine, too, and so does a step that another one adds to its build.
    Steps that have a place already (``on_host``, ``step_in_vm``, this package's own) keep it.
    """
    if not isinstance(factory, BuildFactory):
        if not isinstance(factory, (list, tuple)):
            config.error(f"in_vm: {factory!r} is neither a factory nor a list of steps; for one step use step_in_vm")
            factory = []
        factory = BuildFactory(factory)
    if not isinstance(vm, str) or vm in {"", HOST}:
        config.error(f"in_vm: vm is {vm!r} and must be a name other than '{HOST}'")
    common = {"vm": vm, "console_log": console_log, "max_retries": max_retries}
    machine = {"mode": mode, "cpus": cpus, "memory": memory, "timeout": timeout, "network": network, "ttl": ttl}
    start = StartVM(image, bind=True, name=_name(StartVM, vm), **machine, **common)
    stop = StopVM(keep_on_failure=keep_on_failure, save=save, name=_name(StopVM, vm), **common)

    moved = mix_in(_VMFactoryMixin, copy.copy(factory))
    steps = [_placed(step, refused=vm, **common) for step in factory.steps]
    moved.steps = [get_factory_from_step_or_factory(start), *steps, get_factory_from_step_or_factory(stop)]
    # Of machines around machines the innermost is where the steps are.
    moved.vm_place = getattr(factory, "vm_place", common)
    moved.vm_stops = getattr(factory, "vm_stops", 0) + 1
    return cast("BuildFactory", moved)


def _name(step: Any, vm: str) -> str:
    """Tell the steps of several machines apart in the list of a build's steps."""
    return str(step.name) if vm == DEFAULT_VM else f"{step.name}-{vm}"[:LONGEST_NAME]


def _placed(factory: Any, refused: str, **place: Any) -> Any:
    """Have the steps that a factory makes run in in_vm's machine, unless they have a place already."""
    step = factory.buildStep()
    if isinstance(step, (StartVM, StopVM)) and step.vm == refused:
        config.error(
            f"in_vm: the factory has a {type(step).__name__} of its own for VM {refused!r}, which in_vm starts and "
            "stops: take it out, or give in_vm another name with vm="
        )
    return placed(factory, **place)


class _VMFactoryMixin:
    """The part of a factory that keeps what comes to it later between the machine's start and its end."""

    steps: list[Any]
    vm_place: dict[str, Any]
    vm_stops: int

    def addStep(self, step: Any) -> None:
        """Add a step before the machine's end."""
        end = len(self.steps) - self.vm_stops
        stops = self.steps[end:]
        del self.steps[end:]
        added: list[Any] = []
        try:
            super().addStep(step)  # type: ignore[misc]
            added = [_placed(new, refused=self.vm_place["vm"], **self.vm_place) for new in self.steps[end:]]
        finally:
            self.steps[end:] = [*added, *stops]

    def newBuild(self, *args: Any, **kwargs: Any) -> Any:
        """Make a build whose steps add their steps to the machine, too.

        A class of factories may give each build steps of its own.
        """
        build = mix_in(PlacingBuildMixin, super().newBuild(*args, **kwargs))  # type: ignore[misc]
        if build.stepFactories != self.steps:
            starts, stops = self.steps[: self.vm_stops], self.steps[-self.vm_stops :]
            own = [step for step in build.stepFactories if step not in starts and step not in stops]
            build.setStepFactories([*starts, *(placed(step, **self.vm_place) for step in own), *stops])
        return build
