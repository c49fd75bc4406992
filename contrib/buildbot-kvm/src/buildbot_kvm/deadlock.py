"""Builds that keep all machines of a worker while they wait for builds that need one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buildbot.steps.trigger import Trigger
from twisted.internet import defer
from twisted.python import log

from buildbot_kvm.pool import machines_of, machines_of_factory

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildbot_kvm.pool import Pool

#: The log of a step that waits so.
LOG = "deadlock"


class DeadlockWatch:
    """Notices when the machines of a worker all belong to builds that wait for builds to get one, and says so.

    It is said in the master's log, in a log of each step that waits, and to the worker, for ``kvm-worker status``.
    """

    def __init__(self, worker: Any, running: Callable[[], list[Any]]) -> None:
        self._worker = worker
        self._running = running
        # The numbers of the builds that it was said of.
        self._said: set[int] = set()

    def look(self, pool: Pool) -> None:
        """Look whether that is so, after the worker told what is free, while a build waits for a machine."""
        looking: Any = defer.ensureDeferred(self._look(pool))
        looking.addErrback(log.err, "while looking whether builds wait for each other")

    async def _look(self, pool: Pool) -> None:
        builds = await self._deadlocked(pool)
        numbers = {build.buildid for build in builds}
        if numbers == self._said:
            return
        self._said = numbers
        sentence = self._sentence(len(builds)) if builds else ""
        await self._worker.conn.remotePrint(f"kvm-worker deadlock {sentence}".rstrip())
        if not sentence:
            return
        log.msg(sentence)
        for build in builds:
            await build.currentStep.addCompleteLog(LOG, f"{sentence}\n")

    async def _deadlocked(self, pool: Pool) -> list[Any]:
        builds = [build for build in self._running() if machines_of(build)]
        taken = sum(map(machines_of, builds))
        if not builds or pool.free >= self._worker.machines_per_build or taken + pool.free < pool.slots:
            return []
        return builds if all([await self._waits(build) for build in builds]) else []

    async def _waits(self, build: Any) -> bool:
        """Tell whether a build waits for one that has not begun, and needs a machine that only this worker has."""
        step = build.currentStep
        if not isinstance(step, Trigger) or not step.waitForFinish:
            return False
        master = self._worker.master
        for number in step.brids:
            request = await master.data.get(("buildrequests", number))
            if request is None or request["claimed"] or request["complete"]:
                continue
            name = (await master.data.get(("builders", request["builderid"])))["name"]
            builder = self._worker.botmaster.builders.get(name)
            if builder is None or not machines_of_factory(builder.config.factory):
                continue
            if all(wfb.worker is self._worker for wfb in builder.workers):
                return True
        return False

    def _sentence(self, count: int) -> str:
        who = "a build has all machines" if count == 1 else f"{count} builds have all machines"
        waits = "waits" if count == 1 else "wait"
        return (
            f"{who} of worker {self._worker.workername} and {waits} for builds that need one there, so that none "
            "goes on until a machine's time to live is over: give the worker more slots (pool.slots), trigger from a "
            "build that has no machine, or stop the machine before the Trigger step"
        )
