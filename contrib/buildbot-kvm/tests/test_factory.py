from __future__ import annotations

from typing import Any, ClassVar

from buildbot.config import ConfigErrors
from buildbot.plugins import steps, util
from buildbot.process.buildstep import BuildStep, CommandMixin
from buildbot.process.factory import BuildFactory, GNUAutoconf
from buildbot.process.remotecommand import RemoteCommand
from buildbot.process.results import CANCELLED, EXCEPTION, FAILURE, RETRY, SKIPPED, SUCCESS, WARNINGS
from twisted.internet import defer
from twisted.trial import unittest

from build_case import SUCCEEDED, Answer, BuildCase, vm_failed
from buildbot_kvm import StartVM, StopVM, VMCopyOut, VMShellCommand, VMShellMixin, in_vm, on_host, step_in_vm

LOST = vm_failed("vm_lost", "VM default in slot 0 died: qemu was killed by signal 9")


def shell(command: str = "make", **arguments: Any) -> Any:
    return steps.ShellCommand(name=command, command=command, **arguments)


def at_shell(answer: Answer) -> Any:
    """Answer the first shell command so, and all others as the worker of a VM that is gone."""
    answers = [answer]

    def next_answer(name: str, _args: Any) -> Answer | None:
        if name != "shell":
            return None
        return answers.pop() if answers else vm_failed("vm_not_running", "no VM default: start it first")

    return next_answer


class Adding(BuildStep):
    """Adds steps to its build, as a step that reads them from a file of the project."""

    name = "adding"

    async def _run(self) -> int:
        self.build.addStepsAfterLastStep([shell("last")])
        self.build.addStepsAfterCurrentStep([shell("next"), VMShellCommand(name="own", command="own", vm="other")])
        return int(SUCCESS)

    def run(self) -> Any:
        return defer.ensureDeferred(self._run())


class AddingInMachine(VMShellMixin, Adding):
    """The same, of a class that says itself that it is in a machine."""


class ChoosingFactory(BuildFactory):
    """Gives each build steps of its own."""

    def newBuild(self, *args: Any, **kwargs: Any) -> Any:
        build = super().newBuild(*args, **kwargs)
        build.setStepFactories([shell("chosen").get_step_factory(), on_host(shell("there"))])
        return build


class Forgiving(CommandMixin, BuildStep):
    """Takes whatever goes wrong for its own failure."""

    name = "forgiving"

    @defer.inlineCallbacks
    def run(self) -> Any:
        try:
            yield self.runCommand(RemoteCommand("shell", {"command": "x", "workdir": "build"}))
        except Exception:
            return FAILURE
        return SUCCESS


class Wrapping(Forgiving):
    """Makes an exception of its own of whatever goes wrong."""

    @defer.inlineCallbacks
    def run(self) -> Any:
        result = yield super().run()
        if result == FAILURE:
            raise RuntimeError("something went wrong")
        return result


class Prompt(BuildStep):
    """Gives its result at once, and has names that are ours, too."""

    name = "prompt"
    vm = summary = max_retries = console_log = own_results = "mine"

    def __init__(self, **kwargs: Any) -> None:
        self.arguments = kwargs
        super().__init__()

    def log_console(self) -> None:
        raise AssertionError

    _run = _run_command = _result_of = log_console

    def run(self) -> int:
        assert (self.vm, self.summary, self.max_retries, self.arguments) == ("mine", "mine", "mine", {"vm": 3})
        return int(WARNINGS)


