from __future__ import annotations

from typing import Any

from buildbot.config import ConfigErrors
from buildbot.process.properties import Interpolate, Property
from buildbot.process.results import CANCELLED, EXCEPTION, RETRY, SUCCESS
from buildbot.test.steps import Expect
from twisted.internet import defer, error

from buildbot_kvm import StartVM
from step_case import BUILD_ID, PYTHON_WORKER, WITHOUT_MACHINES, StepCase, failed, retries

READY = {
    "vm": "default",
    "slot": 1,
    "ssh_port": 2223,
    "pid": 4711,
    "image": "debian-build",
    "generation": "base",
    "how": "boot",
    "seconds": 6.78,
}


def vm_start(**different: Any) -> Expect:
    arguments = {"vm": "default", "image": "debian-build", "mode": "fresh", "bind": False, "build": BUILD_ID}
    return Expect("vm_start", {**arguments, **different})


def ready(**different: Any) -> Expect:
    return vm_start(**different).update("vm", READY).exit(0)


class Starting(StepCase):
    def check_ready(self, step: StartVM, expected: Expect, vm: str = "VM debian-build") -> defer.Deferred[Any]:
        return self.check(step, expected, SUCCESS, f"{vm} ready in slot 1 (boot, 6.8 s)")

    def test_image_alone_starts_a_fresh_machine(self) -> defer.Deferred[Any]:
        return self.check_ready(StartVM("debian-build"), ready())

    def check_how(self, how: str, seconds: float, said: str) -> defer.Deferred[Any]:
        self.expect_property("vm_how", how, "StartVM")
        vm = {**READY, "how": how, "seconds": seconds}
        expected = vm_start().update("vm", vm).exit(0)
        return self.check(StartVM("debian-build"), expected, SUCCESS, f"VM debian-build ready in slot 1 ({said})")

    def test_clone_is_called_one(self) -> defer.Deferred[Any]:
        return self.check_how("clone", 1.04, "clone, 1.0 s")

    def test_warm_machine_is_there_in_milliseconds(self) -> defer.Deferred[Any]:
        return self.check_how("warm", 0.0412, "warm, 41 ms")

    def test_machine_is_told_as_properties(self) -> defer.Deferred[Any]:
        for key in ("image", "generation", "how", "seconds", "slot", "ssh_port"):
            self.expect_property(f"vm_{key}", READY[key], "StartVM")
        return self.check_ready(StartVM("debian-build"), ready())

    def test_address_on_a_network_is_a_property(self) -> defer.Deferred[Any]:
        self.expect_property("vm_server_address", "10.21.0.7", "StartVM")
        vm = {**READY, "address": "10.21.0.7"}
        return self.check_ready(
            StartVM("debian-build", vm="server", network="lan"),
            vm_start(vm="server", network="lan").update("vm", vm).exit(0),
            "VM server (debian-build)",
        )

    def test_properties_of_a_named_machine_bear_its_name(self) -> defer.Deferred[Any]:
        self.expect_property("vm_makedist_slot", 1, "StartVM")
        self.expect_property("vm_makedist_ssh_port", 2223, "StartVM")
        self.expect_no_property("vm_slot")
        return self.check_ready(
            StartVM("debian-build", vm="makedist"), ready(vm="makedist"), "VM makedist (debian-build)"
        )

    def test_every_argument_is_sent_under_its_wire_name(self) -> defer.Deferred[Any]:
        step = StartVM(
            image="debian-build",
            mode="persistent",
            cpus=2,
            memory=1024,
            timeout=90,
            bind=True,
            network="lan",
            ttl=600,
        )
        return self.check_ready(
            step, ready(mode="persistent", cpus=2, memory_mib=1024, timeout=90, bind=True, network="lan", ttl=600)
        )

    @defer.inlineCallbacks
    def test_arguments_are_rendered_and_numbers_may_be_text(self) -> Any:
        step = StartVM(
            image=Interpolate("debian-%(prop:flavour)s"),
            vm=Property("role"),
            mode=Property("mode"),
            cpus=Interpolate("%(prop:cpus)s"),
            memory=Property("memory"),
            timeout=Property("timeout"),
            bind=Property("bind"),
            network=Property("network"),
            ttl=Property("ttl"),
        )
        self.prepare(step)
        values = {"flavour": "plain", "role": "tester", "mode": "persistent", "cpus": "4"}
        for name, value in {
            **values,
            "memory": 512,
            "timeout": 30,
            "bind": True,
            "network": "lan",
            "ttl": 60,
        }.items():
            self.build.setProperty(name, value, "test")
        self.expect_commands(
            ready(
                image="debian-plain",
                vm="tester",
                mode="persistent",
                cpus=4,
                memory_mib=512,
                timeout=30,
                bind=True,
                network="lan",
                ttl=60,
            )
        )
        self.expect_outcome(result=SUCCESS, state_string="VM tester (debian-plain) ready in slot 1 (boot, 6.8 s)")
        yield self.run_step()

    def test_console_goes_to_a_log_of_its_own(self) -> defer.Deferred[Any]:
        self.expect_log_file("console", "Linux version 6.1\n")
        expected = vm_start(console_log="console").log("console", stdout="Linux version 6.1\n")
        return self.check_ready(StartVM("debian-build", console_log="console"), expected.update("vm", READY).exit(0))

    @defer.inlineCallbacks
    def test_silent_console_leaves_no_empty_log(self) -> Any:
        yield self.check_ready(StartVM("debian-build", console_log="console"), ready(console_log="console"))
        self.assertEqual(list(self.get_nth_step(0).logs), ["stdio"])

    def test_words_of_the_configuration_win(self) -> defer.Deferred[Any]:
        return self.check(StartVM("debian-build", descriptionDone="got one"), ready(), SUCCESS, "got one")

    def test_answer_without_details_is_enough(self) -> defer.Deferred[Any]:
        return self.check(StartVM("debian-build"), vm_start().exit(0), SUCCESS, "VM debian-build ready")


