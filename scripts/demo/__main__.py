"""A Buildbot master and a kvm-worker on this machine, and one build of the example pipeline.

Run by ./demo, which first makes sure that everything is there. Exits 0 only if the build succeeded.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from build import Build
from events import Events, Interrupted
from lock import Lock
from machines import stop_leftovers
from master import Master
from paths import Paths
from problem import Problem
from project import Project
from worker import Worker

BUILDERS = ("demo", "demo-check", "demo-2009")


def main() -> int:
    options = arguments()
    paths = Paths.of_this_clone()
    paths.demo.mkdir(parents=True, exist_ok=True)
    events = Events()
    try:
        with Lock(paths.demo, events) as lock:
            return run(options, paths, events, lock)
    except Interrupted:
        print("demo: stopped", file=sys.stderr)
        return 130
    except Problem as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--builder",
        choices=BUILDERS,
        default="demo",
        help="the builder of contrib/examples/master.cfg to run (default: demo)",
    )
    parser.add_argument("--keep", action="store_true", help="leave master and worker running until Ctrl-C")
    return parser.parse_args()


def run(options: argparse.Namespace, paths: Paths, events: Events, lock: Lock) -> int:
    started = time.monotonic()
    stop_leftovers(paths)
    project = Project(paths, events, lock)
    master = Master(paths, events, lock, project)
    worker = Worker(paths, events, lock, master)
    build = Build(master, worker, events)
    try:
        project.start()
        say(f"master: starting, its log is {paths.shown(paths.master_log)}")
        master.start()
        say(f"worker: starting, its log is {paths.shown(paths.worker_log)}")
        worker.start()
        succeeded = build.run(options.builder)
        say(f"web page: {master.url}{'' if options.keep else ' (while it ran; --keep leaves it up)'}")
        say(f"{'SUCCESS' if succeeded else 'NO SUCCESS'} after {time.monotonic() - started:.0f} s")
        if options.keep:
            say("master and worker go on running: Ctrl-C stops them")
            events.wait_for_interrupt()
        return 0 if succeeded else 1
    finally:
        try:
            build.stop()
        finally:
            worker.stop()
            master.stop()
            project.stop()
            stop_leftovers(paths)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
