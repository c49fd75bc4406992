"""What is known of a worker and its machines while it is connected."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from buildbot.pbutil import decode
from twisted.internet import defer
from twisted.python import log

from buildbot_kvm.pool import DRAINING, RUNNING, expected, told

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.python.failure import Failure

    from buildbot_kvm.pool import Pool

#: How long (seconds) the worker may take for an answer. The line's own keepalive finds a dead one.
ANSWER_WITHIN = 30

#: How long (seconds) an answer that a decision waits for is good: a busy master may take a while to get there.
GOOD_FOR_A_DECISION = 60

#: The first of the growing times (seconds) between two questions.
FIRST_PAUSE = 1.0


class PoolWatch:
    """Asks one connected worker about its machines when somebody wants to know, and never else.

    That it is paused, goes on or drains it tells by itself: it is asked to say so, and answers when it is true.

    ``running`` gives the builds that run on the worker; ``changed`` is called after an answer that a build waits for;
    ``draining`` when the worker is to be shut down after its builds.
    """

    #: How many machines a build uses at a time.
    per_build: int
    #: How long (seconds) an answer is good, and the longest time between two questions while builds wait.
    interval: float

    def __init__(
        self,
        worker: Any,
        conn: Any,
        *,
        running: Callable[[], list[Any]],
        changed: Callable[[], Any],
        draining: Callable[[], Any],
    ) -> None:
        self.per_build = worker.machines_per_build
        self.interval = worker.poll_interval
        self._name = worker.workername
        self._reactor = worker.master.reactor
        self._conn = conn
        self._running = running
        self._changed = changed
        self._draining = draining
        self._pool = told(conn.info, {})
        self._good_until = self._reactor.seconds() + GOOD_FOR_A_DECISION
        self._pause = FIRST_PAUSE
        self._timer: Any = None
        self._answer: defer.Deferred[Any] | None = None
        self._ask_again = False
        self._wanted = False
        self._said_too_few: tuple[int, int] | None = None
        self._follow()

    @property
    def pool(self) -> Pool | None:
        """What is known of the machines; None of a worker without any, or that is gone."""
        return self._pool

    def room(self, *, machines: bool) -> bool:
        """Tell whether a build may start, with machines or without.

        If not, see to it that ``changed`` is called when that may be over.
        """
        if self._pool is None:
            return True
        if self._is_fresh() and self._pool.room(self._running(), self.per_build, machines=machines):
            return True
        numbers = (self.per_build, self._pool.slots)
        if machines and self.per_build > self._pool.slots > 0 and self._said_too_few != numbers:
            self._said_too_few = numbers
            log.msg(
                f"worker {self._name} has {self._pool.slots} slots, and its machines_per_build is {self.per_build}: "
                "no build with a machine can start there; give it more slots (pool.slots), or set it lower"
            )
        self.ask_later()
        return False

    def ask_later(self) -> None:
        """Call ``changed`` after the next answer, as a build waits for something to be otherwise."""
        self._wanted = True
        if self._timer is None and self._answer is None:
            self._ask_after(self._pause if self._is_fresh() else 0)

    def _is_fresh(self) -> bool:
        return bool(self._reactor.seconds() <= self._good_until)

    def build_ended(self, build: Any) -> None:
        """Tell the worker that a build is over, so that nothing of it stays, and see what is free then."""
        if self._pool is None:
            return
        if build.buildid is not None:
            message = f"kvm-worker release {build.buildid} {build.builder.name}"
            release = defer.maybeDeferred(self._conn.remotePrint, message)
            release.addErrback(self._log, "was not told that a build is over")
        self._ask_anew()

    def stop(self) -> None:
        """Ask no more, as the worker is gone."""
        self._pool = None
        self._cancel_timer()
        if self._answer is not None:
            self._answer.cancel()

    def _follow(self) -> None:
        """Have the worker say when its state is another one than is known."""
        if self._pool is None or self._pool.state == DRAINING:
            return
        # One that does not know of this, as any worker, answers at once, and with nothing.
        change = defer.maybeDeferred(self._conn.remotePrint, f"kvm-worker wait-while {self._pool.state}")
        change.addCallbacks(self._follow_to, lambda _: None)

    def _follow_to(self, answer: Any) -> None:
        state = decode(answer)
        if self._pool is None or not isinstance(state, str):
            return
        self._pool = replace(self._pool, state=state)
        if state == DRAINING:
            self._draining()
        elif state == RUNNING:
            # Builds wait for this, whether or not they have asked.
            self._wanted = True
            self._ask_anew()
        self._follow()

    def _ask_anew(self) -> None:
        self._pause = FIRST_PAUSE
        if self._answer is None:
            self._ask_after(0)
        else:
            # It may have been given before what makes it old.
            self._ask_again = True

    def _ask_after(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self._reactor.callLater(seconds, self._ask)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask(self) -> None:
        self._timer = None
        # What the builds have is counted before the worker counts what is free: it hears of a StartVM that
        # runs by now before it hears the question.
        going_to_take = {build: expected(build, self.per_build) for build in self._running()}
        self._answer = answer = defer.maybeDeferred(self._conn.remoteGetWorkerInfo)
        answer.addTimeout(ANSWER_WITHIN, self._reactor)
        answer.addCallback(self._take, going_to_take)
        answer.addErrback(self._give_up)
        answer.addCallback(self._answered)

    def _take(self, info: Mapping[str, Any], going_to_take: Mapping[Any, int]) -> bool:
        pool = told(info, going_to_take)
        if pool is None or self._pool is None:
            return False
        same = (pool.state, pool.free) == (self._pool.state, self._pool.free)
        self._pause = min(2 * self._pause, self.interval) if same else FIRST_PAUSE
        self._good_until = self._reactor.seconds() + (GOOD_FOR_A_DECISION if self._wanted else self.interval)
        self._pool = pool
        if pool.state == DRAINING:
            self._draining()
        return True

    def _give_up(self, why: Failure) -> bool:
        if self._pool is not None:
            self._log(why, "did not tell about its machines")
        return False

    def _answered(self, known: bool) -> None:
        self._answer = None
        if self._pool is None:
            return
        if self._ask_again:
            self._ask_again = False
            # The master's side of a line that is lost takes no more questions until it has noticed.
            if known:
                self._ask()
            else:
                self._ask_after(0)
        elif self._wanted and not known:
            self._ask_after(self.interval)
        elif self._wanted:
            self._wanted = False
            self._changed()

    def _log(self, why: Failure, what: str) -> None:
        log.msg(f"worker {self._name} {what}: {why.getErrorMessage()}")
