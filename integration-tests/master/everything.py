"""A factory with Buildbot's own steps in all their variety, to be run in different places and compared."""

from __future__ import annotations

from typing import Any

from buildbot.plugins import steps, util
from buildbot.process.buildstep import BuildStep
from buildbot.process.remotecommand import RemoteCommand
from buildbot.process.results import SUCCESS, WARNINGS
from buildbot.steps.worker import CompositeStepMixin

#: What the repository is called everywhere. Git is told where that is by a step, as a site does it in /etc/gitconfig.
REPOSITORY = "git://repository/hello"

NAME_REPOSITORY = """
if test -d /usr/local/lib/guest; then host=10.0.2.2; else host=127.0.0.1; fi
git config --global --replace-all url.git://$host:{port}/.insteadOf git://repository/
git config --global advice.detachedHead false
"""

# Names with blanks, quotes, a newline and letters beyond ASCII; files without content, with much, and with bytes that
# are no text; times and permissions of their own; symbolic links, one of which leads nowhere.
MAKE_FILES = r"""
set -e
umask 022
mkdir -p 'files/sub dir/für später' files/empty
cd files
printf 'some text\n' > plain
printf 'Grüße, 世界\n' > 'sub dir/für später/größe'
printf 'quoted\n' > "it's \"quoted\" \$HOME"
printf 'two lines\n' > 'one
two'
: > nothing
printf '\377\000\001\r\n\r' > bytes
seq 200000 > numbers
printf '#!/bin/sh\necho run\n' > program
chmod 755 program
chmod 640 plain
ln -s plain link
ln -s nowhere dangling
ln -s 'sub dir' linked-dir
find . -exec touch -h -d '2001-09-09 01:46:40 UTC' {} +
"""

SHOW_FILES = "find . -printf '%P %y %m %s %TY-%Tm-%Td %l\\n' | sort"


class First(BuildStep):
    """Looks at the builder's own directory before anything has been done in it."""

    name = "first"

    async def run(self) -> int:
        """Write what is in there into the log ``seen``."""
        listed = RemoteCommand("listdir", {"dir": "."})
        await self.runCommand(listed)
        looked_at = RemoteCommand("stat", {"file": "."})
        await self.runCommand(looked_at)
        seen = [listed.rc, listed.updates["files"], looked_at.rc, oct(looked_at.updates["stat"][-1][0])]
        await self.addCompleteLog("seen", f"{seen}\n")
        return int(SUCCESS)


class Look(BuildStep, CompositeStepMixin):
    """Uses what Buildbot offers to steps that are not its own, and the plain commands below that."""

    name = "look"

    def __init__(self, **kwargs: Any) -> None:
        """Take what every step takes."""
        super().__init__(**kwargs)
        self.logEnviron = False

    async def run(self) -> int:
        """Write what there is into the log ``seen``."""
        seen = [
            ("glob", sorted(await self.runGlob("build/files/*"))),
            ("glob of all below", sorted(await self.runGlob("build/files/**"))),
            ("glob of classes", sorted(await self.runGlob("build/files/[a-m]*"))),
            ("glob of nothing", await self.runGlob("build/files/*.none")),
            ("exists", await self.pathExists("build/files/plain")),
            ("exists not", await self.pathExists("build/files/none")),
            ("exists behind a link", await self.pathExists("build/files/dangling")),
            ("content", await self.getFileContentFromWorker("files/sub dir/für später/größe")),
            ("no content", await self.getFileContentFromWorker("files/nothing")),
            ("no file", await self.getFileContentFromWorker("files/none")),
            ("mkdir", await self.runMkdir("build/made/of/many")),
            ("rmfile", await self.runRmFile("build/files/program", abandonOnFailure=False)),
            ("rmfile of none", await self.runRmFile("build/files/program", abandonOnFailure=False)),
            ("rmdir", await self.runRmdir("build/made")),
            ("rmdir of none", await self.runRmdir("build/made", abandonOnFailure=False)),
            ("list", await self._list("build/files")),
            ("list of a file", await self._list("build/files/plain")),
            ("stat", await self._stat("build/files/plain")),
            ("stat through a link", await self._stat("build/files/link")),
            ("stat of a directory", (await self._stat("build/files/empty"))[:1]),
        ]
        await self.addCompleteLog("seen", "".join(f"{what}: {found!r}\n" for what, found in seen))
        return int(SUCCESS)

    async def _list(self, path: str) -> list[str] | int:
        command = RemoteCommand("listdir", {"dir": path})
        await self.runCommand(command)
        return sorted(command.updates["files"][-1]) if command.rc == 0 else command.rc

    async def _stat(self, path: str) -> list[int]:
        command = RemoteCommand("stat", {"file": path})
        await self.runCommand(command)
        mode, _inode, _device, links, _uid, _gid, size, _atime, mtime, _ctime = command.updates["stat"][-1]
        return [mode, links, size, mtime]