class Building(BuildCase):
    @defer.inlineCallbacks
    def check(self, factory: BuildFactory, commands: list[Any], results: list[Any], result: int = SUCCESS) -> Any:
        build = yield self.run_build(factory)
        self.assertEqual((self.commands, self.results(build), build.results), (commands, results, result))
        return build

    def check_inside(
        self, things: list[Any], commands: list[Any], results: list[Any], result: int = SUCCESS
    ) -> defer.Deferred[Any]:
        """Compare what goes on between the machine's start and its end."""
        return self.check(
            in_vm(things, "debian"),
            [("vm_start", "default"), *commands, ("vm_stop", "default")],
            [("start-vm", "success"), *results, ("stop-vm", "skipped")],
            result,
        )

    def test_each_command_of_each_step_is_for_the_machine(self) -> defer.Deferred[Any]:
        return self.check_inside(
            [
                shell(),
                steps.MakeDirectory(dir="d"),
                steps.CopyDirectory(src="a", dest="b"),
                steps.RemoveDirectory(dir="d"),
                steps.SetPropertyFromCommand(command="ls", property="files"),
                steps.ShellSequence([util.ShellArg("a"), util.ShellArg("b")], name="sequence"),
            ],
            [
                *[(name, "default") for name in ("shell", "mkdir", "cpdir", "rmdir", "shell")],
                *[("shell", "default")] * 2,
            ],
            [
                (name, "success")
                for name in ("make", "MakeDirectory", "CopyDirectory", "RemoveDirectory", "setproperty", "sequence")
            ],
        )

    @defer.inlineCallbacks
    def test_compound_step_stays_in_the_machine(self) -> Any:
        def answer(name: str, args: Any) -> Answer | None:
            if name == "shell" and "--version" in args["command"]:
                return [("stdout", "git version 2.39.5\n"), *SUCCEEDED]
            if name == "shell" and "rev-parse" in args["command"]:
                return [("stdout", "f6ad368298bd941e934a41f3babc827b2aa95a1d\n"), *SUCCEEDED]
            return [("files", [".git"]), *SUCCEEDED] if name == "listdir" else None

        self.answers(answer)
        git = steps.Git(repourl="https://git.example.org/hello.git", mode="full", method="clobber")
        build = yield self.run_build(in_vm([git], "debian"))
        self.assertEqual(build.results, SUCCESS)
        self.assertEqual({place for _, place in self.commands}, {"default"})
        self.assertEqual({name for name, _ in self.commands}, {"vm_start", "shell", "stat", "rmdir", "vm_stop"})

    def test_named_machine(self) -> defer.Deferred[Any]:
        return self.check(
            in_vm([shell()], "debian", vm="builder"),
            [("vm_start", "builder"), ("shell", "builder"), ("vm_stop", "builder")],
            [("start-vm-builder", "success"), ("make", "success"), ("stop-vm-builder", "skipped")],
        )

    def test_steps_with_a_place_keep_it(self) -> defer.Deferred[Any]:
        return self.check_inside(
            [
                on_host(shell("host")),
                step_in_vm(shell("client"), "client"),
                VMShellCommand(name="own", command="own", vm="server"),
                VMCopyOut("a", "a"),
                shell(),
            ],
            [
                ("shell", "host"),
                ("shell", "client"),
                ("shell", "server"),
                ("vm_copy", "default"),
                ("shell", "default"),
            ],
            [(name, "success") for name in ("host", "client", "own", "vm-copy-out", "make")],
        )

    def test_steps_added_to_a_build_are_in_the_machine_and_before_its_end(self) -> defer.Deferred[Any]:
        return self.check_inside(
            [Adding(), shell()],
            [("shell", "default"), ("shell", "other"), ("shell", "default"), ("shell", "default")],
            [(name, "success") for name in ("adding", "next", "own", "make", "last")],
        )

    def test_steps_added_by_a_step_on_the_host_are_there_too(self) -> defer.Deferred[Any]:
        return self.check_inside(
            [on_host(Adding())],
            [("shell", "host"), ("shell", "other"), ("shell", "host")],
            [(name, "success") for name in ("adding", "next", "own", "last")],
        )

    @defer.inlineCallbacks
    def test_steps_added_in_a_plain_factory_are_where_the_step_is(self) -> Any:
        for adding in (step_in_vm(Adding()), AddingInMachine()):
            with self.subTest(adding):
                self.worker.conn.commands.clear()
                yield self.check(
                    BuildFactory([StartVM("debian"), adding, StopVM(), shell("after")]),
                    [
                        ("vm_start", "default"),
                        *[("shell", "default"), ("shell", "other")],
                        ("vm_stop", "default"),
                        *[("shell", None), ("shell", "default")],
                    ],
                    [
                        ("start-vm", "success"),
                        *[(name, "success") for name in ("adding", "next", "own")],
                        ("stop-vm", "skipped"),
                        *[(name, "success") for name in ("after", "last")],
                    ],
                )

    @defer.inlineCallbacks
    def test_steps_added_to_the_end_come_before_that_of_the_machine(self) -> Any:
        yield self.check(
            BuildFactory([StartVM("debian"), step_in_vm(Adding()), StopVM()]),
            [
                ("vm_start", "default"),
                *[("shell", "default"), ("shell", "other"), ("shell", "default")],
                ("vm_stop", "default"),
            ],
            [
                ("start-vm", "success"),
                *[(name, "success") for name in ("adding", "next", "own", "last")],
                ("stop-vm", "skipped"),
            ],
        )

    @defer.inlineCallbacks
    def test_steps_of_a_factory_that_knows_no_machines_are_added_as_ever(self) -> Any:
        yield self.check(
            BuildFactory([StartVM("debian"), Adding(), StopVM()]),
            [
                ("vm_start", "default"),
                *[("shell", None), ("shell", "other")],
                ("vm_stop", "default"),
                ("shell", None),
            ],
            [
                ("start-vm", "success"),
                *[(name, "success") for name in ("adding", "next", "own")],
                ("stop-vm", "skipped"),
                ("last", "success"),
            ],
        )

    @defer.inlineCallbacks
    def test_steps_that_a_factory_chooses_for_a_build_are_in_the_machine(self) -> Any:
        factory = in_vm(in_vm(ChoosingFactory([shell("unused")]), "debian", vm="a"), "debian", vm="b")
        yield self.check(
            factory,
            [
                *[("vm_start", "b"), ("vm_start", "a")],
                *[("shell", "a"), ("shell", "host")],
                *[("vm_stop", "a"), ("vm_stop", "b")],
            ],
            [
                *[("start-vm-b", "success"), ("start-vm-a", "success")],
                *[("chosen", "success"), ("there", "success")],
                *[("stop-vm-a", "skipped"), ("stop-vm-b", "skipped")],
            ],
        )

    @defer.inlineCallbacks
    def test_property_that_names_no_machine_has_nothing_run_on_the_host(self) -> Any:
        place: Any = util.Property("x")
        for value in (None, "host", 7):
            for step in (step_in_vm(shell(), vm=place), VMShellCommand(name="make", command="make", vm=place)):
                with self.subTest(value=value, step=step):
                    self.worker.conn.commands.clear()
                    setting = steps.SetProperty(property="x", value=value)
                    build = yield self.run_build(BuildFactory([setting, step]))
                    self.assertEqual((self.commands, build.results), ([], EXCEPTION))
                    said = build.executedSteps[1].getResultSummary()["step"]
                    self.assertEqual(
                        said, f"vm is {value!r} in this build, and must be the name of a machine (exception)"
                    )

    @defer.inlineCallbacks
    def test_all_commands_of_a_step_that_says_where_it_is_are_there(self) -> Any:
        class Suppressing(VMShellMixin, steps.Compile):
            pass

        step = Suppressing(command="make", name="make", suppressionFile="suppressions")
        yield self.run_build(BuildFactory([step]))
        self.assertEqual(self.commands, [("uploadFile", "default"), ("shell", "default")])

    def test_other_machines_of_a_factory_stay(self) -> defer.Deferred[Any]:
        return self.check_inside(
            [StartVM("debian", vm="server", name="server"), shell(), StopVM("server", name="end")],
            [("vm_start", "server"), ("shell", "default"), ("vm_stop", "server")],
            [("server", "success"), ("make", "success"), ("end", "skipped")],
        )

    def test_of_machines_around_machines_the_innermost_has_the_steps(self) -> defer.Deferred[Any]:
        factory = in_vm(in_vm([shell()], "debian", vm="client"), "debian", vm="server")
        factory.addStep(shell("later"))
        return self.check(
            factory,
            [
                ("vm_start", "server"),
                ("vm_start", "client"),
                ("shell", "client"),
                ("shell", "client"),
                ("vm_stop", "client"),
                ("vm_stop", "server"),
            ],
            [
                ("start-vm-server", "success"),
                ("start-vm-client", "success"),
                ("make", "success"),
                ("later", "success"),
                ("stop-vm-client", "skipped"),
                ("stop-vm-server", "skipped"),
            ],
        )

    def test_machines_one_after_the_other(self) -> defer.Deferred[Any]:
        factory = util.BuildFactory()
        for vm in ("build", "test"):
            factory.addSteps(in_vm([shell(vm)], "debian", vm=vm).steps)
        commands = [(name, vm) for vm in ("build", "test") for name in ("vm_start", "shell", "vm_stop")]
        return self.check(
            factory,
            commands,
            [
                ("start-vm-build", "success"),
                ("build", "success"),
                ("stop-vm-build", "skipped"),
                ("start-vm-test", "success"),
                ("test", "success"),
                ("stop-vm-test", "skipped"),
            ],
        )

    @defer.inlineCallbacks
    def test_conditions_and_arguments_of_a_step_are_its_own(self) -> Any:
        seen = []
        self.answers(lambda _name, args: seen.append(args.get("command")))
        yield self.check_inside(
            [
                shell("never", doStepIf=False),
                shell("not-now", doStepIf=lambda step: step.build.buildid is None),
                steps.SetProperty(property="target", value="all"),
                steps.ShellCommand(name="make", command=["make", util.Property("target")], hideStepIf=True),
                steps.MasterShellCommand(name="master", command="true", doStepIf=False),
            ],
            [("shell", "default")],
            [
                ("never", "skipped"),
                ("not-now", "skipped"),
                ("SetProperty", "success"),
                ("make", "success"),
                ("master", "skipped"),
            ],
        )
        self.assertEqual(seen, [None, ["make", "all"], None])

    @defer.inlineCallbacks
    def test_each_command_names_its_step(self) -> Any:
        seen = []
        self.answers(lambda _name, args: seen.append(args.get("step")))
        yield self.run_build(in_vm([shell("compile"), on_host(shell("sign"))], "debian"))
        self.assertEqual(seen, ["start-vm", "compile", "sign", "stop-vm"])

    def test_commands_about_machines_are_about_those_they_name(self) -> defer.Deferred[Any]:
        class Asking(BuildStep):
            name = "asking"

            @defer.inlineCallbacks
            def run(self) -> Any:
                for arguments in ({}, {"vm": "other"}):
                    yield self.runCommand(RemoteCommand("vm_info", arguments))
                return SUCCESS

        return self.check_inside(
            [Asking(), on_host(Asking())],
            [("vm_info", None), ("vm_info", "other")] * 2,
            [("asking", "success"), ("asking_1", "success")],
        )

    def test_names_and_results_of_a_step_are_its_own(self) -> defer.Deferred[Any]:
        return self.check_inside([Prompt(vm=3)], [], [("prompt", "warnings")], SUCCESS)

    @defer.inlineCallbacks
    def test_failing_code_is_a_failure_and_no_more_runs_but_what_always_does(self) -> Any:
        self.answers(lambda _name, args: [("rc", 2)] if args.get("command") == "make" else None)
        yield self.check_inside(
            [shell(haltOnFailure=True), shell("never"), shell("always", alwaysRun=True)],
            [("shell", "default"), ("shell", "default")],
            [("make", "failure"), ("always", "success")],
            FAILURE,
        )

    @defer.inlineCallbacks
    def check_lost(self, first: Any, *more: Any, result: int = RETRY, answer: Answer = LOST) -> Any:
        self.answers(at_shell(answer))
        build = yield self.run_build(in_vm([first, shell("always", alwaysRun=True), *more], "debian"))
        _, judged, after, _ = build.executedSteps
        self.assertEqual((judged.results, after.results, build.results), (result, EXCEPTION, result))
        self.assertEqual(
            [judged.getResultSummary()["step"].partition(" (")[0], after.getResultSummary()["step"]],
            [dict(answer)["vm_error"], "no VM default: start it first (exception)"],
        )

    def test_machine_that_died_is_tried_again(self) -> defer.Deferred[Any]:
        return self.check_lost(shell())

    def test_expired_machine_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check_lost(shell(), result=EXCEPTION, answer=vm_failed("vm_expired", "VM default had an hour"))

    @defer.inlineCallbacks
    def test_build_says_once_that_its_machine_died(self) -> Any:
        self.answers(lambda name, _: LOST if name == "shell" else None)
        build = yield self.run_build(in_vm([shell(), shell("always", alwaysRun=True)], "debian"))
        self.assertEqual(build.text, [f"{dict(LOST)['vm_error']} (retry)"])

    def test_no_exit_code_stands_for_a_machine_that_died(self) -> defer.Deferred[Any]:
        return self.check_lost(shell(decodeRC={-1: SUCCESS}))

    def test_failure_that_does_not_count_is_still_a_machine_that_died(self) -> defer.Deferred[Any]:
        return self.check_lost(shell(flunkOnFailure=False, warnOnFailure=True))

    def test_step_that_forgives_everything_has_nothing_to_say_about_machines(self) -> defer.Deferred[Any]:
        return self.check_lost(Forgiving())

    def test_step_that_makes_an_exception_of_everything_neither(self) -> defer.Deferred[Any]:
        return self.check_lost(Wrapping())

    @defer.inlineCallbacks
    def test_retries_end_as_configured(self) -> Any:
        for number, result in enumerate([RETRY, SUCCESS]):
            yield self.earlier_build(number, result)
        self.answers(at_shell(LOST))
        build = yield self.run_build(in_vm([shell()], "debian", max_retries=1))
        self.assertEqual(
            build.executedSteps[1].getResultSummary()["step"],
            "VM default in slot 0 died: qemu was killed by signal 9; given up after 2 tries (exception)",
        )

    def test_compound_step_that_died_is_tried_again(self) -> defer.Deferred[Any]:
        return self.check_lost(steps.ShellSequence([util.ShellArg("a"), util.ShellArg("b")]))

    def test_added_step_whose_machine_died_is_tried_again(self) -> defer.Deferred[Any]:
        self.answers(at_shell(LOST))
        return self.check_inside(
            [Adding()],
            [("shell", "default")],
            [("adding", "success"), ("next", "retry")],
            RETRY,
        )

    def test_refusing_host_is_an_exception(self) -> defer.Deferred[Any]:
        refused = vm_failed("vm_host_refused", "this worker runs nothing on its host")
        self.answers(lambda _name, args: refused if args.get("vm") == "host" else None)
        return self.check_inside([on_host(shell())], [("shell", "host")], [("make", "exception")], EXCEPTION)

    @defer.inlineCallbacks
    def test_machine_that_did_not_start_leaves_the_host_alone(self) -> Any:
        self.answers(lambda name, _: vm_failed("vm_pool_full", "no slot") if name == "vm_start" else None)
        build = yield self.run_build(in_vm([shell(), shell("always", alwaysRun=True)], "debian"))
        self.assertEqual(
            (self.commands, build.results),
            ([("vm_start", "default"), ("shell", "default"), ("vm_stop", "default")], RETRY),
        )

    @defer.inlineCallbacks
    def test_build_that_a_user_stops_is_cancelled(self) -> Any:
        def stop(name: str, _args: Any) -> Answer | None:
            if name != "shell":
                return None
            running.currentStep.interrupt("not wanted")
            running.stopBuild("not wanted")
            return LOST

        factory = in_vm([shell()], "debian")
        new_build = factory.newBuild

        def remember(*args: Any) -> Any:
            nonlocal running
            running = new_build(*args)
            return running

        running: Any = None
        factory.newBuild = remember
        self.answers(stop)
        build = yield self.run_build(factory)
        self.assertEqual(
            (build.results, [step.results for step in build.executedSteps]),
            (CANCELLED, [SUCCESS, CANCELLED, SKIPPED]),
        )

    @defer.inlineCallbacks
    def test_console_of_all_commands_is_one_log(self) -> Any:
        def answer(name: str, args: Any) -> Answer | None:
            return [("log", (args["console_log"], f"{name}\n")), *SUCCEEDED] if "console_log" in args else None

        self.answers(answer)
        logs: list[str] = []
        add_log = self.master.data.updates.addLog

        def note_log(stepid: int, name: str, kind: str) -> Any:
            logs.append(name)
            return add_log(stepid, name, kind)

        self.patch(self.master.data.updates, "addLog", note_log)
        sequence = steps.ShellSequence([util.ShellArg(name, logname=f"stdio {name}") for name in "ab"])
        yield self.run_build(in_vm([sequence, on_host(shell())], "debian", console_log="console"))
        self.assertEqual(sorted(logs), ["console"] * 3 + ["stdio"] * 3 + ["stdio a", "stdio b"])


