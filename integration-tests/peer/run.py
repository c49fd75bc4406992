"""Runs Buildbot's own integration tests over one protocol with a worker program in place of Buildbot's worker.

    run.py --worker PROGRAM --source DIRECTORY --protocol pb|msgpack
        [--guests IMAGES] [--part I/N] [--log FILE] [NAME...]

PROGRAM is the worker. DIRECTORY has the sources of the Buildbot master: they have the tests, the wheel doesn't.
NAMEs are parts of names of tests: only tests with one of them are run. What the worker says is in FILE.

With --guests, every build of the tests gets a fresh machine to which its builder is bound, so that all of the
worker's standard commands run in a guest; IMAGES is the directory that scripts/setup image makes. With --part 2/3
only each third test is run, from the second on, for several of these programs at a time.

modules.txt beside this file tells which tests these are, excluded.txt which of them aren't run and why.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
import unittest
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guests import Guests

HERE = Path(__file__).resolve().parent
PREFIX = "buildbot.test.integration."
IN_PROCESS = "in-process "


@dataclass
class Selection:
    """The tests to run, and why others aren't."""

    tests: unittest.TestSuite
    excluded: dict[str, str]
    passed_over: Counter[str]


def main() -> int:
    """Run the tests; give 0 if there were some and all passed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--worker", type=Path, required=True, help="the worker program")
    parser.add_argument("--source", type=Path, required=True, help="the Buildbot master's sources")
    parser.add_argument("--protocol", choices=["pb", "msgpack"], required=True, help="what the tests are run over")
    parser.add_argument("--guests", type=Path, metavar="IMAGES", help="run all commands in guests with these disks")
    parser.add_argument(
        "--part", type=part, default=(1, 1), metavar="I/N", help="run only each Nth test from the Ith"
    )
    parser.add_argument("--log", type=Path, help="where what the worker says goes")
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of the name of a test")
    arguments = parser.parse_args()
    source = arguments.source.resolve()
    if not (source / "buildbot/test/integration").is_dir():
        parser.error(f"{source} has no tests of Buildbot; to get them, run: scripts/setup peer")
    if not arguments.worker.is_file():
        parser.error(f"{arguments.worker} is no program; to build it, run: cargo build -p kvm-worker")
    sys.path.insert(0, str(source))
    with tempfile.TemporaryDirectory(prefix="peer-") as scratch:
        log = arguments.log or Path(scratch) / "worker.log"
        guests = prepare(arguments.worker.resolve(), log.absolute(), Path(scratch), arguments.guests)
        selection = select(arguments.names, arguments.protocol, guests is not None)
        first, step = arguments.part
        selection.tests = unittest.TestSuite(list(selection.tests)[first - 1 :: step])
        if arguments.names and not selection.tests.countTestCases():
            print("Buildbot's interop tests: 0 passed, 0 failed: none of them has such a name")
            return 0
        return run(selection, Path(scratch) / "trial", log, guests)


def prepare(worker: Path, log: Path, scratch: Path, images: Path | None) -> Guests | None:
    """Import Buildbot's tests and put the program in the place of their worker."""
    import buildbot.test  # noqa: F401

    # With the import, Buildbot makes an error of every warning. The libraries it meets here are younger than it is.
    for category in (DeprecationWarning, PendingDeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category)
    import foreign
    import guests

    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    if images is None:
        foreign.install(worker, log, scratch / "vms")
        return None
    binding = guests.Guests(images.resolve())
    configuration = scratch / "worker.toml"
    binding.install(configuration)
    foreign.install(worker, log, scratch / "vms", configuration, guests.SETTLE_TIMEOUT)
    return binding


def select(names: list[str], protocol: str, in_guests: bool) -> Selection:
    """Find the tests that modules.txt and excluded.txt tell of, and that have one of the names if there are some."""
    import guests
    from twisted.trial.runner import TestLoader

    loader: Any = TestLoader()
    excluded = (line.partition(" ") for line in lines("excluded.txt"))
    kinds = {protocol, "guest"} if in_guests else {protocol}
    reasons = dict(rest.split(": ", 1) for kind, _, rest in excluded if kind in kinds)
    selection = Selection(unittest.TestSuite(), {}, Counter())
    for line in lines("modules.txt"):
        in_process = line.startswith(IN_PROCESS)
        for test in flat(loader.loadByName(PREFIX + line.removeprefix(IN_PROCESS), recurse=True)):
            name = test.id().removeprefix(PREFIX)
            if names and not any(part in name for part in names):
                continue
            reason = next((reasons[pattern] for pattern in reasons if fnmatch.fnmatch(name, pattern)), None)
            own = getattr(test, "proto", None)
            if not in_process and own in {"pb", "msgpack"} and own != protocol:
                selection.passed_over["speak the other protocol"] += 1
            elif not in_process and own == "null":
                selection.passed_over["have a twin over MessagePack or PB"] += 1
            elif reason is not None:
                selection.excluded[name] = reason
            else:
                test.proto = protocol  # type: ignore[attr-defined]
                if in_guests:
                    test.timeout = guests.TEST_TIMEOUT  # type: ignore[attr-defined]
                selection.tests.addTest(test)
    return selection


def run(selection: Selection, directory: Path, log: Path, guests: Guests | None) -> int:
    """Run the selected tests and say how that went."""
    from twisted.trial.reporter import VerboseTextReporter
    from twisted.trial.runner import TrialRunner

    reporter: Any = VerboseTextReporter
    result: Any = TrialRunner(reporter, workingDirectory=str(directory)).run(selection.tests)
    problems = guests.problems if guests is not None else []
    failed = len(result.failures) + len(result.errors) + len(problems)
    print()
    for name, reason in selection.excluded.items():
        print(f"excluded: {name}: {reason}")
    for test, reason in result.skips:
        print(f"skipped: {test.id()}: {reason}")
    for reason, count in selection.passed_over.items():
        print(f"passed over: {count} that {reason}")
    if guests is not None:
        print(guests.report())
    for problem in problems:
        print(f"failed: {problem}")
    if failed:
        print(f"what the worker said:\n{log.read_text(errors='replace')}")
    print(f"Buildbot's interop tests: {result.successes} passed, {failed} failed, {len(result.skips)} skipped")
    return 0 if not failed and result.wasSuccessful() and result.successes else 1


def part(text: str) -> tuple[int, int]:
    """Read I/N."""
    first, _, step = text.partition("/")
    if not (first.isdecimal() and step.isdecimal() and 1 <= int(first) <= int(step)):
        raise argparse.ArgumentTypeError(f"{text!r} should be I/N, such as 1/2")
    return int(first), int(step)


def flat(suite: unittest.TestCase | unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Give the single tests of a suite of suites."""
    if isinstance(suite, unittest.TestCase):
        yield suite
        return
    for test in suite:
        yield from flat(test)


def lines(name: str) -> list[str]:
    """Read a file beside this one, without comments and empty lines."""
    text = (HERE / name).read_text()
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


if __name__ == "__main__":
    sys.exit(main())
