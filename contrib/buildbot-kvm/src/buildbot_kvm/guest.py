"""What a step in a machine sees of its worker: the guest, where the master would compute with the host.

Buildbot's steps ask ``self.worker`` for directories and variables, the build for the properties ``builddir`` and
``basedir``, and ``%(worker:...)s`` for what the worker said of itself. While a step is in a machine all of these are
the guest's; steps on the host see the host's.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buildbot.process.properties import Properties
from buildbot.util import bytes2unicode
from twisted.internet import defer

from buildbot_kvm.mixing import mix_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildbot.process.remotecommand import RemoteCommand

#: The name that stands for the worker's host where one of a machine is expected.
HOST = "host"

#: The commands whose path may begin with ``~``, and its argument. Over MessagePack Buildbot (4.3.0) puts the home in
#: its place that the worker told of, which is the host's.
HOME_IN = {"uploadFile": "workersrc", "uploadDirectory": "workersrc", "downloadFile": "workerdest", "rmfile": "path"}


@dataclass(frozen=True)
class Guest:
    """What a worker told of a machine's guest; None for what it did not, as older ones."""

    basedir: str | None
    environ: dict[str, str] | None
    cpus: int | None

    @classmethod
    def told(cls, vm: dict[str, Any]) -> Guest:
        """Read it in the answer to ``vm_start``."""
        environ = vm.get("environ")
        return cls(vm.get("basedir"), dict(environ) if environ is not None else None, vm.get("cpus"))

    def expand_home(self, command: RemoteCommand) -> None:
        """Put the guest's home in the place of the ``~`` that a command's path begins with, if the worker told it."""
        argument = HOME_IN.get(command.remote_command)
        home = (self.environ or {}).get("HOME")
        if argument is None or home is None:
            return
        path = command.args.get(argument)
        if isinstance(path, str) and (path == "~" or path.startswith("~/")):
            command.args[argument] = home + path[1:]

    @contextmanager
    def seen_by(self, step: Any) -> Iterator[None]:
        """Have a step see the guest, and its build as well while it runs."""
        build, worker = step.build, step.worker
        view = GuestWorker(worker, self)
        step.worker = view
        build.getWorkerInfo = lambda: view.info
        swapped = self._swap_directories(build, worker)
        try:
            yield
        finally:
            for name, (ours, before, source) in swapped.items():
                # What the step set itself stays.
                if build.getProperty(name) == ours:
                    build.setProperty(name, before, source)
            del build.getWorkerInfo
            step.worker = worker

    def _swap_directories(self, build: Any, worker: Any) -> dict[str, tuple[Any, Any, str]]:
        """Set the properties that name directories, if they are the worker's; give what they are and were."""
        swapped: dict[str, tuple[Any, Any, str]] = {}
        if self.basedir is None or not worker.worker_basedir:
            return swapped
        here, there = (_directories(build, basedir) for basedir in (worker.worker_basedir, self.basedir))
        for name, path in here.items():
            if path != there[name] and build.getProperty(name) == path:
                source = build.getProperties().getPropertySource(name)
                build.setProperty(name, there[name], "StartVM")
                swapped[name] = (there[name], path, source)
        return swapped


def _directories(build: Any, basedir: Any) -> dict[str, str]:
    """Give the properties that Buildbot's build makes of a worker's base directory."""
    basedir = bytes2unicode(basedir)
    builddir = build.path_module.join(basedir, bytes2unicode(build.builder.config.workerbuilddir))
    return {"basedir": basedir, "builddir": builddir}


class GuestWorker:
    """A worker with the directories, variables and processors of a guest; all else is the worker's."""

    def __init__(self, worker: Any, guest: Guest) -> None:
        info = Properties()
        info.updateFromProperties(worker.info)
        for name, value in {"basedir": guest.basedir, "numcpus": guest.cpus}.items():
            if value is not None:
                info.setProperty(name, value, "StartVM")
        seen: dict[str, Any] = {"_worker": worker, "info": info}
        if guest.basedir is not None:
            seen["worker_basedir"] = guest.basedir
        if guest.environ is not None:
            seen["worker_environ"] = guest.environ
        self.__dict__.update(seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._worker, name, value)


def enter(build: Any, vm: str, guest: Guest, *, bound: bool) -> None:
    """Have the steps that follow see a machine's guest while they are in it."""
    mix_in(_GuestsMixin, build)
    build.vm_guests = {**getattr(build, "vm_guests", {}), vm: (guest, bound)}


def update(build: Any, vm: str, guest: Guest) -> None:
    """Take what a machine's guest is after it restarted."""
    if vm in getattr(build, "vm_guests", {}):
        enter(build, vm, guest, bound=build.vm_guests[vm][1])


def leave(build: Any, vm: str) -> None:
    """Have them see it no more."""
    if vm in getattr(build, "vm_guests", {}):
        build.vm_guests = {name: guest for name, guest in build.vm_guests.items() if name != vm}


class _GuestsMixin:
    """The part of a build that has machines, which makes its steps see the guest that they are in."""

    #: By the names of their machines, and whether steps are in that which don't say where they are.
    vm_guests: dict[str, tuple[Guest, bool]]

    def getNextStep(self) -> Any:
        """Give the step that comes next, as one that looks where it is."""
        step = super().getNextStep()  # type: ignore[misc]
        return step if step is None else mix_in(_SeeingMixin, step)


class _SeeingMixin:
    """The part of a step that sees the guest of the machine that it is in."""

    __inside: Guest | None = None

    def startStep(self, remote: Any) -> defer.Deferred[Any]:
        """Run the step from its beginning, where its arguments are rendered, to its end."""
        return defer.ensureDeferred(self.__start(remote))

    async def __start(self, remote: Any) -> Any:
        start: Any = super().startStep  # type: ignore[misc]
        guest = await self.__guest()
        if guest is None:
            return await start(remote)
        self.__inside = guest
        with guest.seen_by(self):
            return await start(remote)

    def runCommand(self, command: RemoteCommand) -> Any:
        """Run one command with paths as the guest has them."""
        if self.__inside is not None:
            self.__inside.expand_home(command)
        return super().runCommand(command)  # type: ignore[misc]

    async def __guest(self) -> Guest | None:
        guests = self.build.vm_guests
        if hasattr(self, "_vm_inside"):
            vm = await self.build.render(self._vm_inside())
        else:
            # As the worker has it: of several the first by name.
            vm = min((name for name, (_, bound) in guests.items() if bound), default=HOST)
        return guests[vm][0] if vm in guests else None

    if TYPE_CHECKING:
        build: Any
        _vm_inside: Any
