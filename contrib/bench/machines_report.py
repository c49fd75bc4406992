"""The tables about machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from guests import BY_HAND, CLONE_PARTS, COUNTED, COUNTS, WAYS, Entrant, Guest
from measurements import Measurements
from report import NOT_APPLICABLE, mebibytes, milliseconds, seconds, table

#: The lines of the page that these tables go between.
MARKS = (
    "<!-- machines: contrib/bench/run --machines --write puts what it measured between these two lines -->",
    "<!-- machines: end -->",
)

WAY_TITLES = {BY_HAND: "by hand", "boot": "boot", "clone": "clone", "warm": "warm"}

#: The two clocks.
CLOCKS = {"worker": "worker", "master": "through the master"}

PART_TITLES = {"qemu": "QEMU's start to running guest", "login": "ssh's answer", "refresh": "looking new"}

STATISTICS = {"median": Measurements.median, "95th percentile": Measurements.percentile95}


@dataclass(frozen=True)
class Goal:
    """What is to be reached."""

    title: str
    target: str
    #: What was, if it was measured, and as it is shown.
    value: float | None
    shown: str
    reached: bool


def goals(measured: Measurements, guest: Guest) -> list[Goal]:
    """Give what was to be reached for one guest."""

    def median(way: str, measure: str) -> float | None:
        return measured.median(Entrant(guest, way), measure)

    def at_least(title: str, least: float, faster: str, slower: str, clock: str) -> Goal:
        value = ratio(median(slower, clock), median(faster, clock))
        return Goal(title, f"≥ {least:.0f}", value, f"{value or 0:.1f}", (value or 0) >= least)

    def within(title: str, most: float, value: float | None) -> Goal:
        return Goal(title, f"≤ {most * 1000:.0f} ms", value, milliseconds(value or 0), (value or most + 1) <= most)

    memory = ratio(median("clone", f"memory {max(COUNTS)}"), median("boot", f"memory {max(COUNTS)}"))
    return [
        at_least("boot : clone", 5, "clone", "boot", "worker"),
        at_least("boot : clone, through the master", 5, "clone", "boot", "master"),
        at_least("by hand : clone", 15, "clone", BY_HAND, "worker"),
        at_least("by hand : clone, through the master", 15, "clone", BY_HAND, "master"),
        within("warm", 0.25, median("warm", "worker")),
        within("clone: QEMU's part", 0.2, median("clone", "qemu")),
        Goal(
            f"memory of {max(COUNTS)} clones : {max(COUNTS)} boots", "≤ 0.33", memory, f"{memory or 0:.2f}",
            (memory or 1) <= 1 / 3,
        ),
    ]  # fmt: skip


def ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def ratios(measured: Measurements, guests: Sequence[Guest]) -> str:
    """Give what was to be reached, and what was."""
    columns = [goals(measured, guest) for guest in guests]
    rows = [["", "to reach", *(guest.title for guest in guests)]]
    rows += [[row[0].title, row[0].target, *map(cell, row)] for row in zip(*columns)]
    return table(rows)


def cell(goal: Goal) -> str:
    if goal.value is None:
        return NOT_APPLICABLE
    return goal.shown if goal.reached else f"{goal.shown} (missed)"


def times(measured: Measurements, guests: Sequence[Guest]) -> str:
    """Give the time of each way by both clocks."""
    rows = [["from `vm_start` to the end of the first `true`", *(WAY_TITLES[way] for way in WAYS)]]
    for guest in guests:
        for clock, title in CLOCKS.items():
            for what, value in STATISTICS.items():
                found = [value(measured, Entrant(guest, way), clock) for way in WAYS]
                shown = [NOT_APPLICABLE if one is None else seconds(one) for one in found]
                rows.append([f"{guest.title}, {title}: {what}", *shown])
    return table(rows)


def parts(measured: Measurements, guests: Sequence[Guest]) -> str:
    """Give what the worker says a clone's time is spent for."""
    rows = [["the parts of a clone's time", *(PART_TITLES[part] for part in CLONE_PARTS)]]
    for guest in guests:
        for what, value in STATISTICS.items():
            found = [value(measured, Entrant(guest, "clone"), part) for part in CLONE_PARTS]
            shown = [NOT_APPLICABLE if one is None else milliseconds(one) for one in found]
            rows.append([f"{guest.title}: {what}", *shown])
    return table(rows)


def memory(measured: Measurements, guests: Sequence[Guest]) -> str:
    """Give the memory of some machines."""
    rows = [["memory of all QEMUs together (PSS)", *(f"{way}s" for way in COUNTED), "of that of boots"]]
    for guest in guests:
        for count in COUNTS:
            boots, clones = (measured.median(Entrant(guest, way), f"memory {count}") for way in COUNTED)
            of_boots = ratio(clones, boots)
            shown = [NOT_APPLICABLE if one is None else mebibytes(one) for one in (boots, clones)]
            rows.append([
                f"{guest.title}, {count} machine{'s' * (count > 1)}", *shown,
                NOT_APPLICABLE if of_boots is None else f"{of_boots:.2f}",
            ])  # fmt: skip
    return table(rows)


def counts(measured: Measurements, guests: Sequence[Guest], odd: Sequence[str]) -> str:
    """Say how many machines were measured, and what was odd."""
    numbers = {measured.count(Entrant(guest, way), "worker") for guest in guests for way in WAYS}
    least, most = min(numbers), max(numbers)
    said = f"{least}" if least == most else f"{least} to {most}"
    text = f"{said} machines by each way and guest."
    if odd:
        kinds = "; ".join(f"{what} ({times} times)" for what, times in Counter(odd).items())
        text += f" What was odd was not counted and tried again: {kinds}."
    return text
