"""The worker that starts no more builds than it has machines for."""

from __future__ import annotations

from typing import Any

from buildbot.worker.base import Worker
from twisted.internet import defer

from buildbot_kvm.step import check_number
from buildbot_kvm.watching import PoolWatch


class KVMWorker(Worker):
    """A kvm-worker, as a Worker that knows about its machines.

    It starts a build only while the worker has a free slot for it, counting builds that have not got their machine
    yet. It starts none while the worker is paused. One that drains it shuts down gracefully: no build more, and the
    end after those that run. When a build is over, however it ended, it tells the worker so, which then releases the
    machines that the build left.

    ``machines_per_build``
        how many machines a build uses at a time (default 1). Builds that use none, which their factory's steps tell,
        need no slot;
    ``max_builds``
        the number of builds at a time, as for any Worker (default: as many as there are slots for);
    ``poll_interval``
        while builds wait for a slot, the worker is asked for it at least every so many seconds (default 10).

    All other arguments are Worker's. With Buildbot's own worker at the other end it does what a Worker does.
    """

    _watch: PoolWatch | None = None

    def checkConfig(
        self,
        name: str,
        password: Any,
        *args: Any,
        machines_per_build: int = 1,
        poll_interval: float = 10,
        **kwargs: Any,
    ) -> None:
        """Check the arguments when the configuration is read."""
        super().checkConfig(name, password, *args, **kwargs)
        check_number(self, "machines_per_build", machines_per_build)
        check_number(self, "poll_interval", poll_interval)
        self.machines_per_build = machines_per_build
        self.poll_interval = poll_interval

    def reconfigService(
        self,
        name: str,
        password: Any,
        *args: Any,
        machines_per_build: int = 1,
        poll_interval: float = 10,
        **kwargs: Any,
    ) -> Any:
        """Take the arguments of a new configuration."""
        self.machines_per_build = machines_per_build
        self.poll_interval = poll_interval
        if self._watch is not None:
            self._watch.per_build = machines_per_build
            self._watch.interval = poll_interval
        return super().reconfigService(name, password, *args, **kwargs)

    @defer.inlineCallbacks
    def attached(self, conn: Any) -> Any:
        """Begin to watch the machines of a worker that has connected."""
        if self.conn is None:
            self._watch = PoolWatch(
                self, conn, running=self._running_builds, changed=self._machines_changed, draining=self._shut_down
            )
        yield super().attached(conn)
        # A builder that is being attached counts as busy. Buildbot (4.3.0) does not look again when it is not.
        self.maybeShutdown()

    def detached(self) -> Any:
        """Stop that, as the worker is gone."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        return super().detached()

    def canStartBuild(self) -> bool:
        """Tell whether one build more may start."""
        return bool(super().canStartBuild()) and (self._watch is None or self._watch.room(self.max_builds))

    def buildFinished(self, wfb: Any) -> None:
        """Tell the worker that a build is over."""
        if self._watch is not None:
            for build in _builds(wfb):
                self._watch.build_ended(build)
        super().buildFinished(wfb)

    def _running_builds(self) -> list[Any]:
        return [build for wfb in self.workerforbuilders.values() for build in _builds(wfb)]

    def _machines_changed(self) -> None:
        if self.botmaster is not None:
            self.botmaster.maybeStartBuildsForWorker(self.name)

    def _shut_down(self) -> None:
        # Over PB the worker has asked for it, too.
        if not self._graceful:
            self.shutdownRequested()


def _builds(wfb: Any) -> list[Any]:
    """Give the build that a worker runs for a builder, if it runs one."""
    return [build for build in wfb.builder.building if build.workerforbuilder is wfb]
