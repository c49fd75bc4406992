"""Ports of this machine that nobody uses."""

from __future__ import annotations

import socket

from problem import Problem


def free_ports(preferred: int, count: int = 1) -> int:
    """Give the first of `count` ports in a row that are free on 127.0.0.1, the preferred ones or later ones.

    Nothing holds them until the program that wants them starts. Where another one is quicker, the start fails
    and says so.
    """
    for first in range(preferred, preferred + 200, count):
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise Problem(f"no free port on 127.0.0.1 from {preferred} to {preferred + 199}: stop what uses them")


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As servers do, or a port would count as taken for a minute after its last connection.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
