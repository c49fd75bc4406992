"""The Buildbot master: its directory, its process, and its web interface."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import secrets
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from events import Event, Events, Line, Told
from lock import Lock
from paths import Paths
from ports import free_ports
from problem import Problem
from program import Program
from project import Project

#: Seconds within which a master starts, on a slow machine.
START = 120

#: Seconds within which it answers one request.
ANSWER = 30

#: What the demo wants to be told.
SUBJECTS = ("workers/*/connected", "builds/*/new", "steps/*/started", "steps/*/finished", "buildrequests/*/complete")


class Master:
    """A master with the example's configuration, that listens on 127.0.0.1 alone."""

    def __init__(self, paths: Paths, events: Events, lock: Lock, project: Project) -> None:
        self._paths = paths
        self._project = project
        self._events = events
        self._program = Program("master", events, lock, paths.master_log)
        self.web_port = free_ports(8010)
        self.worker_port = free_ports(9989)
        self.url = f"http://127.0.0.1:{self.web_port}/"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._make_directory()
        make_password(self._paths.password)
        self._program.start(
            [tool("twistd"), "--nodaemon", "--pidfile=", "--logfile=-", "--python=buildbot.tac"],
            cwd=self._paths.master,
            environment={
                "KVM_DEMO_WEB_PORT": str(self.web_port),
                "KVM_DEMO_WORKER_PORT": str(self.worker_port),
                "KVM_DEMO_PASSWORD_FILE": str(self._paths.password),
                "KVM_DEMO_REPOSITORY": self._project.url,
                "KVM_DEMO_IMAGES": str(self._paths.images),
                "KVM_DEMO_SSH_PORT": str(free_ports(2822)),
            },
        )
        self._events.wait(START, self._is_running, "the master's start")
        self._listen()
        self._forget_requests()

    def is_running(self) -> bool:
        return self._program.is_running()

    def stop(self) -> None:
        self._program.stop()

    def must_run(self, event: Event) -> None:
        self._program.must_run(event)

    def get(self, path: str) -> dict[str, Any]:
        """Read from the REST interface."""
        return self._ask(urllib.request.Request(f"{self.url}api/v2/{path}"))

    def control(self, path: str, method: str, **parameters: Any) -> Any:
        """Call a method of a resource."""
        call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        request = urllib.request.Request(
            f"{self.url}api/v2/{path}", json.dumps(call).encode(), {"Content-Type": "application/json"}
        )
        return self._ask(request)["result"]

    def _make_directory(self) -> None:
        """Make the master's directory, unless there is one that is complete and of the same versions."""
        made_for = f"{buildbot_version()}\n{self._paths.examples}\n"
        marker = self._paths.master / "made-for"
        if marker.exists() and marker.read_text() == made_for:
            return
        shutil.rmtree(self._paths.master, ignore_errors=True)
        run_tool(
            "buildbot", "create-master", "--quiet", "--no-logrotate",
            "--config", str(self._paths.examples / "master.cfg"), str(self._paths.master),
        )  # fmt: skip
        marker.write_text(made_for)

    def _is_running(self, event: Event) -> bool:
        self.must_run(event)
        return isinstance(event, Line) and event.program == "master" and "BuildMaster is running" in event.text

    def _listen(self) -> None:
        """Have the master tell its events, as they happen, until it ends."""
        connection = http.client.HTTPConnection("127.0.0.1", self.web_port, timeout=ANSWER)
        connection.request("GET", "/sse/listen")
        stream = connection.getresponse()
        name, listener = next(server_sent_events(stream))
        if name != "handshake":
            raise Problem(f"the master's event stream begins with {name!r}, not with a handshake")
        for subject in SUBJECTS:
            with urllib.request.urlopen(f"{self.url}sse/add/{listener}/{subject}", timeout=ANSWER):
                pass
        connection.sock.settimeout(None)
        threading.Thread(target=self._tell, args=(stream,), daemon=True).start()

    def _forget_requests(self) -> None:
        """Cancel what an interrupted demo still wanted built, before there is a worker to build it."""
        waiting = {request["buildrequestid"] for request in self.get("buildrequests?complete=false")["buildrequests"]}
        for request in waiting:
            self.control(f"buildrequests/{request}", "cancel", reason="the demo that wanted it is gone")

        def is_last(event: Event) -> bool:
            self.must_run(event)
            if isinstance(event, Told) and (event.subject, event.kind) == ("buildrequests", "complete"):
                waiting.discard(event.facts["buildrequestid"])
            return not waiting

        if waiting:
            self._events.wait(ANSWER, is_last, "the end of build requests of an earlier demo")

    def _tell(self, stream: http.client.HTTPResponse) -> None:
        try:
            for _, data in server_sent_events(stream):
                event = json.loads(data)
                self._events.put(Told(event["key"][0], event["key"][-1], event["message"]))
        except (OSError, http.client.HTTPException, ValueError):
            pass  # the master is gone, which its exit tells

    def _ask(self, request: urllib.request.Request) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(request, timeout=ANSWER) as answer:
                content: dict[str, Any] = json.load(answer)
                return content
        except urllib.error.HTTPError as error:
            raise Problem(f"the master refused {request.selector}: {error.read().decode(errors='replace')}") from None
        except OSError as error:
            raise Problem(f"the master did not answer {request.selector}: {error}") from None


def server_sent_events(stream: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    """Give name and data of each event in a stream of them."""
    name = data = ""
    for line in iter(stream.readline, b""):
        key, _, value = line.decode().rstrip("\n").partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            data = value
        elif not key:
            yield name, data


def make_password(file: Path) -> None:
    """Make up a password for the worker, once."""
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe() + "\n")


def tool(name: str) -> str:
    """Give the path of a program of this Python environment."""
    return str(Path(sys.executable).with_name(name))


def run_tool(name: str, *arguments: str) -> str:
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Problem(f"{name} {arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def buildbot_version() -> str:
    try:
        return importlib.metadata.version("buildbot")
    except importlib.metadata.PackageNotFoundError:
        raise Problem("this Python has no Buildbot: scripts/setup venv makes one that has") from None
