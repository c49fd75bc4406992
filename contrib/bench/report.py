"""The tables of what was measured, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from measurements import Measurements
from plan import COPIER, DIRECTIONS, PROGRAMS, PROTOCOLS, WAYS, WHATS, Contestant

#: The lines of the page that tables go between.
MARKS = (
    "<!-- measured: contrib/bench/run --write puts what it measured between these two lines -->",
    "<!-- measured: end -->",
)

TITLES = {"pb": "PB", "msgpack": "MessagePack"}


@dataclass(frozen=True)
class Row:
    """One measure."""

    title: str
    value: Callable[[Measurements, Contestant], float | None]
    shown: Callable[[float], str]


def mebibytes(value: float) -> str:
    return f"{value:.1f} MiB"


def seconds(value: float) -> str:
    return f"{value:.2f} s"


def milliseconds(value: float) -> str:
    return f"{value * 1000:.0f} ms"


def median(title: str, measure: str, shown: Callable[[float], str]) -> Row:
    return Row(title, lambda measured, contestant: measured.median(contestant, measure), shown)


ROWS = (
    median("memory, idle", "idle", mebibytes),
    median("memory, peak", "peak", mebibytes),
    median("memory, idle again after the work", "after", mebibytes),
    median("log: worker's CPU", "log CPU", seconds),
    median("log: time", "log time", seconds),
    median("upload: worker's CPU", "upload CPU", seconds),
    median("upload: time", "upload time", seconds),
    median("download: worker's CPU", "download CPU", seconds),
    median("download: time", "download time", seconds),
    median("step `true`: median", "true", milliseconds),
    Row("step `true`: 95th percentile", lambda measured, each: measured.percentile95(each, "true"), milliseconds),
)

NOT_APPLICABLE = "n/a"


def ratios(measured: Measurements) -> str:
    """Give what kvm-worker needs of what buildbot-worker needs."""
    rows = [["kvm-worker needs, of what buildbot-worker needs", *(TITLES[protocol] for protocol in PROTOCOLS)]]
    rows += [[row.title, *(ratio(row, measured, protocol) for protocol in PROTOCOLS)] for row in ROWS]
    return table(rows)


def ratio(row: Row, measured: Measurements, protocol: str) -> str:
    theirs, ours = (row.value(measured, Contestant(program, protocol)) for program in PROGRAMS)
    if theirs is None or ours is None:
        return NOT_APPLICABLE
    # Less than one tick of the clock that counts CPU is nothing to divide by.
    return f"{ours / theirs:.2f}" if theirs else "-"


def values(measured: Measurements) -> str:
    """Give the medians themselves."""
    columns = [Contestant(program, protocol) for protocol in PROTOCOLS for program in PROGRAMS]
    rows = [["", *(f"{each.program}, {TITLES[each.protocol]}" for each in columns)]]
    rows += [[row.title, *(value(row, measured, each) for each in columns)] for row in ROWS]
    return table(rows)


def value(row: Row, measured: Measurements, contestant: Contestant) -> str:
    found = row.value(measured, contestant)
    return NOT_APPLICABLE if found is None else row.shown(found)


#: What the ways to copy are called.
WAY_TITLES = {"vm_copy": "`vm_copy`", "scp": "`scp -rp`", "tar": "`tar`, `ssh`"}
WHAT_TITLES = {"file": "one large file", "tree": "many small files"}


def copies(measured: Measurements) -> str:
    """Give how long copies between host and guest take, and what vm_copy takes of what OpenSSH's programs take."""
    theirs = WAYS[1:]
    head = ["copies", *(WAY_TITLES[way] for way in WAYS), *(f"of {WAY_TITLES[way]}" for way in theirs)]
    rows = [head]
    for what in WHATS:
        for direction in DIRECTIONS:
            took = {way: measured.median(COPIER, f"{what} {direction} {way}") for way in WAYS}
            shown = [NOT_APPLICABLE if value is None else seconds(value) for value in took.values()]
            shares = [share(took["vm_copy"], took[way]) for way in theirs]
            rows.append([f"{WHAT_TITLES[what]}, {direction}", *shown, *shares])
    return table(rows)


def share(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}" if ours and theirs else NOT_APPLICABLE


def table(rows: list[list[str]]) -> str:
    """Lay out a Markdown table, the first row being its head. All columns but the first are of numbers."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    rule = [f"{'-' * (width - 1)}{'-' if number == 0 else ':'}" for number, width in enumerate(widths)]

    def lines() -> Iterator[str]:
        for row in (rows[0], rule, *rows[1:]):
            first, *rest = (
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths))
            )
            yield f"| {' | '.join([first, *rest])} |"

    return "\n".join(lines())


def replaced(page: str, section: str, marks: tuple[str, str]) -> str | None:
    """Put a section between two marks of the page. Gives nothing if the page has no such marks."""
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    return f"{before}{begin}\n\n{section}\n\n{end}{after}" if begin and end else None
