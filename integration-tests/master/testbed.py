"""What the generated ``master.cfg`` of a test builds upon: a master on loopback that tells what happens in it."""

from __future__ import annotations

import json
import os
from typing import Any

from buildbot.plugins import schedulers, steps, util, worker
from buildbot.process.buildstep import BuildStep
from buildbot.process.remotecommand import RemoteCommand
from buildbot.process.results import FAILURE, SUCCESS
from buildbot.util.service import BuildbotService
from buildbot_kvm import listen_for_msgpack_on

__all__ = ["Repeat", "add_builder", "base", "schedulers", "steps", "util", "worker"]


class Herald(BuildbotService):
    """Writes each event of the master to standard output as one line: ``EVENT [[kind, id, event], message]``."""

    name = "herald"

    async def startService(self) -> None:
        """Listen for events from now on."""
        await super().startService()
        await self.master.mq.startConsuming(self.tell, (None, None, None))

    @staticmethod
    def tell(key: tuple[str, ...], message: dict[str, Any]) -> None:
        """Write one event, with those parts of its message that are plain values."""
        plain = {name: value for name, value in message.items() if isinstance(value, (int, str, type(None)))}
        # One write, so that no line of the log gets into the middle of it.
        os.write(1, f"EVENT {json.dumps([list(key), plain])}\n".encode())


class Repeat(BuildStep):
    """Has the worker run one command many times, one after the other, and ends with the first that fails."""

    name = "repeat"

    def __init__(self, command: str, args: dict[str, Any], times: int, **kwargs: Any) -> None:
        """``command`` and ``args`` are those of a ``RemoteCommand``."""
        super().__init__(**kwargs)
        self.command = command
        self.args = args
        self.times = times

    async def run(self) -> int:
        """Run all of them."""
        stdio = await self.addLog("stdio")
        results: int = SUCCESS
        for _ in range(self.times):
            # The master changes some of them when it sends them.
            command = RemoteCommand(self.command, dict(self.args))
            command.useLog(stdio)
            await self.runCommand(command)
            if command.didFail():
                results = FAILURE
                break
        return results


def base(protocols: dict[str, Any], www_port: int, workers: dict[str, str]) -> dict[str, Any]:
    """Make the configuration of a master without builders. ``workers`` maps names to passwords."""
    listen_for_msgpack_on("127.0.0.1")
    return {
        "title": "Tests",
        "buildbotURL": f"http://127.0.0.1:{www_port}/",
        "buildbotNetUsageData": None,
        "db": {"db_url": "sqlite:///state.sqlite"},
        "www": {"port": f"tcp:{www_port}:interface=127.0.0.1"},
        "protocols": protocols,
        # What a test asks for twice shall run twice.
        "collapseRequests": False,
        "workers": [worker.Worker(name, password) for name, password in workers.items()],
        "services": [Herald()],
        "builders": [],
        "schedulers": [],
    }


def add_builder(
    config: dict[str, Any], name: str, factory: Any, workernames: list[str] | None = None, **kwargs: Any
) -> None:
    """Add a builder and the scheduler ``force-NAME`` that starts it; for any of the workers if none is named.

    ``factory`` is one, or a list of steps for one.
    """
    names = workernames or [each.name for each in config["workers"]]
    if isinstance(factory, list):
        factory = util.BuildFactory(factory)
    config["builders"].append(util.BuilderConfig(name=name, workernames=names, factory=factory, **kwargs))
    config["schedulers"].append(schedulers.ForceScheduler(name=f"force-{name}", builderNames=[name]))
