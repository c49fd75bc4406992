from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

from buildbot.config import ConfigErrors
from buildbot.interfaces import IRenderable
from buildbot.process.build import Build as RealBuild
from buildbot.process.factory import BuildFactory
from buildbot.process.properties import Interpolate, Properties
from buildbot.process.results import EXCEPTION, SUCCESS
from buildbot.process.workerforbuilder import States, WorkerForBuilder
from buildbot.steps.shell import ShellCommand
from buildbot.steps.trigger import Trigger
from buildbot.test import fakedb
from buildbot.test.fake import fakemaster, fakeprotocol
from buildbot.test.reactor import TestReactorMixin
from twisted.internet import defer, error
from twisted.trial import unittest
from zope.interface import implementer

from buildbot_kvm import KVMWorker, StartVM, StopVM, in_vm, next_worker


@implementer(IRenderable)
class Unknown:
    """What can't be rendered before a step of the build has run."""

    def getRenderingFor(self, _: Any) -> Any:
        raise KeyError("not yet")


class Build:
    """As much of a build as shows what it does with machines."""

    def __init__(self, number: int, *steps: Any) -> None:
        self.buildid = number
        self.executedSteps: list[Any] = []
        self.steps = list(steps)
        self.currentStep: Any = None
        self.builder: Any = None
        self.workerforbuilder: Any = None

    def begin(self, sent: bool = True) -> None:
        """Begin with the next step, and have it tell the worker if it is about machines."""
        self.executedSteps.append(self.steps.pop(0))
        self.executedSteps[-1].sent = sent

    def end(self, results: int = SUCCESS) -> None:
        """End the step that runs."""
        self.executedSteps[-1].results = results

    def run(self, steps: int) -> None:
        """Run steps to their end."""
        for _ in range(steps):
            self.begin()
            self.end()


def using_a_machine(number: int) -> Build:
    steps = [StartVM("debian"), ShellCommand(command="make"), StopVM()]
    return Build(number, *(step.get_step_factory().buildStep() for step in steps))


class Worker(fakeprotocol.FakeConnection):
    """A kvm-worker, as far as it is asked."""

    #: Whether it tells when its state changes.
    follows = False

    def __init__(self, worker: Any, info: dict[str, Any]) -> None:
        super().__init__(worker)
        self.info = {"worker_commands": {}, "version": "4.3.0", "basedir": "/w", "system": "posix", **info}
        self.told: dict[str, Any] = {}
        #: Answers that are still to be given, instead of the information, which is given at once.
        self.answers: list[defer.Deferred[Any]] = []
        #: What it says when its state is another one; None if it does not know how to.
        self.change: defer.Deferred[Any] | None = None

    def remotePrint(self, message: str) -> defer.Deferred[Any]:
        printed: defer.Deferred[Any] = super().remotePrint(message)
        if self.follows and message == f"kvm-worker wait-while {self.told.get('vm_state', 'running')}":
            self.change = printed = defer.Deferred()
        return printed

    def becomes(self, state: str) -> None:
        """Change the state and say so."""
        self.told["vm_state"] = state
        change, self.change = self.change, None
        assert change is not None, "nobody wants to know"
        change.callback(state)

    def remoteGetWorkerInfo(self) -> defer.Deferred[Any]:
        self.remoteCalls.append(("remoteGetWorkerInfo",))
        return self.answers.pop(0) if self.answers else defer.succeed({**self.info, **self.told})


