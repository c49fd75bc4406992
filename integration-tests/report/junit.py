"""JUnit files: what a run of tests came to, one case a test, as nextest and pytest write them, too."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PASSED = "passed"
FAILED = "failed"
FLAKY = "flaky"
SKIPPED = "skipped"


@dataclass(frozen=True)
class Case:
    """A test that was run, or not."""

    name: str
    seconds: float
    #: PASSED, FAILED, FLAKY (it failed, and passed when it was run again) or SKIPPED.
    outcome: str
    #: Why it failed or was skipped.
    message: str = ""


def write(path: Path, suite: str, cases: Iterable[Case]) -> None:
    """Write a file with one suite."""
    root = ET.Element("testsuites")
    element = ET.SubElement(root, "testsuite", name=suite)
    for case in cases:
        one = ET.SubElement(element, "testcase", classname=suite, name=case.name, time=f"{case.seconds:.3f}")
        if case.outcome in {FAILED, SKIPPED}:
            kind = "failure" if case.outcome == FAILED else "skipped"
            ET.SubElement(one, kind, message=printable(case.message))
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def read(path: Path) -> list[Case]:
    """Read all cases of a file."""
    return [case(element) for element in ET.parse(path).getroot().iter("testcase")]


def case(element: ET.Element) -> Case:
    """Read a case. A runner that tries again what failed marks what passed then (nextest: flakyFailure)."""
    classname, name = element.get("classname", ""), element.get("name", "")
    outcome, message = PASSED, ""
    for child in element:
        if child.tag in {"failure", "error"}:
            outcome, message = FAILED, child.get("message", "")
        elif child.tag == "skipped":
            outcome, message = SKIPPED, child.get("message", "")
        elif child.tag in {"flakyFailure", "flakyError"} and outcome == PASSED:
            outcome, message = FLAKY, child.get("message", "")
    return Case(f"{classname} {name}".strip(), float(element.get("time", 0)), outcome, message)


def printable(text: str) -> str:
    """Leave out what XML has no characters for."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")
