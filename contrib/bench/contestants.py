"""The workers, each as its own manual says that it is run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from master import Master, tool
from plan import COPIER, Contestant, Paths
from problem import Problem
from program import Program

#: What `buildbot-worker create-worker` writes, which wants the password on its command line.
TAC = """\
import os
from buildbot_worker.bot import Worker
from twisted.application import service
from twisted.python.log import FileLogObserver, ILogObserver
from twisted.python.logfile import LogFile

basedir = os.path.abspath(os.path.dirname(__file__))
application = service.Application("buildbot-worker")
logfile = LogFile.fromFullPath(os.path.join(basedir, "twistd.log"), rotateLength=10000000, maxRotatedFiles=10)
application.setComponent(ILogObserver, FileLogObserver(logfile).emit)
Worker(
    "127.0.0.1", {port}, {name!r}, {password!r}, basedir, 600,
    umask=None, maxdelay=300, numcpus=None, allow_shutdown=None, maxRetries=None, useTls=False,
    protocol={protocol!r}, delete_leftover_dirs=False, connection_string=None, proxy_connection_string=None,
).setServiceParent(application)
"""


def start(contestant: Contestant, paths: Paths, master: Master) -> Program:
    """Start a worker in a new directory."""
    directory = paths.bench / contestant.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    if contestant.program == "kvm-worker":
        return start_kvm_worker(contestant, paths, directory, master)
    return start_buildbot_worker(contestant, directory, master)


def start_buildbot_worker(contestant: Contestant, directory: Path, master: Master) -> Program:
    tac = TAC.format(
        port=master.port(contestant.protocol),
        name=contestant.name,
        password=master.password,
        protocol="pb" if contestant.protocol == "pb" else "msgpack_experimental_v7",
    )
    directory.joinpath("buildbot.tac").write_text(tac)
    command = [tool("twistd"), "--nodaemon", "--no_save", "--pidfile=", "--python=buildbot.tac"]
    return Program(contestant.name, command, directory, dict(os.environ))


def start_kvm_worker(contestant: Contestant, paths: Paths, directory: Path, master: Master) -> Program:
    if not paths.kvm_worker.exists():
        raise Problem(f"{paths.kvm_worker} is missing: contrib/bench/run builds it")
    password = directory / "password"
    password.write_text(master.password + "\n")
    scheme = "pb" if contestant.protocol == "pb" else "ws"
    command = [
        str(paths.kvm_worker),
        "run",
        f"--master={scheme}://127.0.0.1:{master.port(contestant.protocol)}",
        f"--name={contestant.name}",
        f"--password-file={password}",
        f"--basedir={directory / 'basedir'}",
    ]
    return Program(contestant.name, command, directory, plain())


#: A worker that has machines.
WORKER = """\
[worker]
master = "pb://127.0.0.1:{port}"
name = "{name}"
password_file = "{directory}/password"
basedir = "{directory}/basedir"

[pool]
slots = {slots}
state_dir = "{directory}/state"
ssh_port_base = {ssh_port}
# Nothing is measured while machines are prepared, so that they need not wait for a quiet minute.
warm_max_load = 1000.0
"""

#: A guest, as contrib/images/README.md has it.
IMAGE = """
[images.{name}]
disk = "{files}/{disk}"
format = "qcow2"
kernel = "{files}/vmlinuz"
initrd = "{files}/initrd.img"
append = "console=ttyS0 root=/dev/vda no_timer_check"
user = "buildbot"
key = "{files}/id_ed25519"
"""


def start_copier(paths: Paths, master: Master) -> Program:
    """Start a worker that has a guest."""
    directory = paths.bench / COPIER.name
    shutil.rmtree(directory, ignore_errors=True)
    image = IMAGE.format(name="guest", files=paths.images, disk="debian-plain.qcow2")
    return start_with_machines(COPIER.name, directory, 1, image, paths, master)


def start_with_machines(
    name: str, directory: Path, slots: int, images: str, paths: Paths, master: Master, accel: str = "auto"
) -> Program:
    """Start a worker that has images, in a directory that may have been another's."""
    directory.mkdir(exist_ok=True)
    directory.joinpath("password").write_text(master.password + "\n")
    worker = WORKER.format(port=master.pb, name=name, directory=directory, slots=slots, ssh_port=master.ssh_port)
    directory.joinpath("worker.toml").write_text(f'{worker}accel = "{accel}"\n{images}')
    command = [str(paths.kvm_worker), "run", f"--config={directory / 'worker.toml'}"]
    return Program(name, command, directory, plain())


def plain() -> dict[str, str]:
    """Give the environment of a worker that is configured otherwise."""
    # Variables would be laid over the configuration.
    return {name: value for name, value in os.environ.items() if not name.startswith("KVM_WORKER__")}


def builddir(contestant: Contestant, paths: Paths, builder: str) -> Path:
    """Give the directory that a builder's steps work in."""
    basedir = paths.bench / contestant.name
    if contestant.program == "kvm-worker":
        basedir /= "basedir"
    return basedir / builder / "build"