class WorkerCase(TestReactorMixin, unittest.TestCase):
    @defer.inlineCallbacks
    def setUp(self) -> Any:
        self.setup_test_reactor()
        self.master = yield fakemaster.make_master(self, wantData=True)
        yield self.master.startService()
        self.addCleanup(self.master.stopService)

    @defer.inlineCallbacks
    def connect(self, slots: int | None = 2, free: int | None = None, **arguments: Any) -> Any:
        """Configure a worker and have it connect, with so many slots, all free unless said otherwise."""
        self.worker = KVMWorker("kvm1", "password", **arguments)
        yield self.worker.setServiceParent(self.master.workers)
        self.addCleanup(lambda: self.worker.running and self.worker.disownServiceParent())
        self.woken = mock.Mock()
        self.master.botmaster.maybeStartBuildsForWorker = self.woken
        yield self.reconnect(slots, free)

    @defer.inlineCallbacks
    def reconnect(self, slots: int | None = 2, free: int | None = None) -> Any:
        info = {} if slots is None else {"vm_slots": slots, "vm_free": slots if free is None else free}
        self.kvm = Worker(self.worker, info if slots is None else {**info, "vm_state": "running"})
        yield self.worker.attached(self.kvm)
        self.woken.reset_mock()
        self.kvm.remoteCalls.clear()

    def start(self, build: Build) -> Build:
        """Start a build, each for a builder of its own."""
        builder = mock.Mock()
        builder.name = f"builder {build.buildid}"
        wfb = WorkerForBuilder(builder)
        wfb.worker = self.worker
        wfb.state = States.BUILDING
        build.builder, build.workerforbuilder = builder, wfb
        builder.building = [build]
        self.worker.addWorkerForBuilder(wfb)
        return build

    def finish(self, build: Build) -> None:
        """End a build as Buildbot's Build and Builder do, in their order."""
        build.workerforbuilder.buildFinished()
        build.builder.building.remove(build)

    def check_starts(self, count: int) -> list[Build]:
        """Start builds while the worker takes some, and compare how many it took."""
        builds: list[Build] = []
        while self.worker.canStartBuild() and len(builds) <= count:
            builds.append(self.start(using_a_machine(len(self.worker.workerforbuilders) + 1)))
        self.assertEqual(len(builds), count)
        return builds

    def questions(self) -> int:
        """Count how often the worker was asked since the last time."""
        asked = self.kvm.remoteCalls.count(("remoteGetWorkerInfo",))
        self.kvm.remoteCalls.clear()
        return asked


