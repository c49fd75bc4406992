"""Runs Buildbot's own integration tests over one protocol with a worker program in place of Buildbot's worker.

    run.py --worker PROGRAM --source DIRECTORY --protocol pb|msgpack
        [--guests IMAGES] [--log FILE] [--junit FILE] [--machines FILE] [NAME...]

PROGRAM is the worker. DIRECTORY has the sources of the Buildbot master: they have the tests, the wheel doesn't.
NAMEs are parts of names of tests: only tests with one of them are run. What the worker says is in the --log FILE, and
how each test went in the --junit FILE. The --machines FILE gets a line for each machine: the suite, how the machine
came to be, and how long (seconds) that took.

With --guests, every build of the tests gets a fresh machine to which its builder is bound, so that all of the
worker's standard commands run in a guest; IMAGES is the directory that scripts/setup image makes.

modules.txt beside this file tells which tests these are, excluded.txt which of them aren't run and why.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
import time
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
sys.path.append(str(HERE.parent / "report"))

import junit  # noqa: E402

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
    parser.add_argument("--log", type=Path, help="where what the worker says goes")
    parser.add_argument("--junit", type=Path, help="where to write how each test went")
    parser.add_argument("--machines", type=Path, help="where to add a line for each machine: suite, how, seconds")
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
        if arguments.names and not selection.tests.countTestCases():
            print("Buildbot's interop tests: 0 passed, 0 failed: none of them has such a name")
            return 0
        suite = f"interop-{'in-guests-' if guests is not None else ''}{arguments.protocol}"
        status = run(selection, Path(scratch) / "trial", log, guests, Ledger(suite, arguments.junit))
        if guests is not None and arguments.machines is not None:
            with arguments.machines.open("a") as machines:
                machines.writelines(f"{suite}\t{how}\t{seconds}\n" for how, seconds in guests.machines)
        return status


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
    binding.make_template(worker, scratch, scratch / "vms", log)
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
            test_name = name(test.id())
            if names and not any(part in test_name for part in names):
                continue
            reason = next((reasons[pattern] for pattern in reasons if fnmatch.fnmatch(test_name, pattern)), None)
            own = getattr(test, "proto", None)
            if not in_process and own in {"pb", "msgpack"} and own != protocol:
                selection.passed_over["speak the other protocol"] += 1
            elif not in_process and own == "null":
                selection.passed_over["have a twin over MessagePack or PB"] += 1
            elif reason is not None:
                selection.excluded[test_name] = reason
            else:
                test.proto = protocol  # type: ignore[attr-defined]
                if in_guests:
                    test.timeout = guests.TEST_TIMEOUT  # type: ignore[attr-defined]
                selection.tests.addTest(test)
    return selection


class Ledger:
    """Notes how long each test takes and how it ends, for a JUnit file."""

    def __init__(self, suite: str, path: Path | None) -> None:
        self.suite = suite
        self.path = path
        self.cases: list[junit.Case] = []

    def reporter(self) -> Any:
        """Make trial's reporter, which is asked for each time that tests are run."""
        from twisted.trial.reporter import VerboseTextReporter

        ledger = self
        base: Any = VerboseTextReporter

        class Reporter(base):  # type: ignore[misc]
            """Trial's own, with an eye on the clock."""

            def startTest(self, test: Any) -> None:
                self.begun, self.trouble = time.monotonic(), ""
                super().startTest(test)

            def addError(self, test: Any, error: Any) -> None:
                self.trouble = str(error)
                super().addError(test, error)

            def addFailure(self, test: Any, failure: Any) -> None:
                self.trouble = str(failure)
                super().addFailure(test, failure)

            def addSkip(self, test: Any, reason: Any) -> None:
                ledger.note(test.id(), 0.0, junit.SKIPPED, str(reason))
                super().addSkip(test, reason)

            def stopTest(self, test: Any) -> None:
                if not any(case.name == name(test.id()) for case in ledger.cases):
                    outcome = junit.FAILED if self.trouble else junit.PASSED
                    ledger.note(test.id(), time.monotonic() - self.begun, outcome, self.trouble)
                super().stopTest(test)

        return Reporter

    def note(self, test: str, seconds: float, outcome: str, message: str = "") -> None:
        """Note a test."""
        self.cases.append(junit.Case(name(test), seconds, outcome, message))

    def write(self) -> None:
        """Write the file, if it is wanted."""
        if self.path is not None:
            junit.write(self.path, self.suite, self.cases)


def name(test: str) -> str:
    """Leave out of a test's name where all of them are."""
    return test.removeprefix(PREFIX)


def run(selection: Selection, directory: Path, log: Path, guests: Guests | None, ledger: Ledger) -> int:
    """Run the selected tests and say how that went."""
    from twisted.trial.runner import TrialRunner

    result: Any = TrialRunner(ledger.reporter(), workingDirectory=str(directory)).run(selection.tests)
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
        ledger.note("the machines of the tests", 0.0, junit.FAILED, problem)
    ledger.write()
    if failed:
        print(f"what the worker said:\n{log.read_text(errors='replace')}")
    print(f"Buildbot's interop tests: {result.successes} passed, {failed} failed, {len(result.skips)} skipped")
    return 0 if not failed and result.wasSuccessful() and result.successes else 1


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
