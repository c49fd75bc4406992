"""Where the master listens for workers that speak MessagePack over WebSocket."""

from __future__ import annotations

import ipaddress

from buildbot import config
from buildbot.worker.protocols.manager.msgpack import Dispatcher, MsgManager


def listen_for_msgpack_on(address: str) -> None:
    """Listen for ``msgpack_experimental_v7`` on one address of this machine alone, to be called in ``master.cfg``.

    Buildbot (4.3.0) takes no more than a number as the port of this protocol, and then listens on all addresses,
    without TLS. ``127.0.0.1`` is right where workers run on the master's own host, and where a proxy
    adds TLS. ``address`` is an IPv4 or IPv6 address. A reconfiguration does not move a port that is open already.
    """
    try:
        version = ipaddress.ip_address(address).version
    except ValueError as error:
        config.error(f"listen_for_msgpack_on: {error}")
        return
    # A Twisted endpoint description: colons inside an address are escaped, and TCP means version 4.
    interface = address.replace(":", "\\:")
    tcp = "tcp" if version == 4 else "tcp6"

    class OneAddressDispatcher(Dispatcher):
        """Adds the address to the description of the port that Buildbot made from its number."""

        def __init__(self, config_portstr: object, portstr: str) -> None:
            port = portstr.partition(":")[2]
            super().__init__(config_portstr, f"{tcp}:{port}:interface={interface}")

    MsgManager.dispatcher_class = OneAddressDispatcher