class Starting(WorkerCase):
    @defer.inlineCallbacks
    def test_no_more_builds_than_slots(self) -> Any:
        yield self.connect(slots=2)
        self.check_starts(2)

    @defer.inlineCallbacks
    def test_slots_that_are_taken_by_others_do_not_count(self) -> Any:
        yield self.connect(slots=3, free=1)
        self.check_starts(1)

    @defer.inlineCallbacks
    def test_max_builds_is_a_limit_beside_that(self) -> Any:
        yield self.connect(slots=3, max_builds=2)
        self.check_starts(2)

    @defer.inlineCallbacks
    def test_more_max_builds_than_slots_make_none(self) -> Any:
        yield self.connect(slots=2, max_builds=5)
        self.check_starts(2)

    @defer.inlineCallbacks
    def test_builds_with_two_machines_take_two_slots(self) -> Any:
        yield self.connect(slots=5, machines_per_build=2)
        self.check_starts(2)

    @defer.inlineCallbacks
    def test_builds_without_machines_take_no_slot(self) -> Any:
        yield self.connect(slots=2, free=1)
        self.start(Build(1, ShellCommand(command="make").get_step_factory().buildStep()))
        self.check_starts(1)

    @defer.inlineCallbacks
    def test_builds_whose_steps_are_not_known_yet_take_one(self) -> Any:
        yield self.connect(slots=2, free=1)
        del self.start(Build(1)).steps
        self.check_starts(0)

    @defer.inlineCallbacks
    def test_machine_of_a_build_counts_once(self) -> Any:
        yield self.connect(slots=2)
        (build,) = self.check_starts(2)[:1]
        self.finish(build)
        self.kvm.told = {"vm_free": 1}
        (other,) = (b for wfb in self.worker.workerforbuilders.values() for b in wfb.builder.building)
        other.begin()
        self.reactor.advance(1)
        self.check_starts(1)

    @defer.inlineCallbacks
    def test_machine_that_was_not_asked_for_yet_is_kept_free(self) -> Any:
        yield self.connect(slots=2)
        first, second = self.check_starts(2)
        # It waits for a lock.
        first.begin(sent=False)
        self.finish(second)
        self.kvm.told = {"vm_free": 2}
        self.reactor.advance(1)
        self.check_starts(1)

    @defer.inlineCallbacks
    def test_slots_that_a_full_worker_gets_are_seen(self) -> Any:
        yield self.connect(slots=1)
        self.check_starts(1)
        self.kvm.told = {"vm_slots": 3, "vm_free": 3}
        self.reactor.advance(1)
        self.assertTrue(self.woken.called)
        self.check_starts(2)

    @defer.inlineCallbacks
    def test_slot_of_a_build_whose_machine_was_ended_is_free(self) -> Any:
        yield self.connect(slots=1)
        (build,) = self.check_starts(1)
        build.run(1)
        self.kvm.told = {"vm_free": 0}
        self.reactor.advance(1)
        self.check_starts(0)
        self.kvm.told = {"vm_free": 1}
        self.reactor.advance(2)
        self.check_starts(1)

    @defer.inlineCallbacks
    def test_more_machines_for_a_build_than_slots_are_spoken_of_once(self) -> Any:
        yield self.connect(slots=2, machines_per_build=3)
        with mock.patch("buildbot_kvm.watching.log.msg") as said:
            self.check_starts(0)
            self.check_starts(0)
        self.assertEqual(said.call_count, 1)
        self.assertIn("has 2 slots, and its machines_per_build is 3: no build with a machine", said.call_args[0][0])

    @defer.inlineCallbacks
    def test_machine_that_did_not_start_is_not_had(self) -> Any:
        yield self.connect(slots=3)
        first, second = self.check_starts(3)[:2]
        first.begin()
        first.end(EXCEPTION)
        self.kvm.told = {"vm_free": 1}
        self.finish(second)
        self.reactor.advance(1)
        self.check_starts(0)

    @defer.inlineCallbacks
    def test_machine_that_is_to_be_started_again_is_kept_free(self) -> Any:
        yield self.connect(slots=2)
        first, second = self.check_starts(2)
        first.steps += using_a_machine(9).steps
        first.run(3)
        self.finish(second)
        self.kvm.told = {"vm_free": 1}
        self.reactor.advance(1)
        self.check_starts(0)

    @defer.inlineCallbacks
    def test_build_that_has_had_its_machine_needs_none(self) -> Any:
        yield self.connect(slots=2)
        first, second = self.check_starts(2)
        first.steps.append(ShellCommand(command="mail").get_step_factory().buildStep())
        first.run(3)
        self.kvm.told = {"vm_free": 1}
        self.finish(second)
        self.reactor.advance(1)
        self.check_starts(1)

    @defer.inlineCallbacks
    def test_build_that_has_a_machine_takes_no_more_at_a_time(self) -> Any:
        yield self.connect(slots=2)
        first, second = self.check_starts(2)
        first.steps += using_a_machine(9).steps
        first.run(1)
        self.kvm.told = {"vm_free": 1}
        self.finish(second)
        self.reactor.advance(1)
        self.check_starts(1)

    @defer.inlineCallbacks
    def test_builds_of_other_workers_are_theirs(self) -> Any:
        yield self.connect(slots=2)
        build = self.start(using_a_machine(1))
        others = using_a_machine(2)
        others.builder, others.workerforbuilder = build.builder, mock.Mock()
        build.builder.building.append(others)
        self.check_starts(1)
        self.finish(build)
        self.assertEqual(self.kvm.remoteCalls, [("remotePrint", "kvm-worker release 1 builder 1")])
        self.reactor.advance(0)

    @defer.inlineCallbacks
    def test_builds_that_started_after_the_answer_have_their_machines_out_of_it(self) -> Any:
        yield self.connect(slots=3, free=2)
        (build,) = self.check_starts(2)[:1]
        build.begin()
        self.check_starts(0)

    @defer.inlineCallbacks
    def test_worker_without_machines_is_a_worker(self) -> Any:
        yield self.connect(slots=None)
        builds = [self.start(using_a_machine(number)) for number in range(7) if self.worker.canStartBuild()]
        self.assertEqual(len(builds), 7)
        self.finish(builds[0])
        self.reactor.advance(100)
        self.assertEqual((self.kvm.remoteCalls, self.woken.called), ([], True))

    @defer.inlineCallbacks
    def test_worker_that_is_paused_on_the_master_is_not_asked(self) -> Any:
        yield self.connect()
        self.worker.pause("maintenance")
        self.reactor.advance(100)
        self.check_starts(0)
        self.assertEqual(self.questions(), 0)

    def test_mistakes_show_when_the_configuration_is_read(self) -> None:
        for message, arguments in [
            ("KVMWorker: machines_per_build is 0 and must be a number, 1 or more", {"machines_per_build": 0}),
            ("KVMWorker: poll_interval is 'x' and must be a number, 1 or more", {"poll_interval": "x"}),
        ]:
            with self.assertRaises(ConfigErrors) as refused:
                KVMWorker("kvm1", "password", **arguments)
            self.assertEqual(refused.exception.errors, [message])