class NotStarting(StepCase):
    def check_failed(self, reason: str, result: int, word: str) -> defer.Deferred[Any]:
        expected = failed(vm_start(), reason, "this happened: do that")
        return self.check(StartVM("debian-build"), expected, result, f"this happened: do that ({word})")

    def test_unknown_image_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_no_such_image", EXCEPTION, "exception")

    def test_bad_arguments_are_an_exception(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_bad_arguments", EXCEPTION, "exception")

    def test_full_pool_is_tried_again(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_pool_full", RETRY, "retry")

    def test_failed_boot_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_boot_failed", EXCEPTION, "exception")

    def test_machine_lost_while_booting_is_tried_again(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_lost", RETRY, "retry")

    def test_machine_of_that_name_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_already_running", EXCEPTION, "exception")

    def test_reason_of_a_later_worker_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_moon_phase", EXCEPTION, "exception")

    def test_failure_without_a_reason_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check(
            StartVM("debian-build"),
            vm_start().exit(1),
            EXCEPTION,
            "the worker gives no more than this reason: vm_start ended with 1 (exception)",
        )

    def test_failure_without_a_sentence_shows_its_reason(self) -> defer.Deferred[Any]:
        return self.check(
            StartVM("debian-build"),
            vm_start().update("failure_reason", "vm_lost").exit(1),
            RETRY,
            "the worker gives no more than this reason: vm_lost (retry)",
        )

    def check_sentence(self, text: str, sentence: str) -> defer.Deferred[Any]:
        return self.check(
            StartVM("debian-build"), failed(vm_start(), "vm_boot_failed", text), EXCEPTION, f"{sentence} (exception)"
        )

    def test_console_is_left_to_the_log(self) -> defer.Deferred[Any]:
        return self.check_sentence(
            "qemu exited with 1: no disk; its console's last lines:\nLinux\npanic", "qemu exited with 1: no disk"
        )

    def test_announcement_without_a_clause_of_its_own_stays(self) -> defer.Deferred[Any]:
        return self.check_sentence("qemu exited with 1:\nno disk", "qemu exited with 1")

    def test_second_line_that_is_not_announced_is_left_to_the_log(self) -> defer.Deferred[Any]:
        return self.check_sentence("qemu exited; see there\nno disk", "qemu exited; see there")

    def test_long_sentence_is_cut(self) -> defer.Deferred[Any]:
        return self.check_sentence("x" * 1000, "x" * 299 + "…")

    @defer.inlineCallbacks
    def test_retries_end(self) -> Any:
        yield self.earlier_builds(*retries(3))
        yield self.check(
            StartVM("debian-build"),
            failed(vm_start(), "vm_pool_full", "all slots taken"),
            EXCEPTION,
            "all slots taken; given up after 4 tries (exception)",
        )

    @defer.inlineCallbacks
    def test_only_builds_that_were_retried_count(self) -> Any:
        yield self.earlier_builds(*retries(2), EXCEPTION, SUCCESS, CANCELLED)
        yield self.check_failed("vm_pool_full", RETRY, "retry")

    def test_no_retries_can_be_asked_for(self) -> defer.Deferred[Any]:
        return self.check(
            StartVM("debian-build", max_retries=0),
            failed(vm_start(), "vm_pool_full", "all slots taken"),
            EXCEPTION,
            "all slots taken; given up after 1 try (exception)",
        )

    @defer.inlineCallbacks
    def test_number_that_renders_to_none_is_refused_before_anything_starts(self) -> Any:
        self.prepare(StartVM("debian-build", cpus=Property("cpus")))
        self.build.setProperty("cpus", "many", "test")
        self.expect_outcome(
            result=EXCEPTION,
            state_string="cpus is 'many' and must be a whole number above 0 (exception)",
        )
        yield self.run_step()

    @defer.inlineCallbacks
    def test_interrupted_start_is_cancelled_whatever_the_worker_says(self) -> Any:
        step = self.prepare(StartVM("debian-build"))
        expected = Expect("vm_start", vm_start().args, interrupted=True)
        expected.behavior(lambda _: step.interrupt("not wanted any more"))
        self.expect_commands(failed(expected, "vm_lost", "killed"))
        self.interrupt_nth_remote_command(0)
        self.expect_outcome(result=CANCELLED, state_string="starting VM debian-build (cancelled)")
        yield self.run_step()

    @defer.inlineCallbacks
    def test_lost_connection_is_tried_again(self) -> Any:
        self.prepare(StartVM("debian-build"))
        self.expect_commands(vm_start().error(error.ConnectionLost()))
        self.expect_outcome(result=RETRY, state_string="starting VM debian-build (retry)")
        yield self.run_step()

    @defer.inlineCallbacks
    def test_worker_without_machines_is_named(self) -> Any:
        self.prepare(StartVM("debian-build"), worker=PYTHON_WORKER)
        self.expect_outcome(result=EXCEPTION, state_string=WITHOUT_MACHINES)
        yield self.run_step()


class Configuring(StepCase):
    def check_refused(self, message: str, **arguments: Any) -> None:
        with self.assertRaises(ConfigErrors) as refused:
            StartVM(**arguments)
        self.assertEqual(refused.exception.errors, [message])

    def test_mistakes_show_when_the_configuration_is_read(self) -> None:
        self.check_refused("StartVM: image is '' and must be a name", image="")
        self.check_refused("StartVM: vm is None and must be a name", image="i", vm=None)
        self.check_refused("StartVM: mode is 'new' and must be one of fresh, persistent", image="i", mode="new")
        self.check_refused("StartVM: cpus is 0 and must be a number, 1 or more", image="i", cpus=0)
        self.check_refused("StartVM: memory is '2G' and must be a number, 1 or more", image="i", memory="2G")
        self.check_refused("StartVM: network is 1 and must be a name", image="i", network=1)
        self.check_refused("StartVM: ttl is 0 and must be a number, 1 or more", image="i", ttl=0)
        self.check_refused("StartVM: max_retries is -1 and must be a number, 0 or more", image="i", max_retries=-1)
        self.check_refused(
            "StartVM: console_log 'stdio' is the name of another log of this step", image="i", console_log="stdio"
        )

    def test_unknown_argument_is_refused(self) -> None:
        with self.assertRaises(ConfigErrors):
            StartVM("debian-build", memroy=512)
