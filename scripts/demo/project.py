"""The repository of the project that is built, and the server that the machines get it from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from events import Event, Events, Line
from lock import Lock
from paths import Paths
from ports import free_ports
from problem import Problem
from program import Program

#: Seconds within which the server listens.
START = 20

#: This machine's loopback address, as a machine with QEMU's user networking sees it.
HOST_IN_A_MACHINE = "10.0.2.2"


class Project:
    """A git server on 127.0.0.1 alone, with one repository."""

    def __init__(self, paths: Paths, events: Events, lock: Lock) -> None:
        self._paths = paths
        self._events = events
        self._program = Program("git", events, lock, paths.repository_log)
        self._port = free_ports(9418)
        self.url = f"git://{HOST_IN_A_MACHINE}:{self._port}/{paths.repository.name}"

    def start(self) -> None:
        """Bring the repository up to date, and wait until it is served."""
        publish(self._paths.project, self._paths.repository)
        # Not `git daemon`, which would stand between a signal and the server.
        server = Path(git(self._paths.repository, "--exec-path")) / "git-daemon"
        if not server.exists():
            raise Problem(f"{server} is missing: install the package that has it, on Fedora git-daemon")
        self._program.start(
            [
                str(server), "--verbose", "--listen=127.0.0.1", f"--port={self._port}", "--reuseaddr", "--export-all",
                f"--base-path={self._paths.repository.parent}", str(self._paths.repository),
            ],
            cwd=self._paths.demo,
            environment={},
        )  # fmt: skip
        self._events.wait(START, self._is_listening, "the start of the git server")

    def stop(self) -> None:
        self._program.stop()

    def _is_listening(self, event: Event) -> bool:
        self._program.must_run(event)
        return isinstance(event, Line) and event.program == "git" and "Ready to rumble" in event.text


def publish(project: Path, repository: Path) -> None:
    """Bring a bare repository's branch main to what is in the project's directory, by a commit if it differs."""
    if not repository.joinpath("HEAD").exists():
        git(repository, "init", "--quiet", "--bare", "--initial-branch=main", str(repository))
    git(repository, "--work-tree", str(project), "add", "--all", cwd=project)
    tree = git(repository, "write-tree")
    parents = []
    if git(repository, "for-each-ref", "refs/heads/main"):
        if git(repository, "rev-parse", "main^{tree}") == tree:
            return
        parents = ["-p", "main"]
    commit = git(repository, "commit-tree", tree, *parents, "-m", "The project as it stands in the demo")
    git(repository, "update-ref", "refs/heads/main", commit)


def git(repository: Path, *arguments: str, cwd: Path | None = None) -> str:
    """Run git on a bare repository, whatever the user has configured."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "GIT_DIR": str(repository),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "demo",
        "GIT_AUTHOR_EMAIL": "demo@localhost",
        "GIT_COMMITTER_NAME": "demo",
        "GIT_COMMITTER_EMAIL": "demo@localhost",
    }
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise Problem("git is not installed: scripts/setup packages installs it") from None
    if done.returncode != 0:
        raise Problem(f"git {arguments[0]} in {repository}: {done.stderr.strip()}")
    return done.stdout.strip()