class BuilderCase(WorkerCase):
    def for_builder(self, *things: Any, worker: Any = None) -> WorkerForBuilder:
        """Have a builder with these steps use the worker, as Buildbot does when that is attached."""
        builder = mock.Mock()
        builder.building = []
        builder.config.factory = BuildFactory(things)
        wfb = WorkerForBuilder(builder)
        wfb.worker = worker or self.worker
        wfb.state = States.AVAILABLE
        wfb.worker.addWorkerForBuilder(wfb)
        builder.workers = [wfb]
        self.master.botmaster.builders = {"b": builder}
        return wfb


class Builders(BuilderCase):
    """What depends on the builder whose builds are to start."""

    @defer.inlineCallbacks
    def connect_other(self, name: str, **info: Any) -> Any:
        other = KVMWorker(name, "password")
        yield other.setServiceParent(self.master.workers)
        self.addCleanup(lambda: other.running and other.disownServiceParent())
        yield other.attached(Worker(other, {"vm_slots": 2, "vm_free": 2, **info}))
        return other

    def fits(self, **properties: Any) -> Any:
        return self.successResultOf(self.worker.isCompatibleWithBuild(Properties(buildername="b", **properties)))

    @defer.inlineCallbacks
    def test_builds_of_a_builder_without_machines_need_no_slot(self) -> Any:
        yield self.connect(slots=1, free=0)
        make = ShellCommand(command="make")
        self.assertTrue(self.for_builder(make).isAvailable())
        self.assertFalse(self.for_builder(StartVM("debian"), make, StopVM()).isAvailable())
        self.assertFalse(self.for_builder(*in_vm([make], "debian").steps).isAvailable())
        self.kvm.told = {"vm_state": "paused"}
        self.reactor.advance(1)
        self.assertFalse(self.for_builder(make).isAvailable())

    @defer.inlineCallbacks
    def test_builder_that_has_a_build_here_gets_no_other(self) -> Any:
        yield self.connect()
        wfb = self.for_builder(ShellCommand(command="make"))
        wfb.state = States.BUILDING
        self.assertFalse(wfb.isAvailable())

    @defer.inlineCallbacks
    def test_build_is_left_to_the_worker_that_has_its_image(self) -> Any:
        yield self.connect()
        yield self.reconnect_with(vm_images=["debian"])
        other = yield self.connect_other("kvm2", vm_images=["fedora"])
        wfb = self.for_builder(StartVM(Interpolate("%(prop:image)s")), StopVM())
        self.assertTrue(self.fits(image="fedora"))
        wfb.builder.workers.append(mock.Mock(worker=other))
        self.assertEqual(
            [self.fits(image=image) for image in ("debian", "fedora", "none has it")], [True, False, True]
        )
        # What it had is remembered while it is away.
        other.conn.loseConnection()
        self.assertFalse(self.fits(image="fedora"))
        # It may get the image by a reload.
        self.kvm.told = {"vm_images": ["fedora"]}
        self.reactor.advance(1)
        self.assertTrue(self.fits(image="fedora"))

    @defer.inlineCallbacks
    def test_image_that_is_not_known_before_the_build_begins_is_no_reason(self) -> Any:
        yield self.connect()
        yield self.reconnect_with(vm_images=["debian"])
        other = yield self.connect_other("kvm2", vm_images=["fedora"])
        wfb = self.for_builder(StartVM(Unknown()))
        wfb.builder.workers.append(mock.Mock(worker=other))
        self.assertTrue(self.fits())

    @defer.inlineCallbacks
    def reconnect_with(self, **info: Any) -> Any:
        self.kvm.loseConnection()
        self.kvm = Worker(self.worker, {"vm_slots": 2, "vm_free": 2, **info})
        yield self.worker.attached(self.kvm)

    @defer.inlineCallbacks
    def test_of_several_workers_the_one_with_a_machine_soonest_is_chosen(self) -> Any:
        yield self.connect()
        builder = self.for_builder(StartVM("debian")).builder
        plain = mock.Mock(spec=[])

        @defer.inlineCallbacks
        def check(*infos: dict[str, Any]) -> Any:
            """Of each two that follow each other the later one is chosen."""
            workers = [plain]
            for number, info in enumerate(infos):
                workers.append((yield self.connect_other(f"other{number}-{len(infos)}", **info)))
            wfbs = [SimpleNamespace(worker=worker) for worker in workers]
            for worse, better in zip(wfbs, wfbs[1:]):
                with mock.patch.object(
                    RealBuild, "setup_properties_known_before_build_starts", return_value=defer.succeed(None)
                ):
                    for pair in ([worse, better], [better, worse]):
                        chosen = yield next_worker(builder, pair, mock.Mock())
                        self.assertIs(chosen, better)

        yield check(
            {"vm_images": ["fedora"], "vm_free": 9},
            {"vm_images": ["debian"], "vm_free": 1},
            {"vm_images": ["debian"], "vm_free": 2},
            {"vm_images": ["debian"], "vm_free": 1, "vm_templates": ["debian"]},
            {"vm_images": ["debian"], "vm_free": 1, "vm_templates": ["debian"], "vm_warm_images": {"debian": 1}},
        )


