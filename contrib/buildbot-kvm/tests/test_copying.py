from __future__ import annotations

from typing import Any

from buildbot.config import ConfigErrors
from buildbot.process.properties import Interpolate
from buildbot.process.results import EXCEPTION, FAILURE, RETRY, SUCCESS
from buildbot.test.steps import Expect
from twisted.internet import defer

from buildbot_kvm import VMCopyIn, VMCopyOut
from step_case import StepCase, failed


def vm_copy(direction: str, **different: Any) -> Expect:
    arguments = {
        "vm": "default",
        "direction": direction,
        "from": "dist/hello.tar.gz",
        "to": "hello.tar.gz",
        "recursive": True,
        "preserve": True,
        "workdir": "/wrk/bldr/wkdir",
    }
    return Expect("vm_copy", {**arguments, **different})


def copied(expected: Expect, files: int, size: int) -> Expect:
    return expected.update("files", files).update("bytes", size).exit(0)


class Copying(StepCase):
    def check_size(self, size: int, text: str) -> defer.Deferred[Any]:
        return self.check(
            VMCopyIn("dist/hello.tar.gz", "hello.tar.gz"),
            copied(vm_copy("in"), 1, size),
            SUCCESS,
            f"copied hello.tar.gz into VM (1 file, {text})",
        )

    def test_bytes_are_counted_as_bytes(self) -> defer.Deferred[Any]:
        return self.check_size(1023, "1023 B")

    def test_kibibytes_start_at_1024(self) -> defer.Deferred[Any]:
        return self.check_size(1024, "1.0 KiB")

    def test_gibibytes_have_no_end(self) -> defer.Deferred[Any]:
        return self.check_size(5 << 40, "5120.0 GiB")

    def test_out_is_out_of_the_named_machine(self) -> defer.Deferred[Any]:
        return self.check(
            VMCopyOut("dist/hello.tar.gz", "hello.tar.gz", vm="makedist"),
            copied(vm_copy("out", vm="makedist"), 12, 3_500_000),
            SUCCESS,
            "copied hello.tar.gz out of VM makedist (12 files, 3.3 MiB)",
        )

    def test_flags_are_sent(self) -> defer.Deferred[Any]:
        return self.check(
            VMCopyIn("dist/hello.tar.gz", "hello.tar.gz", recursive=False, preserve=False),
            copied(vm_copy("in", recursive=False, preserve=False), 1, 5),
            SUCCESS,
            "copied hello.tar.gz into VM (1 file, 5 B)",
        )

    def test_directory_is_called_by_its_last_part(self) -> defer.Deferred[Any]:
        return self.check(
            VMCopyIn("src/hello/", "hello"),
            vm_copy("in", **{"from": "src/hello/", "to": "hello"}).exit(0),
            SUCCESS,
            "copied hello into VM",
        )

    def test_workdir_of_the_step_is_below_the_builders_directory(self) -> defer.Deferred[Any]:
        return self.check(
            VMCopyIn("a", "b", workdir="other/place"),
            vm_copy("in", **{"from": "a", "to": "b", "workdir": "/wrk/bldr/other/place"}).exit(0),
            SUCCESS,
            "copied a into VM",
        )

    def test_absolute_workdir_stays(self) -> defer.Deferred[Any]:
        return self.check(
            VMCopyIn("a", "b", workdir="/wrk/shared"),
            vm_copy("in", **{"from": "a", "to": "b", "workdir": "/wrk/shared"}).exit(0),
            SUCCESS,
            "copied a into VM",
        )

    @defer.inlineCallbacks
    def test_paths_are_rendered(self) -> Any:
        self.prepare(VMCopyOut(src=Interpolate("dist/%(prop:tarball)s"), dest=Interpolate("%(prop:tarball)s")))
        self.build.setProperty("tarball", "hello.tar.gz", "test")
        self.expect_commands(copied(vm_copy("out"), 1, 5))
        self.expect_outcome(result=SUCCESS, state_string="copied hello.tar.gz out of VM (1 file, 5 B)")
        yield self.run_step()

    def check_failed(self, reason: str, result: int, word: str) -> defer.Deferred[Any]:
        return self.check(
            VMCopyOut("dist/hello.tar.gz", "hello.tar.gz"),
            failed(vm_copy("out"), reason, "dist/hello.tar.gz: no such file"),
            result,
            f"dist/hello.tar.gz: no such file ({word})",
        )

    def test_file_that_the_build_did_not_make_is_its_failure(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_copy_failed", FAILURE, "failure")

    def test_machine_that_died_is_tried_again(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_lost", RETRY, "retry")

    def test_machine_that_never_ran_is_an_exception(self) -> defer.Deferred[Any]:
        return self.check_failed("vm_not_running", EXCEPTION, "exception")

    def test_empty_path_is_refused_when_the_configuration_is_read(self) -> None:
        with self.assertRaises(ConfigErrors):
            VMCopyIn("", "hello")
