from __future__ import annotations

from typing import Any

from buildbot.config import ConfigErrors
from buildbot.process.properties import Interpolate, Property
from buildbot.process.results import CANCELLED, EXCEPTION, FAILURE, RETRY, SUCCESS, WARNINGS
from buildbot.steps.shell import Compile
from buildbot.test.steps import Expect, ExpectShell
from twisted.internet import defer, error

from buildbot_kvm import VMSetPropertyFromCommand, VMShellCommand, VMShellMixin
from step_case import PYTHON_WORKER, WITHOUT_MACHINES, StepCase, failed


def shell(command: Any, vm: str = "default", console_log: str | None = None, **arguments: Any) -> Expect:
    expected = ExpectShell(workdir="wkdir", command=command, **arguments)
    expected.args["vm"] = vm
    if console_log:
        expected.args["console_log"] = console_log
    return expected


class Running(StepCase):
    def test_command_names_its_machine(self) -> defer.Deferred[Any]:
        return self.check(
            VMShellCommand(command=["make", "check"]), shell(["make", "check"]).exit(0), SUCCESS, "'make check'"
        )

    def test_command_names_its_step(self) -> defer.Deferred[Any]:
        expected = shell("make")
        expected.args["step"] = "compile"
        return self.check(VMShellCommand(command="make", name="compile"), expected.exit(0), SUCCESS, "'make'")

    def test_arguments_of_a_shell_command_are_taken(self) -> defer.Deferred[Any]:
        self.expect_log_file("config", "checking for cc\n")
        step = VMShellCommand(
            command="make",
            vm="builder",
            env={"CC": "gcc"},
            timeout=30,
            maxTime=60,
            logfiles={"config": "config.log"},
            initialStdin="y\n",
            decodeRC={0: SUCCESS, 3: WARNINGS},
        )
        expected = shell(
            "make",
            vm="builder",
            env={"CC": "gcc"},
            timeout=30,
            max_time=60,
            logfiles={"config": "config.log"},
            initial_stdin="y\n",
        )
        return self.check(
            step, expected.log("config", stdout="checking for cc\n").exit(3), WARNINGS, "'make' (warnings)"
        )

    @defer.inlineCallbacks
    def test_arguments_are_rendered(self) -> Any:
        self.prepare(
            VMShellCommand(
                command=["tar", "-xf", Interpolate("%(prop:tarball)s")],
                vm=Property("role"),
                console_log=Interpolate("console-%(prop:role)s"),
            )
        )
        self.build.setProperty("tarball", "hello-1.0.tar.gz", "test")
        self.build.setProperty("role", "tester", "test")
        self.expect_commands(
            shell(["tar", "-xf", "hello-1.0.tar.gz"], vm="tester", console_log="console-tester").exit(0)
        )
        self.expect_outcome(result=SUCCESS, state_string="'tar -xf ...'")
        yield self.run_step()

    def test_console_goes_to_a_log_of_its_own(self) -> defer.Deferred[Any]:
        self.expect_log_file("console", "oom-killer\n")
        return self.check(
            VMShellCommand(command="make", console_log="console"),
            shell("make", console_log="console").log("console", stdout="oom-killer\n").exit(0),
            SUCCESS,
            "'make'",
        )

    def test_failing_code_is_a_failure(self) -> defer.Deferred[Any]:
        return self.check(VMShellCommand(command="make"), shell("make").exit(2), FAILURE, "'make' (failure)")

    def test_time_out_is_the_codes_failure(self) -> defer.Deferred[Any]:
        return self.check(
            VMShellCommand(command="make"),
            shell("make").update("failure_reason", "timeout").exit(-1),
            FAILURE,
            "'make' (failure) (timed out)",
        )

    def test_machine_that_died_is_not_the_codes_failure(self) -> defer.Deferred[Any]:
        return self.check(
            VMShellCommand(command="make", decodeRC={-1: SUCCESS}, descriptionDone="made"),
            failed(shell("make"), "vm_lost", "VM default in slot 0 died: qemu was killed by signal 9", rc=-1),
            RETRY,
            "VM default in slot 0 died: qemu was killed by signal 9 (retry)",
        )

    def test_machine_that_never_ran_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check(
            VMShellCommand(command="make"),
            failed(shell("make"), "vm_not_running", "no VM default: start it first"),
            EXCEPTION,
            "no VM default: start it first (exception)",
        )

    @defer.inlineCallbacks
    def test_interrupted_command_is_cancelled(self) -> Any:
        step = self.prepare(VMShellCommand(command="make"))
        expected = shell("make")
        expected.interrupted = True
        expected.behavior(lambda _: step.interrupt("stop it"))
        self.expect_commands(expected.exit(-1))
        self.interrupt_nth_remote_command(0)
        self.expect_outcome(result=CANCELLED)
        yield self.run_step()

    @defer.inlineCallbacks
    def test_lost_connection_is_tried_again(self) -> Any:
        self.prepare(VMShellCommand(command="make"))
        self.expect_commands(shell("make").error(error.ConnectionLost()))
        self.expect_outcome(result=RETRY)
        yield self.run_step()

    @defer.inlineCallbacks
    def test_nothing_is_run_on_the_host_of_a_worker_without_machines(self) -> Any:
        self.prepare(VMShellCommand(command="make"), worker=PYTHON_WORKER)
        self.expect_outcome(result=EXCEPTION, state_string=WITHOUT_MACHINES)
        yield self.run_step()

    def test_mistakes_show_when_the_configuration_is_read(self) -> None:
        for message, arguments in [
            ("VMShellCommand: the argument command is missing", {}),
            ("invalid VMShellCommand argument comand", {"command": "make", "comand": "make"}),
            (
                "VMShellCommand: console_log 'kernel' is the name of another log of this step",
                {"command": "make", "logfiles": {"kernel": "kern.log"}, "console_log": "kernel"},
            ),
        ]:
            with self.assertRaises(ConfigErrors) as refused:
                VMShellCommand(**arguments)
            self.assertEqual(refused.exception.errors, [message])

    def test_any_shell_step_can_be_put_into_a_machine(self) -> defer.Deferred[Any]:
        class VMCompile(VMShellMixin, Compile):
            pass

        return self.check(
            VMCompile(command="make", vm="builder"),
            shell("make", vm="builder").stdout("x.c:1: warning: unused\n").exit(0),
            WARNINGS,
            "compile (warnings)",
        )


