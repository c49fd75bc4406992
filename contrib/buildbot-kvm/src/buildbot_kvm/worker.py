"""The worker that starts no more builds than it has machines for."""

from __future__ import annotations

from typing import Any

from buildbot.worker.base import Worker
from twisted.internet import defer

from buildbot_kvm.deadlock import DeadlockWatch
from buildbot_kvm.mixing import mix_in
from buildbot_kvm.pool import Pool, machines_of_factory
from buildbot_kvm.preferring import has_all, images_of
from buildbot_kvm.step import check_number
from buildbot_kvm.watching import PoolWatch


class KVMWorker(Worker):
    """A kvm-worker, as a Worker that knows about its machines.

    It starts a build that uses machines only while the worker has free slots for them, counting builds that have not
    got theirs yet; others start whenever they may on any worker. A build whose image the worker lacks is left to
    another of the builder's workers that has it. It starts none while the worker is paused. One that drains it shuts
    down gracefully: no build more, and the end after those that run. When a build is over, however it ended, it tells
    the worker so, which then releases the machines that the build left.

    ``machines_per_build``
        how many machines a build uses at a time (default 1), if it has a StartVM, which its factory's steps tell;
    ``max_builds``
        the number of builds at a time, as for any Worker (default: no limit but the slots);
    ``poll_interval``
        while builds wait for a slot, the worker is asked for it at least every so many seconds (default 10).

    All other arguments are Worker's. With Buildbot's own worker at the other end it does what a Worker does.
    """

    #: The image of a build may be another worker's.
    builds_may_be_incompatible = True
    _watch: PoolWatch | None = None
    _deadlocks: DeadlockWatch | None = None
    #: What was last known of its machines.
    _pool: Pool | None = None

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
            self._deadlocks = DeadlockWatch(self, self._running_builds)
        yield super().attached(conn)
        # A builder that is being attached counts as busy. Buildbot (4.3.0) does not look again when it is not.
        self.maybeShutdown()

    def detached(self) -> Any:
        """Stop that, as the worker is gone."""
        if self._watch is not None:
            self._pool = self._watch.pool
            self._watch.stop()
            self._watch = None
        return super().detached()

    @property
    def pool(self) -> Pool | None:
        """What is known of the worker's machines, or was when it was last connected; None if it never had any."""
        return self._pool if self._watch is None else self._watch.pool

    def addWorkerForBuilder(self, wfb: Any) -> None:
        """Take a builder, of whose factory it depends whether its builds need machines."""
        super().addWorkerForBuilder(mix_in(_ForBuilderMixin, wfb))

    def canStartBuild(self) -> bool:
        """Tell whether one build more may start, with machines."""
        return bool(super().canStartBuild()) and (self._watch is None or self._watch.room(machines=True))

    def can_start_build_of(self, builder: Any) -> bool:
        """Tell whether one build more of a builder may start."""
        if not super().canStartBuild():
            return False
        return self._watch is None or self._watch.room(machines=bool(machines_of_factory(builder.config.factory)))

    def isCompatibleWithBuild(self, build_props: Any) -> defer.Deferred[bool]:
        """Tell whether a build may start here for all that its images are."""
        return defer.ensureDeferred(self._is_compatible(build_props))

    async def _is_compatible(self, properties: Any) -> bool:
        builder = self.botmaster.builders.get(properties.getProperty("buildername"))
        if builder is None or self._watch is None:
            return True
        images = await images_of(builder, properties)
        if has_all(self, images) or not any(
            has_all(wfb.worker, images) for wfb in builder.workers if wfb.worker is not self
        ):
            return True
        # Its images may be others after a reload.
        self._watch.ask_later()
        return False

    def buildFinished(self, wfb: Any) -> None:
        """Tell the worker that a build is over."""
        if self._watch is not None:
            for build in _builds(wfb):
                self._watch.build_ended(build)
        super().buildFinished(wfb)

    def _running_builds(self) -> list[Any]:
        return [build for wfb in self.workerforbuilders.values() for build in _builds(wfb)]

    def _machines_changed(self) -> None:
        if self.botmaster is None:
            return
        self.botmaster.maybeStartBuildsForWorker(self.name)
        pool = self.pool
        if self._deadlocks is not None and pool is not None:
            self._deadlocks.look(pool)

    def _shut_down(self) -> None:
        # Over PB the worker has asked for it, too.
        if not self._graceful:
            self.shutdownRequested()


class _ForBuilderMixin:
    """The part of what a builder has of a worker that asks the worker about that builder."""

    worker: Any
    builder: Any

    def isAvailable(self) -> bool:
        """Tell whether a build of the builder may start."""
        busy: bool = self.isBusy()  # type: ignore[attr-defined]
        return not busy and bool(self.worker) and self.worker.can_start_build_of(self.builder)


def _builds(wfb: Any) -> list[Any]:
    """Give the build that a worker runs for a builder, if it runs one."""
    return [build for build in wfb.builder.building if build.workerforbuilder is wfb]