class Deadlocks(BuilderCase):
    """Builds that have all machines, and wait for builds that need one."""

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        yield super().setUp()
        yield self.master.db.insert_test_data(
            [
                fakedb.Builder(id=1, name="b"),
                fakedb.Buildset(id=1),
                fakedb.BuildRequest(id=10, buildsetid=1, builderid=1),
            ]
        )

    @defer.inlineCallbacks
    def waiting(self, slots: int = 1, **arguments: Any) -> Any:
        """Have a build in each slot, which waits for a request, and one more that wants to start."""
        yield self.connect(slots=slots, **arguments)
        child = self.for_builder(StartVM("debian"))
        self.builds = [self.start(using_a_machine(number)) for number in range(slots)]
        for build in self.builds:
            build.run(1)
            step: Any = Trigger(schedulerNames=["s"], waitForFinish=True).get_step_factory().buildStep()
            step.brids = [10]
            step.addCompleteLog = mock.Mock(return_value=defer.succeed(None))
            build.currentStep = step
        self.kvm.told = {"vm_free": 0}
        self.assertFalse(child.isAvailable())
        return child

    def look(self) -> list[str]:
        """Have the worker asked once more, and give what it was told since the last time."""
        self.for_builder_of_the_child().isAvailable()
        self.reactor.advance(10)
        told = [
            call[1].partition("kvm-worker deadlock")[2].strip()
            for call in self.kvm.remoteCalls
            if call[0] == "remotePrint" and call[1].startswith("kvm-worker deadlock")
        ]
        self.kvm.remoteCalls.clear()
        return told

    def for_builder_of_the_child(self) -> Any:
        return self.master.botmaster.builders["b"].workers[0]

    @defer.inlineCallbacks
    def test_it_is_said_once_where_people_look(self) -> Any:
        yield self.waiting(slots=2)
        with mock.patch("buildbot_kvm.deadlock.log.msg") as logged:
            (said,) = self.look()
            self.assertEqual(self.look(), [])
        self.assertIn("2 builds have all machines of worker kvm1 and wait for builds that need one there", said)
        logged.assert_called_once_with(said)
        for build in self.builds:
            build.currentStep.addCompleteLog.assert_called_once_with("deadlock", f"{said}\n")

    @defer.inlineCallbacks
    def test_its_end_is_told(self) -> Any:
        yield self.waiting()
        self.assertEqual(len(self.look()), 1)
        self.builds[0].currentStep = self.builds[0].steps[0]
        self.assertEqual(self.look(), [""])

    @defer.inlineCallbacks
    def test_build_that_goes_on_is_none(self) -> Any:
        yield self.waiting(slots=2)
        self.builds[1].currentStep = self.builds[1].steps[0]
        self.assertEqual(self.look(), [])

    @defer.inlineCallbacks
    def test_machine_of_somebody_else_will_be_free(self) -> Any:
        yield self.waiting()
        self.kvm.told = {"vm_slots": 2, "vm_free": 0}
        self.assertEqual(self.look(), [])

    @defer.inlineCallbacks
    def test_trigger_that_does_not_wait_is_none(self) -> Any:
        yield self.waiting()
        self.builds[0].currentStep.waitForFinish = False
        self.assertEqual(self.look(), [])

    @defer.inlineCallbacks
    def test_child_that_has_begun_is_none(self) -> Any:
        yield self.waiting()
        yield self.master.db.insert_test_data(
            [fakedb.Master(id=1), fakedb.BuildRequestClaim(brid=10, masterid=1, claimed_at=1)]
        )
        self.assertEqual(self.look(), [])

    @defer.inlineCallbacks
    def test_child_that_may_run_elsewhere_is_none(self) -> Any:
        child = yield self.waiting()
        child.builder.workers.append(mock.Mock())
        self.assertEqual(self.look(), [])


