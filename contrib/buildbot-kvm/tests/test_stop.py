from __future__ import annotations

from typing import Any

from buildbot.config import ConfigErrors
from buildbot.locks import MasterLock
from buildbot.process.properties import Interpolate
from buildbot.process.results import CANCELLED, EXCEPTION, FAILURE, RETRY, SKIPPED, SUCCESS, WARNINGS
from buildbot.test.steps import Expect
from twisted.internet import defer
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from buildbot_kvm import StopVM
from step_case import PYTHON_WORKER, StepCase, failed


def vm_stop(**different: Any) -> Expect:
    return Expect("vm_stop", {"vm": "default", "missing_ok": True, **different})


class Stopping(StepCase):
    def test_machine_is_stopped(self) -> defer.Deferred[Any]:
        stopped = {"vm": "default", "slot": 1, "how": "guest", "seconds": 1.25}
        return self.check(StopVM(), vm_stop().update("vm", stopped).exit(0), SUCCESS, "VM stopped (guest, 1.2 s)")

    def test_arguments_are_sent(self) -> defer.Deferred[Any]:
        stopped = {"vm": "makedist", "slot": 0, "how": "quit", "seconds": 20}
        return self.check(
            StopVM("makedist", timeout=20, console_log="console"),
            vm_stop(vm="makedist", timeout=20, console_log="console").update("vm", stopped).exit(0),
            SUCCESS,
            "VM makedist stopped (quit, 20.0 s)",
        )

    def test_nothing_to_stop_is_fine(self) -> defer.Deferred[Any]:
        return self.check(StopVM(), vm_stop().exit(0), SKIPPED, "no VM to stop")

    @defer.inlineCallbacks
    def test_worker_without_machines_has_nothing_to_stop(self) -> Any:
        self.prepare(StopVM("makedist"), worker=PYTHON_WORKER)
        self.expect_outcome(result=SKIPPED, state_string="no VM makedist to stop")
        yield self.run_step()

    def check_failed(self, reason: str, result: int, word: str) -> defer.Deferred[Any]:
        return self.check(StopVM(), failed(vm_stop(), reason, "it hangs"), result, f"it hangs ({word})")

    def test_machine_that_cannot_be_stopped_does_not_spoil_the_build(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_stop_failed", WARNINGS, "warnings")

    def test_machine_that_had_died_does_not_spoil_the_build(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_lost", WARNINGS, "warnings")

    def test_bad_arguments_are_an_exception(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_bad_arguments", EXCEPTION, "exception")

    def test_step_runs_whatever_happened_before(self) -> None:
        self.assertEqual((StopVM().alwaysRun, StopVM().haltOnFailure), (True, False))


SAVED = {"vm": "default", "slot": 1, "how": "guest command", "seconds": 3.21, "image": "cache", "generation": 4}
STOPPED = {"vm": "default", "slot": 1, "how": "quit", "seconds": 0.02}
KEPT = {
    "vm": "default",
    "slot": 1,
    "how": "kept",
    "seconds": 0.01,
    "seconds_kept": 3600,
    "login": "ssh -p 2223 -i /k buildbot@127.0.0.1",
}
#: The build's clock begins at midnight.
KEPT_SUMMARY = "VM kept until 01:00 UTC; on the host of w1: ssh -p 2223 -i /k buildbot@127.0.0.1"


def stop_while_it_begins(case: StepCase, step: StopVM, reason: str | Failure) -> None:
    """Have the build stopped when the step runs and the worker has not been told yet."""
    add_log = step.addLog

    def stopped(name: str) -> Any:
        case.build.stopped = True
        step.interrupt(reason)
        return add_log(name)

    case.patch(step, "addLog", stopped)


class StoppedMeanwhile(StepCase):
    """A user stops the build once it is at its StopVM, or for the second time."""

    @defer.inlineCallbacks
    def test_machine_is_stopped_if_the_step_only_begins(self) -> Any:
        stop_while_it_begins(self, self.prepare(StopVM()), "not wanted")
        self.expect_commands(vm_stop().update("vm", STOPPED).exit(0))
        self.expect_outcome(result=SUCCESS, state_string="VM stopped (quit, 20 ms)")
        yield self.run_step()

    @defer.inlineCallbacks
    def test_machine_is_stopped_if_the_step_has_not_begun(self) -> Any:
        step = self.prepare(StopVM())
        self.expect_commands(vm_stop().update("vm", STOPPED).exit(0))
        self.expect_outcome(result=SUCCESS, state_string="VM stopped (quit, 20 ms)")
        yield step.interrupt("not wanted")
        yield self.run_step()

    @defer.inlineCallbacks
    def test_command_that_runs_is_interrupted(self) -> Any:
        step = self.prepare(StopVM())
        expected = Expect("vm_stop", vm_stop().args, interrupted=True)
        self.expect_commands(expected.behavior(lambda _: step.interrupt("not wanted")).exit(1))
        self.interrupt_nth_remote_command(0)
        self.expect_outcome(result=CANCELLED)
        yield self.run_step()

    @defer.inlineCallbacks
    def test_line_that_is_lost_ends_the_step(self) -> Any:
        stop_while_it_begins(self, self.prepare(StopVM()), Failure(ConnectionLost()))
        self.expect_outcome(result=CANCELLED)
        yield self.run_step()

    @defer.inlineCallbacks
    def test_wait_for_a_lock_is_given_up(self) -> Any:
        step = self.prepare(StopVM(locks=[MasterLock("disk").access("exclusive")]))
        yield step.addStep()
        yield step.interrupt("not wanted")
        self.assertTrue(step.stopped)


class StoppingAfter(StepCase):
    """What the build has come to decides."""

    @defer.inlineCallbacks
    def check_after(
        self, results: int | None, step: StopVM, expected: Expect, result: int, summary: str, stopped: bool = False
    ) -> Any:
        self.prepare(step)
        self.build.results = results
        self.build.stopped = stopped
        self.expect_commands(expected)
        self.expect_outcome(result=result, state_string=summary)
        yield self.run_step()


class Saving(StoppingAfter):
    def check_saved(self, results: int) -> defer.Deferred[Any]:
        self.expect_property("vm_saved_generation", 4, "StopVM")
        return self.check_after(
            results,
            StopVM(save="cache"),
            vm_stop(missing_ok=False, save="cache").update("vm", SAVED).exit(0),
            SUCCESS,
            "VM saved as generation 4 of cache (guest command, 3.2 s)",
        )

    def test_successful_build_is_saved(self) -> defer.Deferred[Any]:
        return self.check_saved(SUCCESS)

    def test_warnings_do_no_harm(self) -> defer.Deferred[Any]:
        return self.check_saved(WARNINGS)

    def check_not_saved(self, results: int, stopped: bool = False) -> defer.Deferred[Any]:
        self.expect_no_property("vm_saved_generation")
        return self.check_after(
            results,
            StopVM(save="cache"),
            vm_stop().update("vm", STOPPED).exit(0),
            SUCCESS,
            "VM stopped (quit, 20 ms), not saved as the build did not succeed",
            stopped,
        )

    def test_failed_build_publishes_nothing(self) -> defer.Deferred[Any]:
        return self.check_not_saved(FAILURE)

    def test_exception_publishes_nothing(self) -> defer.Deferred[Any]:
        return self.check_not_saved(EXCEPTION)

    def test_build_that_is_tried_again_publishes_nothing(self) -> defer.Deferred[Any]:
        return self.check_not_saved(RETRY)

    def test_cancelled_build_publishes_nothing(self) -> defer.Deferred[Any]:
        return self.check_not_saved(CANCELLED)

    def test_build_that_is_being_stopped_publishes_nothing(self) -> defer.Deferred[Any]:
        return self.check_not_saved(SUCCESS, stopped=True)

    @defer.inlineCallbacks
    def test_build_that_is_stopped_while_the_step_begins_publishes_nothing(self) -> Any:
        stop_while_it_begins(self, self.prepare(StopVM(save="cache")), "not wanted")
        self.expect_no_property("vm_saved_generation")
        self.expect_commands(vm_stop().update("vm", STOPPED).exit(0))
        self.expect_outcome(SUCCESS, "VM stopped (quit, 20 ms), not saved as the build did not succeed")
        yield self.run_step()

    @defer.inlineCallbacks
    def test_property_of_a_named_machine_bears_its_name(self) -> Any:
        self.expect_property("vm_base_saved_generation", 4, "StopVM")
        yield self.check_after(
            SUCCESS,
            StopVM("base", save=Interpolate("%(kw:image)s", image="cache")),
            vm_stop(vm="base", missing_ok=False, save="cache").update("vm", SAVED).exit(0),
            SUCCESS,
            "VM base saved as generation 4 of cache (guest command, 3.2 s)",
        )

    def check_failed(self, reason: str, result: int, word: str) -> defer.Deferred[Any]:
        return self.check_after(
            SUCCESS,
            StopVM(save="cache"),
            failed(vm_stop(missing_ok=False, save="cache"), reason, "it did not work"),
            result,
            f"it did not work ({word})",
        )

    def test_machine_that_cannot_be_saved_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_save_failed", EXCEPTION, "exception")

    def test_machine_that_is_not_there_to_be_saved_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_not_running", EXCEPTION, "exception")

    def test_machine_that_died_before_it_was_saved_is_tried_again(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_lost", RETRY, "retry")


class Keeping(StoppingAfter):
    @defer.inlineCallbacks
    def check_kept(self, results: int, keep: Any = True, seconds: int = 3600) -> Any:
        yield self.check_after(
            results,
            StopVM(keep_on_failure=keep),
            vm_stop(keep=seconds).update("vm", KEPT).exit(0),
            SUCCESS,
            KEPT_SUMMARY,
        )
        self.assertIn(f"{KEPT_SUMMARY}\n", self.get_nth_step(0).logs["stdio"].header)

    def test_failed_builds_machine_is_kept_for_an_hour(self) -> defer.Deferred[Any]:
        return self.check_kept(FAILURE)

    def test_an_exceptions_too(self) -> defer.Deferred[Any]:
        return self.check_kept(EXCEPTION)

    def test_time_is_given_in_seconds(self) -> defer.Deferred[Any]:
        return self.check_kept(FAILURE, keep=60, seconds=60)

    def check_not_kept(self, results: int, keep: Any = True, stopped: bool = False) -> defer.Deferred[Any]:
        return self.check_after(
            results,
            StopVM(keep_on_failure=keep),
            vm_stop().update("vm", STOPPED).exit(0),
            SUCCESS,
            "VM stopped (quit, 20 ms)",
            stopped,
        )

    def test_successful_builds_machine_is_not_kept(self) -> defer.Deferred[Any]:
        return self.check_not_kept(SUCCESS)

    def test_builds_that_are_tried_again_leave_none(self) -> defer.Deferred[Any]:
        return self.check_not_kept(RETRY)

    def test_cancelled_builds_leave_none(self) -> defer.Deferred[Any]:
        return self.check_not_kept(CANCELLED)

    def test_builds_that_are_being_stopped_leave_none(self) -> defer.Deferred[Any]:
        return self.check_not_kept(FAILURE, stopped=True)

    def test_keeping_can_be_switched_off(self) -> defer.Deferred[Any]:
        return self.check_not_kept(FAILURE, keep=False)

    def test_failed_build_is_kept_and_not_saved(self) -> defer.Deferred[Any]:
        return self.check_after(
            FAILURE,
            StopVM(keep_on_failure=True, save="cache"),
            vm_stop(keep=3600).update("vm", KEPT).exit(0),
            SUCCESS,
            KEPT_SUMMARY,
        )

    def test_machine_that_had_died_does_not_spoil_the_build(self) -> defer.Deferred[Any]:
        return self.check_after(
            FAILURE,
            StopVM(keep_on_failure=True),
            failed(vm_stop(keep=3600), "vm_lost", "it died"),
            WARNINGS,
            "it died (warnings)",
        )


class Configuring(StepCase):
    def test_mistakes_show_when_the_configuration_is_read(self) -> None:
        for message, arguments in [
            ("StopVM: keep_on_failure is 0 and must be a number, 1 or more", {"keep_on_failure": 0}),
            ("StopVM: keep_on_failure is '1h' and must be a number, 1 or more", {"keep_on_failure": "1h"}),
            ("StopVM: save is '' and must be a name", {"save": ""}),
        ]:
            with self.assertRaises(ConfigErrors) as refused:
                StopVM(**arguments)
            self.assertEqual(refused.exception.errors, [message])
