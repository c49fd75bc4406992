from __future__ import annotations

from typing import Any

from buildbot.process.results import EXCEPTION, RETRY, SUCCESS
from buildbot.test.steps import Expect
from twisted.internet import defer

from buildbot_kvm import RebootVM
from step_case import PYTHON_WORKER, WITHOUT_MACHINES, StepCase, failed


def vm_reboot(**different: Any) -> Expect:
    return Expect("vm_reboot", {"vm": "default", **different})


class Rebooting(StepCase):
    def test_machine_is_rebooted(self) -> defer.Deferred[Any]:
        answer = {"vm": "default", "slot": 1, "seconds": 40.0, "reboot_seconds": 8.25}
        return self.check(RebootVM(), vm_reboot().update("vm", answer).exit(0), SUCCESS, "VM rebooted (8.2 s)")

    def test_arguments_are_sent(self) -> defer.Deferred[Any]:
        return self.check(
            RebootVM("server", timeout=90, console_log="console"),
            vm_reboot(vm="server", timeout=90, console_log="console").exit(0),
            SUCCESS,
            "VM server rebooted",
        )

    def check_failed(self, reason: str, result: int, word: str) -> defer.Deferred[Any]:
        return self.check(RebootVM(), failed(vm_reboot(), reason, "it did not come back"), result, word)

    def test_machine_that_does_not_come_back_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_reboot_failed", EXCEPTION, "it did not come back (exception)")

    def test_machine_that_dies_is_tried_again(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_lost", RETRY, "it did not come back (retry)")

    @defer.inlineCallbacks
    def test_worker_without_machines_is_named(self) -> Any:
        self.prepare(RebootVM(), worker=PYTHON_WORKER)
        self.expect_outcome(result=EXCEPTION, state_string=WITHOUT_MACHINES)
        yield self.run_step()

    def test_build_does_not_go_on_without_it(self) -> None:
        self.assertTrue(RebootVM().haltOnFailure)
