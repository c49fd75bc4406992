"""Starts masters by a fork of a process that has imported Buildbot, which is most of what the start of one takes.

    fork_server.py SOCKET

start_master.py, its client, starts it and says what it is for. A connection is one master:

    client: {"directory": …, "arguments": […], "environment": {…}}, with its standard output and error
    client: a number for each signal that the master is to have, one a line
    server: how the master ended, as waitpid(2) has it, one line

A master is killed when its connection ends before it does. The server ends when it has had nothing to do for a while.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

from twisted.internet import pollreactor

# A reactor is made as soon as Buildbot is imported. The one for epoll has a descriptor that all masters would share.
pollreactor.install()  # type: ignore[no-untyped-call]

import buildbot.master  # noqa: E402
import buildbot.www.service  # noqa: E402, F401
from buildbot.plugins import schedulers, steps, util, worker  # noqa: E402
from twisted.internet import reactor as installed  # noqa: E402
from twisted.scripts import twistd  # noqa: E402

# What a reactor can do is described by interfaces, which mypy doesn't understand.
reactor: Any = installed

#: After how long without a master (seconds) the server ends.
IDLE = 60.0

#: The longest message of a client, in bytes.
LONGEST = 1 << 20

# What nearly every master has is imported when it is first asked for.
USED = (
    schedulers.ForceScheduler,
    schedulers.Triggerable,
    steps.FileUpload,
    steps.Git,
    steps.MasterShellCommand,
    steps.ShellCommand,
    steps.Trigger,
    util.BuildFactory,
    util.BuilderConfig,
    worker.Worker,
)


@dataclass
class Master:
    """A master that runs, and whom to tell of its end."""

    pid: int
    client: socket.socket


class Server:
    """Serves connections, one after the other."""

    def __init__(self, path: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        self.path = path
        self.masters: dict[int, Master] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        # A signal for each master that ends.
        self.ends, wakeup = socket.socketpair()
        for end in (self.ends, wakeup):
            end.setblocking(False)
        self.wakeup = wakeup
        self.selector.register(self.ends, selectors.EVENT_READ)
        signal.set_wakeup_fd(wakeup.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve until there is nothing to do."""
        idle_since = time.monotonic()
        while self.masters or time.monotonic() < idle_since + IDLE:
            for key, _ in self.selector.select(IDLE):
                if key.fileobj is self.listener:
                    self.start(self.listener.accept()[0])
                elif key.fileobj is self.ends:
                    self.ends.recv(4096)
                    self.reap()
                elif isinstance(key.data, Master):
                    self.listen_to(key.data)
            if self.masters:
                idle_since = time.monotonic()
        # Whoever looks for the server from now on starts another one.
        os.unlink(self.path)

    def start(self, client: socket.socket) -> None:
        """Start the master that a client asks for."""
        message, streams, _, _ = socket.recv_fds(client, LONGEST, 2)
        if not message:
            client.close()
            return
        pid = os.fork()
        if pid == 0:
            become_master(json.loads(message), streams, [self.listener, self.ends, self.wakeup, client])
        for stream in streams:
            os.close(stream)
        self.masters[pid] = Master(pid, client)
        self.selector.register(client, selectors.EVENT_READ, self.masters[pid])

    def listen_to(self, master: Master) -> None:
        """Pass a client's signals on to its master; the end of the client is one, too."""
        try:
            received = master.client.recv(4096)
        except ConnectionError:
            received = b""
        if not received:
            self.selector.unregister(master.client)
        # It is our child and not reaped yet, so that the number is still its own.
        if master.pid in self.masters:
            for number in [int(word) for word in received.split()] or [int(signal.SIGKILL)]:
                os.kill(master.pid, number)

    def reap(self) -> None:
        """Tell of the masters that have ended."""
        for pid in list(self.masters):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            master = self.masters.pop(pid)
            with master.client as client:
                try:
                    self.selector.unregister(client)
                    client.sendall(f"{status}\n".encode())
                except (KeyError, ConnectionError):
                    # The client went first.
                    pass


def become_master(wanted: dict[str, Any], streams: list[int], inherited: list[socket.socket]) -> None:
    """Run a master in this process, as `twistd` does, and end with it."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in inherited:
            end.close()
        os.setpgid(0, 0)
        for place, stream in enumerate(streams, start=1):
            os.dup2(stream, place)
            os.close(stream)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["directory"])
        # The pipe by which threads and signals wake it would be shared with all other masters.
        reactor.removeReader(reactor.waker)
        reactor._internalReaders.discard(reactor.waker)
        reactor.waker = None
        reactor.installWaker()
        sys.argv = ["twistd", *wanted["arguments"]]
        twistd.run()  # type: ignore[no-untyped-call]
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    # What is there now is shared by all masters, and no garbage.
    gc.collect()
    gc.freeze()
    Server(sys.argv[1]).serve()