class Asking(WorkerCase):
    @defer.inlineCallbacks
    def test_old_answer_is_renewed_before_a_build_starts(self) -> Any:
        yield self.connect()
        self.kvm.told = {"vm_state": "paused"}
        self.reactor.advance(100)
        self.check_starts(0)
        self.reactor.advance(0)
        self.assertEqual((self.questions(), self.woken.call_count), (1, 1))
        self.check_starts(0)

    @defer.inlineCallbacks
    def check_waits_while(self, state: str) -> Any:
        yield self.connect()
        self.reactor.advance(100)
        self.kvm.told = {"vm_state": state}
        asked = []
        for _ in range(60):
            self.check_starts(0)
            self.reactor.advance(1)
            asked.append(self.questions())
        # Each question is followed by a decision, which wants another one, after 1, 2, 4, 8, 10, 10, ... seconds.
        self.assertEqual([second for second, count in enumerate(asked) if count], [0, 1, 3, 7, 15, 25, 35, 45, 55])
        self.kvm.told = {"vm_state": "running"}
        self.woken.reset_mock()
        self.reactor.advance(10)
        self.assertEqual(self.woken.call_count, 1)
        self.check_starts(2)

    def test_paused_worker_is_waited_for(self) -> defer.Deferred[Any]:
        return self.check_waits_while("paused")

    @defer.inlineCallbacks
    def test_draining_worker_that_is_asked_is_shut_down_after_its_builds(self) -> Any:
        yield self.connect()
        (build,) = self.check_starts(2)[:1]
        self.kvm.told = {"vm_state": "draining"}
        self.finish(build)
        self.reactor.advance(0)
        self.check_starts(0)
        self.assertNotIn(("remoteShutdown",), self.kvm.remoteCalls)
        (other,) = (b for wfb in self.worker.workerforbuilders.values() for b in wfb.builder.building)
        self.finish(other)
        self.assertEqual(self.kvm.remoteCalls.count(("remoteShutdown",)), 1)

    @defer.inlineCallbacks
    def test_nobody_asks_while_no_build_waits(self) -> Any:
        yield self.connect()
        for number in range(2):
            self.assertTrue(self.worker.canStartBuild())
            self.start(using_a_machine(number))
        self.reactor.advance(1000)
        self.assertEqual((self.questions(), self.woken.called), (0, False))

    @defer.inlineCallbacks
    def test_waiting_build_that_is_given_up_is_asked_for_once_more(self) -> Any:
        yield self.connect(slots=1, free=0)
        self.check_starts(0)
        for _ in range(100):
            self.reactor.advance(10)
        self.assertEqual((self.questions(), self.woken.call_count), (1, 1))
        # The end of a build is an occasion of Buildbot's own.
        self.finish(self.start(using_a_machine(1)))
        self.reactor.advance(100)
        self.assertEqual((self.questions(), self.woken.call_count), (1, 2))

    @defer.inlineCallbacks
    def test_slot_that_becomes_free_starts_the_build_that_waits(self) -> Any:
        yield self.connect(slots=2, free=0)
        self.check_starts(0)
        self.kvm.told = {"vm_free": 1}
        self.reactor.advance(1)
        self.assertEqual(self.woken.call_count, 1)
        self.check_starts(1)

    @defer.inlineCallbacks
    def test_worker_that_does_not_answer_is_asked_again(self) -> Any:
        yield self.connect(slots=1, free=0)
        self.check_starts(0)
        never: defer.Deferred[Any] = defer.Deferred()
        self.kvm.answers = [never]
        self.reactor.advance(1)
        self.check_starts(0)
        self.reactor.advance(29)
        self.assertEqual((self.questions(), never.called), (1, False))
        self.reactor.advance(1)
        self.kvm.told = {"vm_free": 1}
        self.reactor.advance(10)
        self.assertEqual((self.questions(), self.woken.call_count), (1, 1))
        self.check_starts(1)

    @defer.inlineCallbacks
    def check_answer_is_survived(self, answer: defer.Deferred[Any]) -> Any:
        yield self.connect(slots=1, free=0)
        self.check_starts(0)
        self.kvm.answers = [answer]
        self.reactor.advance(1)
        self.assertEqual((self.questions(), self.woken.called), (1, False))
        self.kvm.told = {"vm_free": 1}
        self.reactor.advance(10)
        self.assertEqual((self.questions(), self.woken.call_count), (1, 1))

    def test_failing_answer_is_survived(self) -> defer.Deferred[Any]:
        return self.check_answer_is_survived(defer.fail(error.ConnectionLost()))

    def test_answer_without_machines_is_survived(self) -> defer.Deferred[Any]:
        return self.check_answer_is_survived(defer.succeed({"version": "4.3.0"}))

    def test_answer_that_is_none_is_survived(self) -> defer.Deferred[Any]:
        return self.check_answer_is_survived(defer.succeed(None))