class BuildingWithoutMachines(BuildCase):
    """On Buildbot's own worker, which takes no notice of an argument vm."""

    worker_commands: ClassVar[dict[str, str]] = {"shell": "3.3"}

    @defer.inlineCallbacks
    def test_nothing_runs_on_the_host_but_what_is_to(self) -> Any:
        steps = [shell(), shell("always", alwaysRun=True), on_host(shell("host", alwaysRun=True))]
        build = yield self.run_build(in_vm(steps, "debian"))
        self.assertEqual(
            (self.commands, self.results(build), build.results),
            (
                [("shell", None)],
                [("start-vm", "exception"), ("always", "exception"), ("host", "success"), ("stop-vm", "skipped")],
                EXCEPTION,
            ),
        )
        self.assertIn("worker kvm1 has no virtual machines", build.executedSteps[1].getResultSummary()["step"])


class Configuring(unittest.TestCase):
    def check_refused(self, message: str, factory: Any, **arguments: Any) -> None:
        with self.assertRaises(ConfigErrors) as refused:
            in_vm(factory, **{"image": "debian", **arguments})
        self.assertEqual(refused.exception.errors, [message])

    def test_mistakes_show_when_the_configuration_is_read(self) -> None:
        own = (
            "in_vm: the factory has a {} of its own for VM 'default', which in_vm starts and stops: "
            "take it out, or give in_vm another name with vm="
        )
        self.check_refused(own.format("StartVM"), [StartVM("debian")])
        self.check_refused(own.format("StopVM"), [StopVM()])
        self.check_refused(own.format("StartVM"), in_vm([shell()], "debian"))
        self.check_refused("in_vm: vm is 'host' and must be a name other than 'host'", [], vm="host")
        self.check_refused("in_vm: vm is None and must be a name other than 'host'", [], vm=None)
        self.check_refused("StartVM: cpus is 0 and must be a number, 1 or more", [], cpus=0)
        self.check_refused(
            "in_vm: 3 is neither a factory nor a list of steps; for one step use step_in_vm",
            3,
        )

    def test_machine_of_the_same_name_added_later_is_refused(self) -> None:
        factory = in_vm([shell()], "debian")
        with self.assertRaises(ConfigErrors):
            factory.addStep(StartVM("debian"))
        self.assertEqual(factory, in_vm([shell()], "debian"))

    def test_factory_stays_as_it_is(self) -> None:
        factory = BuildFactory([shell()])
        in_vm(factory, "debian").addStep(shell("more"))
        self.assertEqual(factory, BuildFactory([shell()]))

    def test_class_and_settings_of_a_factory_are_kept(self) -> None:
        factory = GNUAutoconf(source=steps.Git(repourl="r"), reconf=True)
        factory.workdir = "elsewhere"
        factory.useProgress = False
        moved: Any = in_vm(factory, "debian")
        self.assertIsInstance(moved, GNUAutoconf)
        self.assertEqual(
            (type(moved).__name__, moved.workdir, moved.useProgress, len(moved.steps)),
            ("GNUAutoconf", "elsewhere", False, 8),
        )

    def test_class_and_arguments_of_a_step_are_kept(self) -> None:
        factory = in_vm([steps.Compile(command="make", name="all", warningPattern="W:")], "debian")
        step = factory.steps[1].buildStep()
        self.assertIsInstance(step, steps.Compile)
        self.assertEqual(
            (type(step).__name__, step.name, step.command, step.warningPattern), ("Compile", "all", "make", "W:")
        )

    def test_longest_name_of_a_machine_fits(self) -> None:
        factory = in_vm([], "debian", vm="x" * 64)
        self.assertEqual(
            [step.buildStep().name for step in factory.steps], [f"start-vm-{'x' * 41}", f"stop-vm-{'x' * 42}"]
        )

    def test_machine_gets_the_arguments(self) -> None:
        factory = in_vm(
            [],
            "debian",
            vm="big",
            mode="persistent",
            cpus=4,
            memory=2048,
            timeout=60,
            network="lan",
            ttl=600,
            console_log="console",
            keep_on_failure=True,
            save="debian",
            max_retries=1,
        )
        start, stop = (step.buildStep() for step in factory.steps)
        self.assertEqual(
            (start.image, start.vm, start.mode, start.cpus, start.memory, start.timeout, start.network, start.ttl),
            ("debian", "big", "persistent", 4, 2048, 60, "lan", 600),
        )
        self.assertEqual((start.bind, start.console_log, start.max_retries), (True, "console", 1))
        self.assertEqual(
            (stop.vm, stop.keep_on_failure, stop.save, stop.console_log, stop.max_retries),
            ("big", True, "debian", "console", 1),
        )

    def test_configuration_read_again_is_the_same(self) -> None:
        def read(**arguments: Any) -> BuildFactory:
            things = [shell(), on_host(shell("h")), step_in_vm(shell("o"), "other")]
            return in_vm(GNUAutoconf(source=things[0]), "debian", **arguments)

        self.assertEqual(read(), read())
        self.assertNotEqual(read(), read(vm="other"))
        self.assertNotEqual(read(), read(max_retries=0))
        self.assertNotEqual(on_host(shell()), step_in_vm(shell()))
        self.assertEqual(on_host(step_in_vm(shell())), on_host(shell()))

    def test_steps_of_this_package_say_for_themselves_where_they_are(self) -> None:
        for mark in (on_host, step_in_vm):
            with self.assertRaises(ConfigErrors) as refused:
                mark(VMShellCommand(command="make"))
            self.assertIn("has an argument vm of its own; set that instead", refused.exception.errors[0])

    def test_host_is_no_name_of_a_machine(self) -> None:
        for make in (
            step_in_vm,
            lambda _, vm: VMShellCommand(command="make", vm=vm),
            lambda _, vm: StartVM("debian", vm=vm),
        ):
            with self.assertRaises(ConfigErrors) as refused:
                make(shell(), "host")
            self.assertIn("for a step on the host use on_host", refused.exception.errors[0])
