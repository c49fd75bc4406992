"""Runs one build over PB under each of the older masters in releases.txt, and then has the worker drained.

Under those that the package buildbot-kvm is for, its tests of whole builds and of its worker run, too.

    old_masters.py --worker PROGRAM --cache DIRECTORY [--junit FILE] [NAME...]

PROGRAM is the worker; DIRECTORY gets an environment for each release, which stays for the next time. NAMEs are parts
of releases: only masters with one of them are run. FILE gets how each went.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent

sys.path.append(str(HERE.parent / "report"))

import junit  # noqa: E402

#: How long (seconds) a master may take for its build, a worker to drain, and the package's tests to run.
BUILD = 90
DRAIN = 20
TESTS = 120

#: The package for the master, those of its tests that need no fakes of a later Buildbot, and its oldest Buildbot.
PACKAGE = HERE.parents[1] / "contrib/buildbot-kvm"
PACKAGE_TESTS = ("test_factory", "test_guest", "test_worker")
PACKAGE_SINCE = 4

#: The steps that have to succeed; the last one has to fail.
SUCCEEDING = ["arguments", "download", "upload", "directory", "mkdir", "cpdir", "stat", "rmdir", "property", "known"]
STEPS = dict.fromkeys(SUCCEEDING, "success") | {"timeout": "failure"}


class FailedError(Exception):
    """The worker and a master did not get on; says how."""


def main() -> int:
    """Run the masters; give 0 if there were some, or none was wanted, and all were content."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--worker", type=Path, required=True, help="the worker program")
    parser.add_argument("--cache", type=Path, required=True, help="where the environments are made")
    parser.add_argument("--junit", type=Path, help="where to write how each went")
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a release")
    arguments = parser.parse_args()
    cases = [run(release, arguments.cache.absolute(), arguments.worker) for release in releases(arguments.names)]
    failed = sum(case.outcome == junit.FAILED for case in cases)
    if arguments.junit is not None:
        junit.write(arguments.junit, "older-masters", cases)
    print(f"Older masters: {len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


def run(release: list[str], cache: Path, worker: Path) -> junit.Case:
    """Run one master, and say how that went."""
    begun = time.monotonic()
    try:
        buildbot = install(release, cache)
        with tempfile.TemporaryDirectory(prefix="old-master-") as scratch:
            attempt(buildbot, worker.resolve(), Path(scratch))
            if int(re.findall(r"\d+", release[0])[0]) >= PACKAGE_SINCE:
                test_package(buildbot.with_name("python"), Path(scratch))
    except FailedError as error:
        print(f"{release[0]}: {error}")
        return junit.Case(release[0], time.monotonic() - begun, junit.FAILED, str(error))
    print(f"{release[0]}: the build ended as it should, and the worker drained")
    return junit.Case(release[0], time.monotonic() - begun, junit.PASSED)


def releases(names: list[str]) -> list[list[str]]:
    """Read which masters there are, each with what it needs."""
    lines = (HERE / "releases.txt").read_text().splitlines()
    found = [shlex.split(line) for line in lines if line and not line.startswith("#")]
    return [release for release in found if not names or any(name in release[0] for name in names)]


def install(release: list[str], cache: Path) -> Path:
    """Make a release's environment unless it is there, and give its `buildbot` program."""
    environment = cache / release[0].replace("==", "-")
    done = environment / "packages"
    if not done.exists() or done.read_text() != " ".join(release):
        print(f"{release[0]}: installing it into {environment}", flush=True)
        venv.create(environment, clear=True, with_pip=True)
        pip = [str(environment / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *release]
        if subprocess.run(pip, check=False).returncode:
            raise FailedError("pip could not install it")
        done.write_text(" ".join(release))
    return environment / "bin/buildbot"


def attempt(buildbot: Path, worker: Path, scratch: Path) -> None:
    """Start a master and a worker, and look at what they come to."""
    directory = scratch / "master"
    directory.mkdir()
    (directory / "master.cfg").write_text((HERE / "master.cfg").read_text())
    create = subprocess.run([buildbot, "create-master", "-q", directory], capture_output=True, text=True, check=False)
    if create.returncode:
        raise FailedError(f"no master was made: {create.stderr}")
    password = scratch / "password"
    password.touch(mode=0o600)
    password.write_text("secret\n")
    port = free_port()
    with (scratch / "master.log").open("wb") as master_log, (scratch / "worker.log").open("wb") as worker_log:
        master = subprocess.Popen(
            [buildbot, "start", "--nodaemon", directory],
            env=os.environ | {"MASTER_PORT": str(port)},
            stdout=master_log,
            stderr=subprocess.STDOUT,
        )
        client = subprocess.Popen(
            [
                worker, "run", "--name=worker", f"--master=pb://127.0.0.1:{port}",
                f"--password-file={password}", f"--basedir={scratch / 'worker'}",
            ],
            env=os.environ | {"KVM_WORKER__CONNECTION__RETRY_MAX": "1"},
            stderr=worker_log,
        )  # fmt: skip
        try:
            judge(directory, scratch, client)
        finally:
            for process in (client, master):
                process.terminate()
                process.wait()


def judge(directory: Path, scratch: Path, client: subprocess.Popen[bytes]) -> None:
    """Wait for the build, compare it with what it should be, and drain the worker."""
    log = wait_for_build(scratch / "master.log", directory / "twistd.log")
    results = dict(re.findall(r"step '([^']+)' complete: (\w+)", log))
    if results != STEPS:
        raise FailedError(
            f"the steps came to {results}; what the worker said:\n{(scratch / 'worker.log').read_text()}"
        )
    text = (directory / "uploaded.txt").read_text()
    if text != "a line of the file\n" * 100_000 or not (directory / "uploaded/file.txt").exists():
        raise FailedError(f"the files did not come back as they went: {len(text)} characters")
    client.send_signal(signal.SIGUSR1)
    try:
        status = client.wait(DRAIN)
    except subprocess.TimeoutExpired:
        raise FailedError(f"the worker did not drain:\n{(scratch / 'worker.log').read_text()}") from None
    if status:
        raise FailedError(f"the drained worker exited with {status}")


def test_package(python: Path, scratch: Path) -> None:
    """Run the tests of the package for the master."""
    try:
        done = subprocess.run(
            [python, "-B", "-m", "twisted.trial", *PACKAGE_TESTS],
            cwd=scratch,
            env=os.environ | {"PYTHONPATH": f"{PACKAGE / 'src'}:{PACKAGE / 'tests'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TESTS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"the tests of buildbot-kvm did not end within {TESTS} s") from None
    if done.returncode:
        raise FailedError(f"tests of buildbot-kvm failed:\n{done.stdout}")


def wait_for_build(*logs: Path) -> str:
    """Wait until the master says in one of its logs that the build is over."""
    deadline = time.monotonic() + BUILD
    text = ""
    while time.monotonic() < deadline:
        text = "".join(log.read_text(errors="replace") for log in logs if log.exists())
        if ": build finished" in text:
            return text
        time.sleep(0.1)
    raise FailedError(f"there was no build within {BUILD} s:\n{text[-2000:]}")


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