class Following(WorkerCase):
    @defer.inlineCallbacks
    def connect(self, slots: int | None = 2, free: int | None = None, **arguments: Any) -> Any:
        self.patch(Worker, "follows", True)
        yield super().connect(slots, free, **arguments)

    @defer.inlineCallbacks
    def test_paused_worker_gets_no_builds_at_once_and_goes_on_at_once(self) -> Any:
        yield self.connect()
        self.kvm.becomes("paused")
        self.check_starts(0)
        self.assertEqual(self.woken.call_count, 0)
        self.kvm.becomes("running")
        self.reactor.advance(0)
        self.assertEqual((self.questions(), self.woken.call_count), (1, 1))
        self.check_starts(2)
        self.kvm.becomes("paused")
        self.check_starts(0)

    @defer.inlineCallbacks
    def test_resumed_worker_is_asked_anew_if_it_was_asked_before(self) -> Any:
        yield self.connect()
        self.kvm.becomes("paused")
        self.check_starts(0)
        early: defer.Deferred[Any] = defer.Deferred()
        self.kvm.answers = [early]
        self.reactor.advance(1)
        self.kvm.becomes("running")
        self.reactor.advance(0)
        early.callback({**self.kvm.info, "vm_state": "paused"})
        self.assertEqual((self.questions(), self.woken.call_count), (2, 1))
        self.check_starts(2)

    @defer.inlineCallbacks
    def test_draining_worker_without_builds_is_shut_down_at_once(self) -> Any:
        yield self.connect()
        self.kvm.becomes("draining")
        self.assertEqual(self.kvm.remoteCalls, [("remoteShutdown",)])
        self.check_starts(0)
        self.assertIsNone(self.kvm.change)

    @defer.inlineCallbacks
    def test_draining_worker_is_shut_down_after_its_builds(self) -> Any:
        yield self.connect()
        first, second = self.check_starts(2)
        self.kvm.becomes("draining")
        self.finish(first)
        self.reactor.advance(0)
        self.check_starts(0)
        self.assertNotIn(("remoteShutdown",), self.kvm.remoteCalls)
        self.finish(second)
        self.assertEqual(self.kvm.remoteCalls.count(("remoteShutdown",)), 1)

    @defer.inlineCallbacks
    def test_worker_that_has_asked_to_be_shut_down_is_so_once(self) -> Any:
        yield self.connect()
        self.worker.shutdownRequested()
        self.kvm.becomes("draining")
        self.assertEqual(self.kvm.remoteCalls, [("remoteShutdown",)])

    @defer.inlineCallbacks
    def test_worker_that_drains_while_its_builders_are_attached_is_shut_down_after_that(self) -> Any:
        yield self.connect()
        self.kvm.loseConnection()
        attaching: defer.Deferred[Any] = defer.Deferred()
        self.kvm = Worker(self.worker, {"vm_slots": 2, "vm_free": 2, "vm_state": "running"})
        self.kvm.remoteSetBuilderList = lambda **_: attaching
        self.patch(self.worker.botmaster, "getBuildersForWorker", lambda _: [mock.Mock()])
        attached = self.worker.attached(self.kvm)
        build = self.start(using_a_machine(1))
        self.kvm.becomes("draining")
        self.assertNotIn(("remoteShutdown",), self.kvm.remoteCalls)
        # That is when it is noticed, as nobody says anything of a builder's having been attached.
        build.workerforbuilder.state = States.AVAILABLE
        attaching.callback([])
        yield attached
        self.assertEqual(self.kvm.remoteCalls.count(("remoteShutdown",)), 1)

    @defer.inlineCallbacks
    def test_state_is_understood_as_bytes(self) -> Any:
        yield self.connect()
        assert self.kvm.change is not None
        self.kvm.change.callback(b"draining")
        self.assertEqual(self.kvm.remoteCalls, [("remoteShutdown",)])

    @defer.inlineCallbacks
    def test_worker_without_machines_is_followed_and_has_no_limit(self) -> Any:
        yield self.connect(slots=0)
        self.kvm.becomes("paused")
        self.check_starts(0)
        self.kvm.becomes("running")
        self.reactor.advance(0)
        builds = [self.start(using_a_machine(number)) for number in range(7) if self.worker.canStartBuild()]
        self.assertEqual(len(builds), 7)
        self.kvm.becomes("draining")
        for build in builds:
            self.assertNotIn(("remoteShutdown",), self.kvm.remoteCalls)
            self.finish(build)
        self.assertIn(("remoteShutdown",), self.kvm.remoteCalls)

    @defer.inlineCallbacks
    def test_line_that_is_lost_is_not_followed(self) -> Any:
        yield self.connect()
        change = self.kvm.change
        assert change is not None
        self.kvm.loseConnection()
        self.kvm.remoteCalls.clear()
        change.errback(error.ConnectionLost())
        self.reactor.advance(100)
        self.assertEqual(self.kvm.remoteCalls, [])


