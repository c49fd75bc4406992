"""What real sites' factories do, in one build each, whose second half is in another machine."""

from __future__ import annotations

from typing import Any

from at_home import below
from buildbot.plugins import steps, util

#: How many logs a step may have that appear when there is something in them.
LOGS = 32

REPORT = """<?xml version="1.0"?>
<testsuite name="hello" tests="2" failures="1">
<testcase name="größe"/><testcase name="b"><failure/></testcase>
</testsuite>
"""


def key(protocol: str) -> Any:
    """Bring a secret into the build, for its owner alone to read."""
    if protocol == "pb":
        return steps.StringDownload("secret\n", workerdest="key", mode=0o600, name="key")
    return steps.ShellCommand(name="key", command="umask 077; echo secret >key")


def shapes(protocol: str) -> list[Any]:
    """Make the first half. ``protocol`` is ``pb`` or ``msgpack``, over which a 4.3.0 master sends no files."""
    logs = {f"log {number}": f"logs/{number}" for number in range(LOGS)}
    return [
        # As LLVM and OpenWrt have it.
        steps.ShellCommand(
            name="ccache",
            command=[
                "sh",
                "-ec",
                'mkdir -p "$TMPDIR"; echo "int f;" >a.c; for n in 1 2; do ccache cc -c a.c; done;'
                ' ccache --print-stats | grep -E "^(cache_miss|direct_cache_hit)"; ls -d "$CCACHE_DIR"',
            ],
            env={"CCACHE_DIR": below("ccache"), "TMPDIR": below("tmp"), "PATH": [below("bin"), "${PATH}"]},
        ),
        key(protocol),
        steps.ShellCommand(name="mode of the key", command="stat -c %a key; cat key"),
        steps.ShellCommand(
            name="lazy logs",
            command=f"mkdir logs; for n in $(seq 0 {LOGS - 1}); do echo log $n >logs/$n; done",
            logfiles=logs,
            lazylogfiles=True,
        ),
        steps.ShellCommand(
            name="tests", command=["sh", "-c", 'mkdir -p out/deep; printf %s "$0" >out/junit.xml', REPORT]
        ),
        steps.FileUpload(
            workersrc="out/junit.xml", masterdest=util.Interpolate("got/%(prop:buildername)s.xml"), name="report"
        ),
        steps.ShellCommand(name="results", command="seq 1000 >out/deep/numbers; ln -s deep/numbers out/link"),
        steps.DirectoryUpload(workersrc="out", masterdest=util.Interpolate("got/%(prop:buildername)s"), name="tree"),
        steps.ShellSequence(
            name="sequence",
            commands=[
                util.ShellArg(command=["make", "-v"], logname="make", haltOnFailure=True),
                util.ShellArg(command="exit 3", logname="fails", warnOnFailure=False, flunkOnFailure=False),
                util.ShellArg(command=["sh", "-c", 'echo "$0"', below("x")], logname="path"),
            ],
        ),
        # A step of the master's, between those in the machine.
        steps.MasterShellCommand(
            name="on the master",
            command=["sh", "-c", 'echo "$0" >from-the-master', util.Interpolate("%(prop:vm_slot)s")],
        ),
        steps.ShellCommand(name="terminal", command="tty >/dev/null && echo yes; stty size", usePTY=True),
        # As quiet as one of hours, to a master and a guest that are given up after less.
        steps.ShellCommand(name="quiet", command="echo begin; sleep 15; echo end", timeout=None, maxTime=3600),
        steps.Trigger(
            schedulerNames=["continue"],
            waitForFinish=True,
            set_properties={"from": util.Property("buildername"), "where it was": util.Property("builddir")},
            name="continue",
        ),
    ]


def continued() -> list[Any]:
    """Make the second half."""
    told = [util.Property("from"), util.Property("where it was")]
    return [steps.ShellCommand(name="continued", command=["sh", "-c", 'echo "$0 $1"; cd ..; pwd; ls -A', *told])]
