"""A step on Buildbot's own fake of a build: what it sends, and what it makes of the answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

from buildbot.process.results import RETRY, SUCCESS
from buildbot.test import fakedb
from buildbot.test.reactor import TestReactorMixin
from buildbot.test.steps import Expect, TestBuildStepMixin
from twisted.internet import defer
from twisted.trial import unittest

WORKER_WITH_VMS = {"*": "1.0"}
PYTHON_WORKER = {"shell": "3.3"}

#: What a step says on a worker like Buildbot's own.
WITHOUT_MACHINES = (
    "worker w1 has no virtual machines (it does not know the command vm_start): "
    "run kvm-worker on its host, or give this builder a worker that does (exception)"
)

BUILD_ID = 92
REQUEST_ID = 300


class StepCase(TestBuildStepMixin, TestReactorMixin, unittest.TestCase):
    """Runs one step. `send` is what it must send, the outcome what must come of the answer."""

    def setUp(self) -> defer.Deferred[None]:
        self.setup_test_reactor()
        return defer.maybeDeferred(self.setup_test_build_step)

    def prepare(self, step: Any, worker: dict[str, str] = WORKER_WITH_VMS) -> Any:
        """Put a step into a fake build on a worker that knows these commands."""
        self.setup_build(worker_version=worker)
        step = self.setup_step(step)
        self.change_worker_system("posix")
        self.build.getWorkerName = lambda: "w1"
        self.build.requests = [SimpleNamespace(id=REQUEST_ID)]
        self.build.stopped = False
        self.build.results = SUCCESS
        return step

    def expect_commands(self, *expected: Expect) -> None:
        """Expect commands, each with the step's name, whatever it is if the test does not say it."""
        for command in expected:
            command.args.setdefault("step", mock.ANY)
        super().expect_commands(*expected)

    def earlier_builds(self, *results: int) -> defer.Deferred[None]:
        """Record earlier builds of the same request."""
        return self.master.db.insert_test_data(
            [
                fakedb.Build(
                    id=1000 + number,
                    number=number,
                    buildrequestid=REQUEST_ID,
                    masterid=fakedb.FakeDBConnector.MASTER_ID,
                    builderid=100,
                    workerid=400,
                    results=result,
                )
                for number, result in enumerate(results)
            ]
        )

    @defer.inlineCallbacks
    def check(self, step: Any, expected: Expect, result: int, summary: str) -> Any:
        """Run a step that sends one command, and compare the command, the result and the summary."""
        self.prepare(step)
        self.expect_commands(expected)
        self.expect_outcome(result=result, state_string=summary)
        yield self.run_step()


def failed(expected: Expect, reason: str, sentence: str, rc: int = 1) -> Expect:
    """Let a command fail as kvm-worker reports it."""
    return expected.update("failure_reason", reason).update("vm_error", sentence).stderr(f"{sentence}\n").exit(rc)


def retries(count: int) -> list[int]:
    """Give the results of a number of builds that were all started again."""
    return [RETRY] * count