class Ending(WorkerCase):
    @defer.inlineCallbacks
    def test_end_of_a_build_is_told_and_the_slots_are_counted_after_it(self) -> Any:
        yield self.connect(slots=1)
        (build,) = self.check_starts(1)
        self.finish(build)
        self.reactor.advance(0)
        self.assertEqual(
            self.kvm.remoteCalls, [("remotePrint", "kvm-worker release 1 builder 1"), ("remoteGetWorkerInfo",)]
        )
        self.check_starts(1)

    @defer.inlineCallbacks
    def test_answer_from_before_the_end_is_renewed(self) -> Any:
        yield self.connect(slots=1)
        (build,) = self.check_starts(1)
        early: defer.Deferred[Any] = defer.Deferred()
        self.kvm.answers = [early]
        self.finish(self.start(using_a_machine(2)))
        self.reactor.advance(0)
        self.finish(build)
        self.kvm.told = {"vm_free": 1}
        early.callback({**self.kvm.info, "vm_free": 0})
        self.assertEqual(self.questions(), 2)
        self.check_starts(1)

    @defer.inlineCallbacks
    def test_build_that_never_got_a_number_is_not_told(self) -> Any:
        yield self.connect()
        build = self.start(using_a_machine(1))
        build.buildid = None  # type: ignore[assignment]
        self.finish(build)
        self.reactor.advance(0)
        self.assertEqual(self.kvm.remoteCalls, [("remoteGetWorkerInfo",)])

    @defer.inlineCallbacks
    def test_worker_that_cannot_be_told_is_no_harm(self) -> Any:
        yield self.connect()
        (build,) = self.check_starts(2)[:1]
        self.kvm.remotePrint = lambda _: defer.fail(error.ConnectionLost())
        self.finish(build)
        self.reactor.advance(0)
        self.assertTrue(self.woken.called)

    @defer.inlineCallbacks
    def test_nothing_is_asked_or_told_when_the_worker_is_gone(self) -> Any:
        yield self.connect(slots=1, free=0)
        self.check_starts(0)
        self.reactor.advance(1)
        self.check_starts(0)
        pending: defer.Deferred[Any] = defer.Deferred()
        self.kvm.answers = [pending]
        self.reactor.advance(2)
        build = self.start(using_a_machine(1))
        self.kvm.loseConnection()
        self.assertTrue(pending.called)
        self.kvm.remoteCalls.clear()
        self.finish(build)
        self.reactor.advance(100)
        self.assertEqual(self.kvm.remoteCalls, [])

    @defer.inlineCallbacks
    def test_worker_that_comes_back_tells_anew(self) -> Any:
        yield self.connect(slots=1, free=0)
        self.kvm.loseConnection()
        yield self.reconnect(slots=4)
        self.check_starts(4)

    @defer.inlineCallbacks
    def test_new_configuration_holds_at_once(self) -> Any:
        yield self.connect(slots=4)
        yield self.worker.reconfigServiceWithSibling(KVMWorker("kvm1", "password", machines_per_build=2))
        self.check_starts(2)

    @defer.inlineCallbacks
    def test_worker_that_leaves_the_configuration_is_asked_no_more(self) -> Any:
        yield self.connect(slots=1, free=0)
        self.check_starts(0)
        yield self.worker.disownServiceParent()
        self.reactor.advance(100)
        self.assertEqual(self.questions(), 0)
