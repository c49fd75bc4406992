from __future__ import annotations

import tempfile
from typing import Any, ClassVar

from buildbot.plugins import steps, util
from buildbot.process.buildstep import BuildStep
from buildbot.process.factory import BuildFactory
from buildbot.process.results import SUCCESS
from buildbot.steps.download_secret_to_worker import RemoveWorkerFileSecret
from twisted.internet import defer

from build_case import SUCCEEDED, Answer, BuildCase
from buildbot_kvm import RebootVM, StartVM, StopVM, VMCopyIn, VMShellCommand, in_vm, on_host, step_in_vm
from buildbot_kvm.guest import HOME_IN

HOST = ("/srv/w", "/srv/w/b", "host", 8)
GUEST = ("/home/ci", "/home/ci/b", "guest", 1)


def vm(**different: Any) -> dict[str, Any]:
    """Give what a worker tells of a machine that is ready."""
    told = {"vm": "default", "slot": 1, "cpus": 1, "memory_mib": 512, "basedir": "/home/ci"}
    return {**told, "environ": {"HOME": "/home/ci", "WHERE": "guest"}, **different}


class Looking(BuildStep):
    """Notes what it sees of its worker and its build, by both of the ways there are."""

    name = "looking"
    renderables = ("builddir", "numcpus")
    seen: list[Any]

    def __init__(self, seen: list[Any], **kwargs: Any) -> None:
        self.seen = seen
        self.builddir = util.Interpolate("%(prop:builddir)s")
        self.numcpus = util.Interpolate("%(worker:numcpus)s")
        super().__init__(**kwargs)

    def run(self) -> defer.Deferred[int]:
        worker = self.worker
        basedir = worker.worker_basedir
        # Buildbot 4.0 has no such property.
        assert basedir == self.getProperty("basedir", basedir)
        assert basedir == self.build.getWorkerInfo().getProperty("basedir")
        assert worker.workername == "kvm1"
        self.seen.append((basedir, self.builddir, worker.worker_environ["WHERE"], int(self.numcpus)))
        return defer.succeed(SUCCESS)


