"""Buildbot steps that run builds in the machines of a kvm-worker.

The steps are plugins, so a ``master.cfg`` finds them beside Buildbot's own::

    from buildbot.plugins import steps

    factory.addStep(steps.StartVM(image="debian-build"))
    factory.addStep(steps.VMShellCommand(command=["make", "check"]))
    factory.addStep(steps.StopVM())
"""

from __future__ import annotations

from buildbot_kvm.copying import VMCopyIn, VMCopyOut
from buildbot_kvm.failures import RESULTS, VMError
from buildbot_kvm.listening import listen_for_msgpack_on
from buildbot_kvm.shell import VMSetPropertyFromCommand, VMShellCommand, VMShellMixin
from buildbot_kvm.start import StartVM
from buildbot_kvm.stop import StopVM

__all__ = [
    "RESULTS",
    "StartVM",
    "StopVM",
    "VMCopyIn",
    "VMCopyOut",
    "VMError",
    "VMSetPropertyFromCommand",
    "VMShellCommand",
    "VMShellMixin",
    "listen_for_msgpack_on",
]