class SettingProperties(StepCase):
    def test_property_is_what_the_command_printed(self) -> defer.Deferred[Any]:
        self.expect_property("tarball", "hello-1.0.tar.gz")
        return self.check(
            VMSetPropertyFromCommand(command="ls *.tar.gz", property="tarball", vm="makedist"),
            shell("ls *.tar.gz", vm="makedist").stdout("hello-1.0.tar.gz\n").exit(0),
            SUCCESS,
            "property 'tarball' set",
        )

    def test_extract_fn_gets_what_the_command_printed(self) -> defer.Deferred[Any]:
        self.expect_property("lines", 2)
        return self.check(
            VMSetPropertyFromCommand(command="ls", extract_fn=lambda _rc, out, _err: {"lines": out.count("\n")}),
            shell("ls").stdout("a\nb\n").exit(0),
            SUCCESS,
            "property 'lines' set",
        )

    def test_failing_command_sets_nothing(self) -> defer.Deferred[Any]:
        self.expect_no_property("tarball")
        return self.check(
            VMSetPropertyFromCommand(command="ls", property="tarball"), shell("ls").exit(2), FAILURE, "'ls' (failure)"
        )

    def test_half_an_output_of_a_machine_that_died_sets_nothing(self) -> defer.Deferred[Any]:
        self.expect_no_property("first")
        return self.check(
            VMSetPropertyFromCommand(command="ls", extract_fn=lambda _rc, out, _err: {"first": out}),
            failed(shell("ls").stdout("hel"), "vm_lost", "VM default died", rc=-1),
            RETRY,
            "VM default died (retry)",
        )

    @defer.inlineCallbacks
    def test_half_an_output_of_an_interrupted_command_sets_nothing(self) -> Any:
        step = self.prepare(VMSetPropertyFromCommand(command="ls", property="tarball"))
        expected = shell("ls").stdout("hel")
        expected.interrupted = True
        expected.behavior(lambda _: step.interrupt("stop it"))
        self.expect_commands(expected.exit(-1))
        self.interrupt_nth_remote_command(0)
        self.expect_no_property("tarball")
        self.expect_outcome(result=CANCELLED)
        yield self.run_step()
