"""A whole build by Buildbot's own Build, on a connection that notes the commands and answers them."""

from __future__ import annotations

from inspect import signature
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

from buildbot.config import BuilderConfig
from buildbot.process.factory import BuildFactory
from buildbot.process.results import Results
from buildbot.process.workerforbuilder import WorkerForBuilder
from buildbot.test import fakedb
from buildbot.test.fake import fakemaster, fakeprotocol
from buildbot.test.fake.worker import FakeWorker
from buildbot.test.reactor import TestReactorMixin
from twisted.internet import defer, reactor
from twisted.internet.task import deferLater
from twisted.trial import unittest

if TYPE_CHECKING:
    from collections.abc import Callable


#: The number of Buildbot's fake master.
MASTER_ID = 824

WORKER_WITH_VMS = {"*": "1.0"}

#: The updates of a command, each a name and a value.
Answer = list[tuple[str, Any]]

SUCCEEDED: Answer = [("rc", 0)]


def vm_failed(reason: str, sentence: str, rc: int = -1) -> Answer:
    """Answer as kvm-worker does where a machine is the reason."""
    return [("failure_reason", reason), ("vm_error", sentence), ("rc", rc)]


class Connection(fakeprotocol.FakeConnection):
    """Notes each command with its place, and has the test answer it."""

    is_fake_test_connection = True

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self.commands: list[tuple[str, str | None]] = []
        self.answer: Callable[[str, dict[str, Any]], Answer] = lambda _name, _args: SUCCEEDED

    def remoteStartCommand(
        self, remoteCommand: Any, builderName: str, commandId: str, commandName: str, args: dict[str, Any]
    ) -> defer.Deferred[None]:
        del builderName, commandId
        self.commands.append((commandName, args.get("vm")))
        updates = self.answer(commandName, args)
        remoteCommand.remote_update([({key: value}, number) for number, (key, value) in enumerate(updates)])
        remoteCommand.remote_complete()
        return defer.succeed(None)


class BuildCase(TestReactorMixin, unittest.TestCase):
    """Runs a factory's build. ``commands`` is what the worker got to run, and where."""

    worker_commands: ClassVar[dict[str, str]] = WORKER_WITH_VMS

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        self.setup_test_reactor()
        self.master = yield fakemaster.make_master(self, wantData=True)
        yield self.master.db.insert_test_data(
            [
                fakedb.Master(id=MASTER_ID),
                fakedb.Worker(id=1234, name="kvm1"),
                fakedb.Builder(id=83, name="b"),
                fakedb.Buildset(id=8822),
                fakedb.BuildRequest(id=515, buildsetid=8822, builderid=83),
            ]
        )
        self.worker = FakeWorker(self.master)
        self.worker.workername = "kvm1"
        yield self.worker.attached(None)
        self.worker.conn = Connection(self.worker)

    @property
    def commands(self) -> list[tuple[str, str | None]]:
        return list(self.worker.conn.commands)

    def answers(self, answer: Callable[[str, dict[str, Any]], Answer | None]) -> None:
        """Answer commands as the function says, and with success where it says nothing."""
        self.worker.conn.answer = lambda name, args: answer(name, args) or SUCCEEDED

    def earlier_build(self, number: int, result: int) -> defer.Deferred[None]:
        """Record an earlier build of the same request."""
        build = fakedb.Build(
            id=1000 + number,
            number=1000 + number,
            buildrequestid=515,
            masterid=MASTER_ID,
            builderid=83,
            workerid=1234,
            results=result,
        )
        return self.master.db.insert_test_data([build])

    @defer.inlineCallbacks
    def run_build(self, factory: BuildFactory) -> Any:
        """Run a build to its end, and give the build."""
        builder = mock.Mock(name="builder", master=self.master, botmaster=self.master.botmaster)
        builder.name = "b"
        builder.getBuilderId = lambda: defer.succeed(83)
        builder.config = BuilderConfig(name="b", workernames=["kvm1"], factory=factory)
        builder.find_project_id = lambda _: defer.succeed(None)
        request = mock.Mock(name="request", id=515, submittedAt=0, reason="", sources={})
        request.properties = {}
        sourcestamp = SimpleNamespace(
            codebase="", branch="main", revision=None, patch=None, changes=[], repository="", project=""
        )
        sourcestamp.asDict = lambda: {"codebase": "", "branch": "main"}
        request.mergeSourceStampsWith.return_value = [sourcestamp]
        request.mergeReasons.return_value = "test"
        if "builder" in signature(BuildFactory.newBuild).parameters:
            build = factory.newBuild([request], builder)
        else:  # Buildbot 4.0
            build = factory.newBuild([request])
            build.setBuilder(builder)
        build.setLocks([])
        # As the builder would.
        build.properties.build = build
        wfb = mock.Mock(spec=WorkerForBuilder, worker=self.worker, builder=builder)
        wfb.worker = self.worker
        wfb.builder = builder
        wfb.substantiate_if_needed.return_value = defer.succeed(True)
        wfb.ping.return_value = defer.succeed(True)
        wfb.getWorkerCommandVersion = lambda name, old=None: self.worker_commands.get(
            name, self.worker_commands.get("*", old)
        )
        started = build.startBuild(wfb)
        # Summaries are written after a second of the build's time; none of ours passes.
        while not builder.buildFinished.called:
            self.reactor.advance(1)
            yield deferLater(reactor, 0)
            if started.called:
                yield started
        return build

    def results(self, build: Any) -> list[tuple[str, str]]:
        """Give the steps that ran, by name, each with its result's word."""
        return [(step.name, Results[step.results]) for step in build.executedSteps]
