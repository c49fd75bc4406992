"""One build: started, watched and, if need be, stopped."""

from __future__ import annotations

import sys
import time
from typing import Any

from events import Event, Events, Interrupted, Told
from master import Master
from problem import Problem
from worker import Worker

#: Seconds a whole build may take. Without KVM it is a few minutes on a slow machine.
LONGEST = 3600

#: Seconds a build that is stopped has to give its machines back.
STOP = 90

#: How many of the last lines of a failing step's logs are shown.
TAIL = 25

RESULTS = ("success", "warnings", "FAILURE", "skipped", "EXCEPTION", "RETRY", "CANCELLED")
SUCCESS, WARNINGS, FAILURE, SKIPPED = range(4)


class Build:
    """What becomes of one build request, told line by line."""

    def __init__(self, master: Master, worker: Worker, events: Events) -> None:
        self._master = master
        self._worker = worker
        self._events = events
        self._request: int | None = None
        self._build: dict[str, Any] | None = None
        self._began: dict[int, float] = {}
        self._failed: dict[str, Any] | None = None

    def run(self, builder: str) -> bool:
        """Have a builder build and wait for the end. True if it succeeded."""
        builderid = self._master.get(f"builders/{builder}")["builders"][0]["builderid"]
        print(f"builder: {builder}", flush=True)
        started = time.monotonic()
        _, requests = self._master.control(
            f"forceschedulers/force-{builder}", "force", builderid=builderid, reason="demo"
        )
        self._request = int(requests[str(builderid)])
        end = self._events.wait(LONGEST, self._is_the_end, f"the end of the build on {builder}")
        self._request = None
        result: int = end.facts["results"]
        if result != SUCCESS and self._failed is not None:
            self._show_logs(self._failed)
        print(f"build: {RESULTS[result]} in {time.monotonic() - started:.1f} s", flush=True)
        return result == SUCCESS

    def stop(self) -> None:
        """Stop the build if it runs, and wait until it has given its machines back."""
        if self._request is None or not (self._master.is_running() and self._worker.is_running()):
            return
        try:
            print(
                "stopping the build: its machines are given back; Ctrl-C again leaves that to the worker", flush=True
            )
            self._master.control(f"buildrequests/{self._request}", "cancel", reason="the demo was stopped")
            if self._build is not None:
                self._master.control(f"builds/{self._build['buildid']}", "stop", reason="the demo was stopped")
            self._events.wait(STOP, self._is_the_end, "the end of the build that was stopped")
        except (Problem, Interrupted) as problem:
            print(f"demo: {problem}" if isinstance(problem, Problem) else "demo: not waiting", file=sys.stderr)

    def _is_the_end(self, event: Event) -> bool:
        self._master.must_run(event)
        self._worker.must_run(event)
        if not isinstance(event, Told):
            return False
        told = (event.subject, event.kind)
        facts = event.facts
        if told == ("builds", "new") and facts["buildrequestid"] == self._request:
            self._build, self._failed = facts, None
            print(f"build: {self._master.url}#/builders/{facts['builderid']}/builds/{facts['number']}", flush=True)
        elif told == ("steps", "started") and self._is_ours(facts):
            self._began[facts["stepid"]] = time.monotonic()
            if sys.stdout.isatty():
                print(f"  {'':>10} {'...':<9}  {facts['name']:<18}", end="\r", flush=True)
        elif told == ("steps", "finished") and self._is_ours(facts):
            self._show_step(facts)
        return told == ("buildrequests", "complete") and facts["buildrequestid"] == self._request

    def _is_ours(self, step: dict[str, Any]) -> bool:
        return self._build is not None and step["buildid"] == self._build["buildid"]

    def _show_step(self, step: dict[str, Any]) -> None:
        now = time.monotonic()
        seconds = now - self._began.pop(step["stepid"], now)
        result = step["results"]
        if result == SUCCESS and step["name"] == "worker_preparation":
            return
        if result not in (SUCCESS, WARNINGS, SKIPPED) and self._failed is None:
            self._failed = step
        word = "ok" if result == SUCCESS else RESULTS[result]
        summary = "" if step["state_string"] == step["name"] else step["state_string"]
        print(f"  {seconds:6.1f} s  {word:<9}  {step['name']:<18}  {summary}".rstrip(), flush=True)

    def _show_logs(self, step: dict[str, Any]) -> None:
        """Show the ends of a step's logs."""
        for log in self._master.get(f"steps/{step['stepid']}/logs")["logs"]:
            first = max(0, log["num_lines"] - TAIL)
            if log["num_lines"] == 0 or log["type"] == "h":
                continue
            chunk = self._master.get(f"logs/{log['logid']}/contents?offset={first}&limit={TAIL}")["logchunks"][0]
            print(f"--- {step['name']}, the end of its log {log['name']}:")
            for line in chunk["content"].splitlines():
                # Each line of a stream log is headed by the stream's letter.
                print(f"    {line[1:] if log['type'] == 's' else line}")
