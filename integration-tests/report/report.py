"""Says how a run of ./test went: its parts, the machines they had, the slowest tests, and those that are flaky.

    report.py DIRECTORY [--left-out TEXT]

DIRECTORY is where ./test keeps its results:

    parts       a line for each part that was run: its name, its exit status, and how long (seconds) it took
    PART.xml    its tests, as JUnit has them; without it they are counted in what it printed
    PART.log    what it printed
    machines    a line for each machine or template of a test: part or test, how it came to be, seconds

The last line is "test: N passed, N failed". A test that fails and passes when it is run again counts as failed,
unless flaky.txt beside this folder has it. Exits 0 only if tests were run and none failed.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import junit

FLAKY = Path(__file__).resolve().parent.parent / "flaky.txt"

#: How many of the slowest tests are named.
SLOWEST = 20

#: The closing lines of cargo test, for where there is no JUnit.
CLOSING = re.compile(r"^test result: .*? (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)


#: What nextest says at the end if it has not run all that it was to.
NOT_RUN = re.compile(r"^warning: (\d+)/(\d+) tests were not run", re.MULTILINE)


@dataclass
class Part:
    """A part of a run."""

    name: str
    status: int
    seconds: float
    cases: list[junit.Case] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    not_run: int = 0


@dataclass(frozen=True)
class Known:
    """A flaky test that is known."""

    name: str
    until: datetime.date
    reason: str


def main() -> int:
    """Print the report; give 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--left-out", default="", help="what to say about tests that were not run")
    arguments = parser.parse_args()
    parts = read_parts(arguments.directory)
    known = read_known(FLAKY.read_text())

    flaky = {case.name: part for part in parts for case in part.cases if case.outcome == junit.FLAKY}
    tolerated = {name for name in flaky if any(entry.name == name for entry in known)}
    for part in parts:
        judge(part, tolerated)
    print_parts(parts, machines(arguments.directory / "machines"))
    print_slowest(parts)
    for name in sorted(flaky):
        reason = next((entry.reason for entry in known if entry.name == name), "")
        print(f"test: flaky, {f'which is known ({reason})' if reason else 'and counted as failed'}: {name}")
    for part in parts:
        if part.not_run:
            print(f"test: {part.name}: {part.not_run} tests were to be run and were not, which counts as failed")
    if arguments.left_out:
        print(f"test: {arguments.left_out}")
    total: Counter[str] = sum((part.counts for part in parts), Counter())
    print(f"test: {total[junit.PASSED]} passed, {total[junit.FAILED]} failed")
    return 0 if total[junit.PASSED] and not total[junit.FAILED] else 1


def read_parts(directory: Path) -> list[Part]:
    """Read what was run, in the order of its end."""
    parts = []
    for line in (directory / "parts").read_text().splitlines():
        name, status, seconds = line.split()
        part = Part(name, int(status), float(seconds))
        results = directory / f"{name}.xml"
        log = re.sub(r"\x1b\[[0-9;]*m", "", (directory / f"{name}.log").read_text(errors="replace"))
        part.not_run = sum(int(number) for number, _ in NOT_RUN.findall(log)[-1:])
        if results.exists():
            part.cases = junit.read(results)
            part.counts = Counter(case.outcome for case in part.cases)
        else:
            for passed, failed, skipped in CLOSING.findall(log):
                found = {junit.PASSED: passed, junit.FAILED: failed, junit.SKIPPED: skipped}
                part.counts.update({outcome: int(number) for outcome, number in found.items()})
        parts.append(part)
    return parts


def read_known(text: str) -> list[Known]:
    """Read the list of flaky tests, less those whose time is over."""
    known = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(.+) until (\d{4}-\d\d-\d\d): (.+)", line)
        if match is None:
            raise SystemExit(f"flaky.txt: not NAME until YYYY-MM-DD: REASON: {line!r}")
        entry = Known(match[1], datetime.date.fromisoformat(match[2]), match[3])
        if entry.until < datetime.datetime.now(tz=datetime.timezone.utc).date():
            print(f"test: flaky.txt: the time of {entry.name} is over ({entry.until})")
        else:
            known.append(entry)
    return known


def judge(part: Part, tolerated: set[str]) -> None:
    """Turn a part's counts into passed and failed ones."""
    for case in part.cases:
        if case.outcome == junit.FLAKY:
            part.counts[junit.PASSED if case.name in tolerated else junit.FAILED] += 1
    del part.counts[junit.FLAKY]
    part.counts[junit.FAILED] += part.not_run
    # A runner that failed without saying which test did has failed in something.
    if part.status and not part.counts[junit.FAILED]:
        part.counts[junit.FAILED] = 1


def machines(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Read how the machines of each part came to be, and how long that took."""
    found: dict[str, list[tuple[str, float]]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        part, how, seconds = line.split("\t")
        found.setdefault(part, []).append((how, float(seconds)))
    return found


def print_parts(parts: list[Part], by_part: dict[str, list[tuple[str, float]]]) -> None:
    """Print a line for each part."""
    kinds = [("boot", "booted"), ("clone", "cloned"), ("warm", "warm"), ("template", "templates")]
    rows = [("part", "passed", "failed", "left out", "seconds", *(f"{name} (s)" for _, name in kinds))]
    for part in parts:
        had = by_part.get(part.name, [])
        row = [part.name, *(str(part.counts[kind]) for kind in (junit.PASSED, junit.FAILED, junit.SKIPPED))]
        row.append(f"{part.seconds:.0f}")
        for kind, _ in kinds:
            times = [seconds for how, seconds in had if how == kind]
            row.append(f"{len(times)} ({sum(times):.0f})" if times else "-")
        rows.append(tuple(row))
    print_table(rows)


def print_slowest(parts: list[Part]) -> None:
    """Print the tests that took longest."""
    cases = sorted((case for part in parts for case in part.cases), key=lambda case: case.seconds, reverse=True)
    print_table([("seconds", "slowest tests"), *((f"{case.seconds:.1f}", case.name) for case in cases[:SLOWEST])])


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns; texts to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        cells = []
        for cell, width, sample in zip(row, widths, rows[-1]):
            cells.append(cell.rjust(width) if sample[:1].isdigit() or sample == "-" else cell.ljust(width))
        print("  ".join(cells).rstrip())
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