def may_fail(step: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a step whose failure is what is looked at, and not the build's."""
    return step(*args, **{"flunkOnFailure": False, "haltOnFailure": False, "warnOnFailure": False, **kwargs})


def shell(name: str, command: str | list[str], **kwargs: Any) -> Any:
    """Make a ShellCommand that may fail."""
    return may_fail(steps.ShellCommand, name=name, command=command, **kwargs)


def everything(port: int, protocol: str) -> Any:
    """Make the factory. ``port`` of the host's loopback has the repository.

    ``protocol`` is ``pb`` or ``msgpack``. Over the latter a 4.3.0 master answers with nothing when it is asked for a
    file, and takes no times of files: what needs that fails, and is to fail alike everywhere.
    """
    fails_over_msgpack = {"flunkOnFailure": protocol == "pb", "haltOnFailure": protocol == "pb"}
    return util.BuildFactory(
        [
            First(),
            *sources(port),
            *compilation(),
            *directories(),
            *shells(),
            *uploads(fails_over_msgpack),
            *downloads(fails_over_msgpack),
        ]
    )


def sources(port: int) -> list[Any]:
    """Get the sources, twice."""
    return [
        steps.ShellCommand(name="name repository", command=NAME_REPOSITORY.format(port=port), haltOnFailure=True),
        steps.Git(REPOSITORY, branch="main", mode="full", method="clobber", getDescription={"always": True}),
        steps.ShellCommand(name="leave rubbish", command="echo rubbish > hello.c; mkdir -p a/b; echo c > a/b/c"),
        steps.Git(REPOSITORY, branch="main", mode="full", method="fresh", name="git again", alwaysUseLatest=True),
        steps.ShellCommand(name="state of sources", command=["git", "status", "--short", "--branch"]),
    ]


def compilation() -> list[Any]:
    """Build and test them."""
    return [
        steps.Configure(command=["./configure", "--prefix=/opt/größe"]),
        steps.Compile(command=["make", "all"]),
        steps.Compile(
            name="compile with warnings",
            command="{ echo 'hello.c:1: warning: just so'; echo 'hello.c:2: Warning: another'; } >&2; make --silent",
        ),
        steps.Test(command=["make", "check"]),
        may_fail(steps.Test, name="failing test", command="make check; exit 2"),
        steps.SetPropertyFromCommand(name="version", command=["cat", "VERSION"], property="version"),
        steps.SetPropertyFromCommand(
            name="several properties",
            command="echo one=1; echo two=2 >&2",
            includeStderr=True,
            extract_fn=lambda rc, stdout, stderr: {"rc": rc, "out": stdout.strip(), "err": stderr.strip()},
        ),
        steps.ShellSequence(
            name="sequence",
            commands=[
                util.ShellArg(command=["make", "clean"], logname="clean"),
                util.ShellArg(
                    command="make dist && tar -tf hello-*.tar.gz | sort", logname="dist", haltOnFailure=True
                ),
            ],
            workdir="build",
        ),
    ]


def directories() -> list[Any]:
    """Make, copy, look at and remove directories and files."""
    return [
        steps.ShellCommand(name="make files", command=MAKE_FILES, haltOnFailure=True),
        steps.ShellCommand(name="show files", command=SHOW_FILES, workdir="build/files"),
        steps.MakeDirectory(dir="build/new/größer/als"),
        steps.MakeDirectory(dir="build/new", name="make it again"),
        may_fail(steps.MakeDirectory, dir="build/files/plain/x", name="make it below a file"),
        steps.CopyDirectory(src="build/files", dest="build/copy of files"),
        may_fail(steps.CopyDirectory, src="build/none", dest="build/none too", name="copy nothing"),
        steps.ShellCommand(name="show copy", command=SHOW_FILES, workdir="build/copy of files"),
        steps.FileExists(file="build/copy of files/plain"),
        may_fail(steps.FileExists, file="build/copy of files/none", name="missing file exists"),
        may_fail(steps.FileExists, file="build/new", name="directory is a file"),
        steps.RemoveDirectory(dir="build/copy of files"),
        steps.RemoveDirectory(dir="build/copy of files", name="remove nothing"),
        Look(),
        steps.ShellCommand(name="show what is left", command="ls -1; ls -1 files"),
    ]


def shells() -> list[Any]:
    """Run commands with all that ShellCommand knows."""
    follow = "echo first > follow.log; echo told; sleep 1; echo second >> follow.log; echo third > other.log"
    return [
        shell("fail", "echo about to fail; exit 7"),
        shell("warn", "exit 3", decodeRC={0: SUCCESS, 3: WARNINGS}, warnOnWarnings=False),
        shell("kill itself", "echo dying; kill -9 $$"),
        shell("missing program", ["no-such-program", "an argument"]),
        shell("program that is none", ["./VERSION"]),
        shell("missing directory", "pwd", workdir="build/not/made/before"),
        shell("argument vector", ["printf", "<%s>\n", "a b", "", "$HOME", "it's", '"', "*", "größe", "a\nb"]),
        shell(
            "environment",
            'echo "$GIVEN"; echo "$JOINED"; echo "${PYTHONPATH-none}"; echo "${EMPTY-unset}"; echo "$BOTH"',
            env={"GIVEN": "größer $ 'than'", "JOINED": ["/a", "/b"], "EMPTY": "", "BOTH": "<${GIVEN_NOT}>"},
        ),
        shell("without environment", "echo quiet", logEnviron=False),
        shell("input", ["cat"], initialStdin="given\nGrüße\n"),
        shell("no input", "cat; echo end"),
        shell("terminal", "test -t 1 && echo a terminal; echo trouble >&2", usePTY=True),
        shell("no terminal", "test -t 1 || echo no terminal; echo trouble >&2"),
        shell("only errors", "echo not wanted; echo wanted >&2", want_stdout=False),
        shell("only output", "echo wanted; echo not wanted >&2", want_stderr=False),
        shell("log files", follow, logfiles={"follow": "follow.log", "other": "other.log", "none": "none.log"}),
        shell(
            "followed log files",
            "echo old > old.log; echo new >> old.log",
            logfiles={"old": {"filename": "old.log", "follow": True}},
            lazylogfiles=True,
        ),
        shell("silence", "echo before; sleep 100 & sleep 100", timeout=2),
        shell(
            "too long",
            "trap 'echo cleaned up; exit 9' TERM; echo before; sleep 100 & wait",
            maxTime=2,
            sigtermTime=10,
        ),
        shell("too much", "seq 1000; sleep 100", max_lines=10),
        shell("carriage returns", r"printf 'a\rb\r\nc\n\rd'"),
        shell("long line", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end"),
        shell("bytes that are no text", r"printf 'a\377b\n\303\n'"),
        shell("umask", "umask"),
        shell("directory", "pwd"),
        shell("left behind", "sleep 5 > /dev/null 2>&1 < /dev/null & echo done"),
    ]


def uploads(fails_over_msgpack: dict[str, Any]) -> list[Any]:
    """Send files and directories to the master, which keeps them in ``got``."""
    return [
        steps.FileUpload(workersrc="files/numbers", masterdest="got/numbers"),
        steps.FileUpload(workersrc="files/nothing", masterdest="got/nothing", name="upload nothing"),
        steps.FileUpload(workersrc="files/bytes", masterdest="got/größe", mode=0o600, name="upload bytes"),
        steps.FileUpload(workersrc="files/one\ntwo", masterdest="got/one-two", name="upload odd name"),
        steps.FileUpload(workersrc="files/link", masterdest="got/link", name="upload through a link"),
        steps.FileUpload(
            workersrc="files/plain", masterdest="got/old", keepstamp=True, name="keepstamp", **fails_over_msgpack
        ),
        may_fail(steps.FileUpload, workersrc="files/none", masterdest="got/none", name="upload none"),
        may_fail(steps.FileUpload, workersrc="files/empty", masterdest="got/empty", name="upload a directory"),
        may_fail(steps.FileUpload, workersrc="files/numbers", masterdest="got/cut", maxsize=1000, name="upload much"),
        steps.DirectoryUpload(workersrc="files/sub dir", masterdest="got/tree"),
        steps.DirectoryUpload(workersrc="files/sub dir", masterdest="got/gz", compress="gz", name="upload gz"),
        steps.DirectoryUpload(workersrc="files/sub dir", masterdest="got/bz2", compress="bz2", name="upload bz2"),
        may_fail(steps.DirectoryUpload, workersrc="files/none", masterdest="got/none", name="upload no directory"),
        steps.MultipleFileUpload(
            workersrcs=["files/p*", "files/n*", "files/[l-m]ink", "files/em*"], masterdest="got/many", glob=True
        ),
        steps.MultipleFileUpload(
            workersrcs=["files/plain", "files/numbers"],
            masterdest="got/stamped",
            keepstamp=True,
            mode=0o640,
            name="many with times",
            **fails_over_msgpack,
        ),
        may_fail(
            steps.MultipleFileUpload,
            workersrcs=["files/plain", "files/none"],
            masterdest="got/some",
            name="some of many",
        ),
    ]


def downloads(fails_over_msgpack: dict[str, Any]) -> list[Any]:
    """Get files from the master."""
    return [
        steps.FileDownload(mastersrc="got/numbers", workerdest="down/numbers", **fails_over_msgpack),
        steps.FileDownload(
            mastersrc="got/numbers", workerdest="down/größe", mode=0o711, name="download mode", **fails_over_msgpack
        ),
        steps.StringDownload("Grüße\n", workerdest="down/sub dir/text", mode=0o604, **fails_over_msgpack),
        steps.StringDownload("", workerdest="down/nothing", name="download nothing", **fails_over_msgpack),
        steps.JSONStringDownload({"a": [1, "ü"]}, workerdest="down/json", **fails_over_msgpack),
        may_fail(steps.FileDownload, mastersrc="got/none", workerdest="down/none", name="download none"),
        may_fail(
            steps.FileDownload, mastersrc="got/numbers", workerdest="down/cut", maxsize=1000, name="download too much"
        ),
        may_fail(steps.StringDownload, "text", workerdest="files/plain/below", name="download below a file"),
        shell("show downloads", "find down -printf '%P %y %m %s\\n' | sort; cat down/*/text down/json"),
        shell("sum of downloads", "sha256sum down/numbers files/numbers"),
    ]
