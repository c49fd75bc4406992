"""The repository of the project that the pipeline builds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from problem import Problem


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
