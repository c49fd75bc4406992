from __future__ import annotations

from typing import Any

from buildbot.process.results import EXCEPTION, SKIPPED, SUCCESS, WARNINGS
from buildbot.test.steps import Expect
from twisted.internet import defer

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
