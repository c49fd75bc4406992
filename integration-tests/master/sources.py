"""All of Buildbot's source steps whose client is a Debian package, on repositories that the build makes itself.

What they do has to be the same on a worker's host and in a machine, so the steps are the same.
"""

from __future__ import annotations

from typing import Any

from at_home import below
from buildbot.plugins import steps, util

#: A change to ``file`` as a developer who tries a build sends it.
PATCH = b"""--- a/file
+++ b/file
@@ -1,2 +1,3 @@
 git
 more
+patched
"""

#: Whoever commits, and no questions asked; programs that were made in the builder's directory come first.
ENV = {
    "PATH": [below("bin"), "${PATH}"],
    "HOME": below("home"),
    "EMAIL": "test@localhost",
    "BRZ_EMAIL": "test <test@localhost>",
    "DARCS_EMAIL": "test@localhost",
    "HGUSER": "test",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@localhost",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@localhost",
    "LC_ALL": "C.UTF-8",
}

#: How to make a repository with a file of the name of its system in it, each in an empty directory of its own.
MAKE = {
    "git": """
        git init -q -b main part && cd part && echo part > part && git add . && git commit -q -m part && cd ..
        git init -q -b main whole && cd whole && echo git > file
        git -c protocol.file.allow=always submodule --quiet add "$PWD/../part" part
        git add . && git commit -q -m one && echo more >> file && git commit -q -a -m two
        git clone -q --bare . ../not-yet.git""",
    "hg": "hg init -q . && echo hg > file && hg add -q && hg commit -q -m one",
    "svn": """
        svnadmin create . && svn checkout -q "file://$PWD" ../svn-work && cd ../svn-work
        echo svn > file && svn add -q file && svn commit -q -m one""",
    "bzr": """
        mkdir -p ../../bin && ln -sf "$(command -v brz)" ../../bin/bzr
        brz init -q . && echo bzr > file && brz add -q && brz commit -q -m one""",
    "cvs": """
        cvs -d "$PWD" init && mkdir ../cvs-work && cd ../cvs-work && echo cvs > file
        cvs -Q -d "$OLDPWD" import -m one module vendor start""",
    "darcs": "darcs init -q && echo darcs > file && darcs add -q file && darcs record -q -a -m one",
}


def repository(name: str) -> Any:
    """Give a repository's address."""
    return util.Interpolate("file://%(prop:builddir)s/repositories/" + name)


def source(step: Any, name: str, **kwargs: Any) -> Any:
    """Make a source step, in a directory that has its name unless another is said."""
    return step(name=name, **{"workdir": name, "env": ENV, "logEnviron": False, "haltOnFailure": False, **kwargs})


class TriedGit(steps.Git):  # type: ignore[misc]
    """As for a build that a developer tries: with a patch."""

    def run_vc(self, branch: Any, revision: Any, _patch: Any) -> Any:
        """Get the source, and change it."""
        return super().run_vc(branch, revision, (1, PATCH))


def checkouts(protocol: str) -> list[Any]:
    """Get each of them in the ways there are."""
    git = {"repourl": repository("git/whole"), "branch": "main", "config": {"protocol.file.allow": "always"}}
    hg = {"repourl": below("repositories/hg"), "branchType": "inrepo", "defaultBranch": "default"}
    bzr = {"repourl": below("repositories/bzr")}
    cvs = {"cvsroot": below("repositories/cvs"), "cvsmodule": "module"}
    darcs = {"repourl": below("repositories/darcs")}
    svn = {"repourl": repository("svn")}
    # A 4.3.0 master sends no files over MessagePack, and a patch is one.
    tried = [source(TriedGit, "git-patch", mode="full", method="clobber", **git)] if protocol == "pb" else []
    return [
        *tried,
        source(steps.Git, "git-submodules", mode="full", method="clobber", submodules=True, **git),
        source(steps.Git, "git-shallow", mode="full", method="clobber", shallow=1, **git),
        source(steps.Git, "git-copy", mode="full", method="copy", submodules=True, **git),
        source(steps.Git, "git-fresh", mode="full", method="fresh", workdir="git-submodules", submodules=True, **git),
        source(steps.Git, "git-update", mode="incremental", workdir="git-shallow", **git),
        steps.ShellCommand(
            name="late repository",
            command="(sleep 3; mv not-yet.git late.git) </dev/null >/dev/null 2>&1 &",
            workdir="repositories/git",
        ),
        source(
            steps.Git,
            "git-retry",
            mode="full",
            method="clobber",
            retry=(2, 10),
            **{**git, "repourl": repository("git/late.git")},
        ),
        source(steps.Mercurial, "hg", mode="full", method="clobber", **hg),
        source(steps.SVN, "svn", mode="full", method="clobber", **svn),
        source(steps.SVN, "svn-update", mode="incremental", workdir="svn", **svn),
        source(steps.Bzr, "bzr", mode="full", method="clobber", **bzr),
        source(steps.CVS, "cvs", mode="full", method="clobber", **cvs),
        source(steps.Darcs, "darcs", mode="full", method="clobber", **darcs),
    ]


def sources(protocol: str) -> list[Any]:
    """Make the factory's steps. ``protocol`` is ``pb`` or ``msgpack``."""
    script = "set -e\nmkdir -p home repositories bin\n"
    for name, make in MAKE.items():
        script += f"(mkdir repositories/{name}; cd repositories/{name}; {make}\n)\n"
    return [
        steps.ShellCommand(name="clean", command="rm -rf ./* .[!.]*", workdir="."),
        steps.ShellCommand(name="make repositories", command=script, workdir=".", env=ENV, haltOnFailure=True),
        *checkouts(protocol),
        steps.ShellCommand(
            name="look",
            # Buildbot's own is what it copies from.
            command="rm -r source; for each in */file; do echo $each: $(cat $each) / $(ls ${each%/*}); done",
            workdir=".",
        ),
    ]
