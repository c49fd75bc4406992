"""A factory whose master makes paths and asks for facts, which have to be true where the build is."""

from __future__ import annotations

from typing import Any

from buildbot.plugins import steps, util

#: Where the builder's directory is, as the master has it.
HERE = util.Interpolate("%(prop:builddir)s")


def below(path: str) -> Any:
    """Give a path in the builder's directory, as a site writes it."""
    return util.Interpolate(f"%(prop:builddir)s/{path}")


def paths() -> list[Any]:
    """Use paths of the master's making in all places where there can be some."""
    return [
        steps.ShellCommand(
            name="paths",
            command=["sh", "-ec", 'cd ..; pwd; echo "$CCACHE_DIR"; echo "$JOINED"; echo text > "$0"/build/L', HERE],
            env={"CCACHE_DIR": below("ccache"), "JOINED": [below("one"), below("two")]},
            logfiles={"L": below("build/L")},
            initialStdin=HERE,
        ),
        steps.ShellCommand(name="workdir", command="mkdir -p sub; cd sub; pwd", workdir=below("elsewhere")),
        steps.FileUpload(workersrc=below("build/L"), masterdest=util.Interpolate("L-%(prop:buildername)s")),
        steps.FileExists(file=below("build/L")),
        steps.ShellCommand(name="home", command="echo text > ~/of-the-guest"),
        steps.FileUpload(workersrc="~/of-the-guest", masterdest=util.Interpolate("H-%(prop:buildername)s")),
        steps.SetPropertyFromCommand(name="where", command="echo $HOME", property="home of the command"),
    ]


def facts() -> list[Any]:
    """Ask for what the worker knows of the place."""
    return [
        steps.SetPropertiesFromEnv(variables=["HOME", "USER"], name="variables"),
        steps.ShellCommand(name="processors", command=["sh", "-c", 'nproc; echo "$@"', "", "-j", processors()]),
    ]


def processors() -> Any:
    """Give the number of processors, as a site writes it."""
    return util.Interpolate("%(worker:numcpus)s")


def private_sources(private: dict[str, Any]) -> list[Any]:
    """Get what only those get who have a key or a password, and push something there.

    ``private`` is what ``PrivateRepository::seen_at`` tells.
    """
    by_key = {"sshPrivateKey": private["key"], "sshKnownHosts": private["known_hosts"]}
    who = "; ".join(f"git config user.{name} test@localhost" for name in ("name", "email"))
    return [
        steps.Git(private["ssh"], branch="main", mode="full", method="clobber", name="git by key", **by_key),
        steps.Git(private["ssh"], branch="main", mode="incremental", name="git update by key", **by_key),
        steps.Git(
            private["http"],
            branch="main",
            mode="full",
            method="clobber",
            name="git by password",
            auth_credentials=tuple(private["credentials"]),
            workdir="by-password",
        ),
        steps.ShellCommand(name="change", command=f"{who}; git checkout -B main; echo more >> VERSION"),
        steps.GitCommit(workdir="build", paths=["VERSION"], messages=["by a build"], name="commit"),
        steps.GitTag(workdir="build", tagName=util.Interpolate("by-%(prop:buildername)s"), name="tag"),
        steps.GitPush(
            workdir="build",
            repourl=private["ssh"],
            branch=util.Interpolate("main:refs/heads/by-%(prop:buildername)s"),
            name="push",
            **by_key,
        ),
        steps.ShellCommand(name="nothing left", command="ls -A .. ../.. | grep -F .buildbot || echo clean"),
    ]
