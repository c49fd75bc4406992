"""Runs a master in this directory as `twistd ARGUMENT...` would, and ends as it does; it is there sooner.

    start_master.py ARGUMENT...

The master is a fork of a process that has imported Buildbot already, see fork_server.py. Signals are passed on to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import tempfile
import time
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
SERVER = os.path.join(HERE, "fork_server.py")

#: How long (seconds) the server may take to import Buildbot, on a loaded machine.
START = 60.0

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main() -> int:
    """Have a master started, and wait for its end."""
    wanted = {"directory": os.getcwd(), "arguments": sys.argv[1:], "environment": dict(os.environ)}
    connection = connect()
    socket.send_fds(connection, [json.dumps(wanted).encode()], [1, 2])
    for number in PASSED_ON:
        signal.signal(number, lambda received, _frame: connection.sendall(f"{received}\n".encode()))
    answer = connection.recv(64)
    if not answer:
        print("start_master: the server that forks masters is gone", file=sys.stderr)
        return 1
    status = int(answer)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.WEXITSTATUS(status)


def connect() -> socket.socket:
    """Connect to the server of this Python environment, and start it if there is none."""
    directory = os.path.join(tempfile.gettempdir(), f"kvm-worker-test-masters-{os.getuid()}")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if os.stat(directory).st_uid != os.getuid():
        raise SystemExit(f"start_master: {directory} is somebody else's")
    # Without site-packages sys.prefix is not the environment's, and the same for all.
    made_of = [sys.executable, os.stat(SERVER).st_mtime_ns, os.stat(os.path.dirname(sys.executable)).st_mtime_ns]
    path = os.path.join(directory, f"{zlib.crc32(repr(made_of).encode()):08x}")
    with open(f"{path}.lock", "w", encoding="ascii") as lock:
        # Of several tests that begin together the first one starts the server.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return try_to_connect(path) or start_server(path)


def try_to_connect(path: str) -> socket.socket | None:
    """Connect to a server if one listens."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection


def start_server(path: str) -> socket.socket:
    """Start a server, which outlives this process, and connect to it."""
    import subprocess

    if os.path.exists(path):
        os.unlink(path)
    with open(f"{path}.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, SERVER, path],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(),
        )
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        connection = try_to_connect(path)
        if connection is not None:
            return connection
        if server.poll() is not None:
            break
        # It binds its socket when it has imported all, and has no other way to tell.
        time.sleep(0.02)
    server.kill()
    with open(f"{path}.log", encoding="utf-8") as log:
        raise SystemExit(f"start_master: the server that forks masters did not start:\n{log.read()}")


if __name__ == "__main__":
    sys.exit(main())
