"""What a worker tells about its machines, and how many builds that is enough for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from buildbot.process.results import SUCCESS

from buildbot_kvm.start import StartVM
from buildbot_kvm.stop import StopVM

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The ``vm_state`` of a worker that takes builds, and of one that ends after those that it has.
RUNNING = "running"
DRAINING = "draining"


@dataclass(frozen=True)
class Pool:
    """The machines of a worker at one moment, and what was going to be done with them."""

    #: Machines it may have at a time, and those of them that nobody has. Without any its builds use none.
    slots: int
    free: int
    #: ``running``, ``draining`` or ``paused``.
    state: str
    #: How many of the free machines each build that ran was still going to take.
    expected: Mapping[Any, int]
    #: The images it has; None if it does not say, as older ones.
    images: frozenset[str] | None = None
    #: Those with a template, of which a machine is cloned, and how many machines of each are ready.
    templates: frozenset[str] = frozenset()
    warm: Mapping[str, int] = field(default_factory=dict)

    def room(self, builds: Iterable[Any], per_build: int, *, machines: bool) -> bool:
        """Tell whether a build may start, with machines or without, beside those that run now.

        Those that have come since may have their machines or not: the free ones were counted before.
        """
        if self.state != RUNNING:
            return False
        if not machines or self.slots == 0:
            return True
        promised = sum(
            self.expected[build] if build in self.expected else per_build * uses_machines(build) for build in builds
        )
        return self.free - promised >= per_build

    def has(self, image: str) -> bool:
        """Tell whether it has an image, as far as it says."""
        return self.images is None or image in self.images


def told(info: Mapping[str, Any], expected: Mapping[Any, int]) -> Pool | None:
    """Read the worker's information; None if the worker is not a kvm-worker but Buildbot's own."""
    slots, free = info.get("vm_slots"), info.get("vm_free")
    if not isinstance(slots, int) or not isinstance(free, int):
        return None
    images = info.get("vm_images")
    warm = info.get("vm_warm_images")
    return Pool(
        slots=slots,
        free=free,
        state=str(info.get("vm_state", RUNNING)),
        expected=expected,
        images=None if images is None else frozenset(images),
        templates=frozenset(info.get("vm_templates") or ()),
        warm={} if warm is None else dict(warm),
    )


def expected(build: Any, per_build: int) -> int:
    """Tell how many machines a build is still going to start, beside those it has."""
    return max(0, per_build - machines_of(build)) if will_start_a_machine(build) else 0


def machines_of(build: Any) -> int:
    """Count the machines that a build has, or is getting: those it has started and not stopped."""
    names: set[Any] = set()
    for step in build.executedSteps:
        # A step without results is running.
        if isinstance(step, StartVM) and step.sent and step.results in {None, SUCCESS}:
            names.add(step.vm)
        elif isinstance(step, StopVM) and step.results is not None:
            names.discard(step.vm)
    return len(names)


def will_start_a_machine(build: Any) -> bool:
    """Tell whether a build has a StartVM before it, as one may whose steps aren't known yet.

    One that renders its arguments or waits for a lock is before it, too.
    """
    steps = getattr(build, "steps", None)
    if steps is None:
        return True
    running = [step for step in build.executedSteps if step.results is None]
    return any(isinstance(step, StartVM) and not step.sent for step in [*running, *steps])


def uses_machines(build: Any) -> bool:
    """Tell whether a build starts machines at all."""
    return will_start_a_machine(build) or any(isinstance(step, StartVM) for step in build.executedSteps)


def machines_of_factory(factory: Any) -> list[StartVM]:
    """Give the steps that start machines in the builds of a factory, as far as it is known before one begins."""
    return [step for step in (each.buildStep() for each in factory.steps) if isinstance(step, StartVM)]
