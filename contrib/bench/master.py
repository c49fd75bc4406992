"""The Buildbot master that all contestants work for."""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from events import ANSWER, Events
from guests import COUNTED, COUNTS, GUESTS
from plan import CONTESTANTS, COPIER, COPIES, Paths, Sizes
from problem import Failed, Problem
from program import Program

#: Seconds within which the master starts, and a worker finds it.
START = 120

#: Seconds the master may go on working after a build. It compresses the log then.
SETTLE = 120

#: Seconds of looking whether it works, and how many of them it may.
LOOK = 0.5
QUIET = 0.03

#: Seconds a build may take. A log of full size takes most of a minute on a slow machine.
LONGEST = 900

#: A worker needs one for each slot, and one more.
SSH_PORTS = max(COUNTS) + 1

SUBJECTS = ("workers/*/connected", "buildrequests/*/complete")

SUCCESS = 0


@dataclass(frozen=True)
class Build:
    """A build that succeeded."""

    buildid: int
    properties: dict[str, Any]

    @property
    def seconds(self) -> list[float]:
        """Give what each of its timed steps took."""
        return [span["ended"] - span["began"] for span in self.properties["spans"]]


class Master:
    """A master with a new database that listens on 127.0.0.1 alone."""

    def __init__(self, paths: Paths, sizes: Sizes, accel: str) -> None:
        self.password = secrets.token_urlsafe()
        self.uploads = paths.bench / "uploads"
        www, self.pb, self.msgpack, by_hand = free_ports(4)
        #: The first of the ports that lead to guests.
        self.ssh_port = free_ports_in_a_row(SSH_PORTS)
        self._url = f"http://127.0.0.1:{www}/api/v2/"
        shutil.rmtree(paths.master, ignore_errors=True)
        self.uploads.mkdir(exist_ok=True)
        run_tool("buildbot", "create-master", "--quiet", "--config", str(paths.configuration), str(paths.master))
        told = {
            **asdict(sizes),
            "file": str(paths.file),
            "uploads": str(self.uploads),
            "copier": COPIER.name,
            "copies": COPIES,
            "key": str(paths.images / "id_ed25519"),
            "guests": [guest.told(paths) for guest in GUESTS],
            "counts": COUNTS,
            "counted": COUNTED,
            "by_hand": by_hand,
            "accel": accel,
            "contestants": [contestant.name for contestant in CONTESTANTS],
            "password": self.password,
            "www": www,
            "pb": self.pb,
            "msgpack": self.msgpack,
        }
        self.program = Program(
            "the master",
            [tool("twistd"), "--nodaemon", "--no_save", "--pidfile=", "--python=buildbot.tac"],
            paths.master,
            {**os.environ, "BENCH": json.dumps(told)},
        )
        try:
            self._wait_until_it_answers(www)
            self._events = Events(www, SUBJECTS)
        except BaseException:
            self.program.stop()
            raise

    def port(self, protocol: str) -> int:
        return self.pb if protocol == "pb" else self.msgpack

    def wait_for_workers(self, workers: dict[str, Program]) -> None:
        """Wait until all of them, by their names, are connected."""
        # The events of those that were quick are in the stream.
        missing = set(workers)
        what = "the workers' connections to the master"
        for key, message in self._events.messages(START, [self.program, *workers.values()], what):
            if key[0] == "workers":
                missing.discard(message["name"])
            if not missing:
                return

    def build(self, builder: str, worker: Program, within: float = LONGEST) -> Build:
        """Have a builder build, and wait for its success. Raises Failed if there is none, or not in time."""
        builderid = self._get(f"builders/{builder}")["builders"][0]["builderid"]
        _, requests = self._call(f"forceschedulers/force-{builder}", "force", builderid=builderid)
        request = requests[str(builderid)]
        try:
            results = self._wait_for_request(request, builder, worker, within)
        except Failed:
            # It would be in the way of the next.
            for build in self._get(f"builds?buildrequestid={request}&complete=false")["builds"]:
                self._call(f"builds/{build['buildid']}", "stop", reason="it takes too long")
            raise
        if results != SUCCESS:
            raise Failed(f"{builder} failed ({results}): see the logs in .cache/bench")
        buildid = self._get(f"builds?buildrequestid={request}")["builds"][0]["buildid"]
        properties = self._get(f"builds/{buildid}/properties")["properties"][0]
        return Build(buildid, {name: value for name, (value, _) in properties.items()})

    def _wait_for_request(self, request: int, builder: str, worker: Program, within: float) -> int:
        for key, message in self._events.messages(within, [self.program, worker], f"the build of {builder}"):
            if key[0] == "buildrequests" and message["buildrequestid"] == request:
                return int(message["results"])
        raise Problem("the master's events ended")

    def settle(self) -> None:
        """Wait until the master has done what it does after a build, of which it tells nobody."""
        deadline = time.monotonic() + SETTLE
        used = self.program.cpu()
        while not self.program.ended_within(LOOK):
            before, used = used, self.program.cpu()
            if used - before <= QUIET:
                return
            if time.monotonic() > deadline:
                raise Problem(f"the master is still at work {SETTLE} s after a build: see its log in .cache/bench")
        raise self.program.too_early()

    def lines(self, build: Build) -> int:
        """Give the number of lines in the log of a build's last step."""
        step = max(self._get(f"builds/{build.buildid}/steps")["steps"], key=lambda step: int(step["number"]))
        logs = self._get(f"steps/{step['stepid']}/logs")["logs"]
        return sum(int(log["num_lines"]) for log in logs if log["type"] == "s")

    def _wait_until_it_answers(self, port: int) -> None:
        deadline = time.monotonic() + START
        while not listens(port):
            if self.program.ended_within(0.1):
                raise self.program.too_early()
            if time.monotonic() > deadline:
                raise Problem(f"the master did not start within {START} s: see its log in .cache/bench")

    def _call(self, path: str, method: str, **parameters: Any) -> Any:
        call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        return self._ask(path, json.dumps(call).encode())["result"]

    def _get(self, path: str) -> Any:
        return self._ask(path, None)

    def _ask(self, path: str, data: bytes | None) -> Any:
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Problem(f"the master refused {path}: {error.read().decode(errors='replace')}") from None
        except OSError as error:
            raise Problem(f"the master did not answer {path}: {error}") from None


def free_ports(count: int) -> list[int]:
    """Give ports of 127.0.0.1 that nobody uses. Nothing holds them until the master starts."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def free_ports_in_a_row(count: int) -> int:
    """Give the first of so many."""
    while True:
        (first,) = free_ports(1)
        if first + count <= 65536 and not any(listens(first + number) for number in range(count)):
            return first


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def tool(name: str) -> str:
    """Give the path of a program of this Python environment."""
    return str(Path(sys.executable).with_name(name))


def run_tool(name: str, *arguments: str) -> None:
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Problem(f"{name} {arguments[0]} failed:\n{done.stdout}{done.stderr}")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise Problem(f"this Python has no {package}: contrib/bench/run uses one that has") from None
