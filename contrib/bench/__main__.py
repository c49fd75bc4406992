"""Compares kvm-worker with Buildbot's own worker, or its ways to get a machine with each other, on one real master.

Run by contrib/bench/run, which first makes sure that everything is there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import machines_report
import report
from guests import GUESTS
from machines import Machines
from master import Master, version
from measurements import Measurements, Round
from plan import FULL, SMALL, Paths, Sizes
from problem import Problem


def main() -> int:
    options = arguments()
    paths = Paths.of_this_clone()
    paths.bench.mkdir(parents=True, exist_ok=True)
    # A polite kill ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with locked(paths.bench):
            if options.machines:
                compare_machines(options, paths)
            else:
                compare(options, paths)
    except Problem as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return 130
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contrib/bench/run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=positive, help="how often everything is measured (default: 3; machines: 20)")
    parser.add_argument("--small", action="store_true", help="tiny logs and files, to see that it works")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--copies", action="store_true", help="nothing but the copies between host and guest")
    parser.add_argument("--machines", action="store_true", help="the ways to get a machine, instead of all else")
    guests = [guest.name for guest in GUESTS]
    parser.add_argument(
        "--guest", choices=[*guests, "all"], default="all", help="the guest of --machines (default: all)"
    )
    parser.add_argument("--accel", choices=["tcg", "kvm"], default="tcg", help="what executes it (default: tcg)")
    options = parser.parse_args()
    if options.machines and (options.small or options.copies):
        parser.error("--machines has nothing to do with --small and --copies")
    if options.machines and options.write and options.guest != "all":
        parser.error("--write is for all of the guests: leave --guest away")
    if options.rounds is None:
        options.rounds = 20 if options.machines else 3
    if options.write and (options.small or options.copies):
        parser.error("--write is for all of the numbers, at their full size: leave --small and --copies away")
    return options


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep a second benchmark away, from the files and from the time of the first one."""
    with directory.joinpath("lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(f"another benchmark is running in {directory}: wait for it, or stop it") from None
        yield


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def compare(options: argparse.Namespace, paths: Paths) -> None:
    sizes = SMALL if options.small else FULL
    make_file(paths.file, sizes.file)
    measured = Measurements()
    master = Master(paths, sizes, options.accel)
    try:
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
            measuring = Round(number, paths, sizes, master, measured)
            if not options.copies:
                measuring.run()
            measuring.copy()
    finally:
        master.program.stop()
    tables = [] if options.copies else [report.ratios(measured), report.values(measured)]
    section = "\n\n".join([*tables, report.copies(measured), f"{sized(options.rounds, sizes)}\n{conditions()}"])
    print(f"\n{section}")
    if options.write:
        write(paths.page, section, report.MARKS)


def compare_machines(options: argparse.Namespace, paths: Paths) -> None:
    guests = [guest for guest in GUESTS if options.guest in (guest.name, "all")]
    measured = Measurements()
    contests: list[Machines] = []
    begun = time.monotonic()

    def section() -> str:
        tables = (machines_report.ratios, machines_report.times, machines_report.parts, machines_report.memory)
        odd = [what for contest in contests for what in contest.odd]
        said = machines_report.counts(measured, guests, odd)
        took = f"Took {(time.monotonic() - begun) / 60:.0f} minutes."
        return "\n\n".join([*(each(measured, guests) for each in tables), f"{said} {took}\n{conditions()}"])

    def so_far() -> None:
        # What an interruption leaves is worth something.
        paths.bench.joinpath("machines.md").write_text(section() + "\n")
        if options.write:
            write(paths.page, section(), machines_report.MARKS)

    master = Master(paths, SMALL, options.accel)
    try:
        for guest in guests:
            contest = Machines(guest, paths, master, options.accel, measured)
            contests.append(contest)
            contest.race(options.rounds, so_far)
            contest.weigh(so_far)
    finally:
        master.program.stop()
        print(f"\n{section()}")


def make_file(file: Path, size: int) -> None:
    """Make the file that goes up and down, of bytes that nothing can make shorter."""
    if not file.exists() or file.stat().st_size != size:
        file.write_bytes(os.urandom(size))


def sized(rounds: int, sizes: Sizes) -> str:
    """Say what was measured."""
    log = sum(len(f"{number}\n") for number in range(1, sizes.lines + 1))
    return (
        f"Medians of {rounds} round{'s' * (rounds > 1)} ({rounds * sizes.steps} steps `true` each);"
        f" a log of {log / 1e6:.0f} MB in {sizes.lines} lines, files of {sizes.file / 1e6:.0f} MB;"
        f" copied: a file of {sizes.copied / 1e6:.0f} MB, {sizes.files} files of 2 kB."
    )


def conditions() -> str:
    """Say where it was measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, Linux {platform.release().partition('-')[0]};"
        f" Buildbot {version('buildbot')}, buildbot-worker {version('buildbot-worker')},"
        f" Python {platform.python_version()}."
    )


def write(page: Path, section: str, marks: tuple[str, str]) -> None:
    text = report.replaced(page.read_text(), section, marks)
    if text is None:
        raise Problem(f"{page} has lost the two lines that the tables go between: {' and '.join(marks)}")
    page.write_text(text)
    print(f"written: {page}", flush=True)


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