class Seeing(BuildCase):
    worker_commands: ClassVar[dict[str, str]] = {"*": "3.3"}

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        yield super().setUp()
        self.worker.worker_basedir = "/srv/w"
        self.worker.worker_environ = {"WHERE": "host"}
        self.worker.info.setProperty("numcpus", 8, "Worker")
        self.worker.info.setProperty("basedir", "/srv/w", "Worker")
        self.machine = vm()
        self.rebooted = vm(reboot_seconds=5.0)
        self.arguments: list[tuple[str, dict[str, Any]]] = []
        self.answers(self.answer)

    def answer(self, name: str, args: dict[str, Any]) -> Answer | None:
        self.arguments.append((name, args))
        told = {"vm_start": self.machine, "vm_reboot": self.rebooted, "vm_stop": {"slot": 1}}.get(name)
        return [("vm", told), *SUCCEEDED] if told else None

    @defer.inlineCallbacks
    def check(self, factory: Any, seen: list[Any], *expected: Any) -> Any:
        build = yield self.run_build(factory if isinstance(factory, BuildFactory) else BuildFactory(factory))
        self.assertEqual((build.results, seen), (SUCCESS, list(expected)), self.results(build))
        # The build's own are the host's again, with the source that they had.
        for name, path in {"basedir": "/srv/w", "builddir": "/srv/w/b"}.items():
            if name in build.properties:
                source = build.properties.getPropertySource(name)
                self.assertEqual((build.getProperty(name), source), (path, "Worker"))
        self.assertIn("builddir", build.properties)
        self.assertIs(build.getWorkerInfo(), self.worker.info)
        return build

    @defer.inlineCallbacks
    def test_steps_in_a_machine_see_its_guest_and_others_the_host(self) -> Any:
        seen: list[Any] = []
        factory = in_vm([Looking(seen), on_host(Looking(seen)), Looking(seen)], "debian")
        build = yield self.check(factory, seen, GUEST, HOST, GUEST)
        told = [build.getProperty(f"vm_{name}") for name in ("cpus", "memory", "basedir")]
        self.assertEqual(told, [1, 512, "/home/ci"])

    def test_step_that_is_placed_by_hand_sees_the_guest_of_its_machine(self) -> defer.Deferred[Any]:
        seen: list[Any] = []
        things = [
            Looking(seen),
            StartVM("debian", vm="a"),
            Looking(seen),
            step_in_vm(Looking(seen), vm=util.Interpolate("%(kw:name)s", name="a")),
            StopVM("a"),
            Looking(seen),
        ]
        return self.check(things, seen, HOST, HOST, GUEST, HOST)

    def test_step_that_says_nothing_sees_the_guest_it_is_bound_to(self) -> defer.Deferred[Any]:
        seen: list[Any] = []
        things = [StartVM("debian", bind=True), Looking(seen), on_host(Looking(seen)), StopVM(), Looking(seen)]
        return self.check(things, seen, GUEST, HOST, HOST)

    @defer.inlineCallbacks
    def test_commands_are_made_of_the_guests_paths(self) -> Any:
        there = util.Interpolate("%(prop:builddir)s/ccache")
        things = [
            StartVM("debian"),
            VMShellCommand(command=["ls", there], env={"CCACHE_DIR": there}, logfiles={"L": there}),
            VMCopyIn(src=there, dest="x"),
            StopVM(),
        ]
        yield self.check(things, [])
        shell = dict(self.arguments)["shell"]
        self.assertEqual(shell["command"], ["ls", "/home/ci/b/ccache"])
        self.assertEqual(shell["env"], {"CCACHE_DIR": "/home/ci/b/ccache"})
        self.assertEqual(shell["logfiles"], {"L": "/home/ci/b/ccache"})
        # It is copied from the host.
        self.assertEqual(dict(self.arguments)["vm_copy"]["from"], "/srv/w/b/ccache")

    @defer.inlineCallbacks
    def test_variables_are_those_of_the_guest(self) -> Any:
        factory = in_vm([steps.SetPropertiesFromEnv(variables=["HOME", "WHERE"])], "debian")
        build = yield self.check(factory, [])
        self.assertEqual([build.getProperty(name) for name in ("HOME", "WHERE")], ["/home/ci", "guest"])

    def test_guest_that_restarted_is_seen_as_it_is_now(self) -> defer.Deferred[Any]:
        seen: list[Any] = []
        self.rebooted = vm(environ={"WHERE": "again"})
        factory = in_vm([Looking(seen), RebootVM(), Looking(seen)], "debian")
        return self.check(factory, seen, GUEST, (*GUEST[:2], "again", 1))

    def test_guest_with_the_hosts_basedir_has_the_hosts_paths(self) -> defer.Deferred[Any]:
        seen: list[Any] = []
        self.machine = vm(basedir="/srv/w")
        return self.check(in_vm([Looking(seen)], "debian"), seen, ("/srv/w", "/srv/w/b", "guest", 1))

    def test_worker_that_tells_nothing_of_its_guests_is_seen_as_before(self) -> defer.Deferred[Any]:
        seen: list[Any] = []
        self.machine = {"vm": "default", "slot": 1}
        return self.check(in_vm([Looking(seen)], "debian"), seen, HOST)

    @defer.inlineCallbacks
    def test_what_a_step_sets_itself_stays(self) -> Any:
        factory = in_vm([steps.SetProperty(property="builddir", value="mine")], "debian")
        build = yield self.run_build(factory)
        self.assertEqual(build.getProperty("builddir"), "mine")
        self.assertEqual(build.getProperty("basedir", "/srv/w"), "/srv/w")

    @defer.inlineCallbacks
    def test_home_is_that_of_the_guest(self) -> Any:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)

        def transfers() -> list[Any]:
            return [
                steps.StringDownload("s", workerdest="~/.netrc"),
                steps.FileUpload(workersrc="~/core", masterdest=f"{directory.name}/core"),
                steps.DirectoryUpload(workersrc="~", masterdest=f"{directory.name}/home"),
                RemoveWorkerFileSecret([("~/.netrc", "s")]),
                steps.StringDownload("s", workerdest="a/~/b"),
            ]

        yield self.run_build(in_vm([*transfers(), *map(on_host, transfers())], "debian"))
        paths = [args[HOME_IN[name]] for name, args in self.arguments if name in HOME_IN]
        self.assertEqual(
            paths,
            [
                *["/home/ci/.netrc", "/home/ci/core", "/home/ci", "/home/ci/.netrc", "a/~/b"],
                *["~/.netrc", "~/core", "~", "~/.netrc", "a/~/b"],
            ],
        )
