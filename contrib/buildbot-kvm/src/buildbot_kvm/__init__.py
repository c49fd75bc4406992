"""Builds in fresh machines of a kvm-worker, for a Buildbot master.

A factory that exists, in a machine that no build has used before::

    import buildbot_kvm as kvm

    factory = kvm.in_vm(factory, image="debian-build")

The steps for machines by hand, and the worker that knows how many there are, are plugins, so a ``master.cfg`` finds
them beside Buildbot's own: ``steps.StartVM``, ``worker.KVMWorker``.
"""

from __future__ import annotations

from buildbot_kvm.copying import VMCopyIn, VMCopyOut
from buildbot_kvm.factory import in_vm
from buildbot_kvm.failures import RESULTS, VMError
from buildbot_kvm.listening import listen_for_msgpack_on
from buildbot_kvm.placing import on_host, step_in_vm
from buildbot_kvm.preferring import next_worker
from buildbot_kvm.reboot import RebootVM
from buildbot_kvm.shell import VMSetPropertyFromCommand, VMShellCommand, VMShellMixin
from buildbot_kvm.start import StartVM
from buildbot_kvm.stop import StopVM
from buildbot_kvm.worker import KVMWorker

__all__ = [
    "RESULTS",
    "KVMWorker",
    "RebootVM",
    "StartVM",
    "StopVM",
    "VMCopyIn",
    "VMCopyOut",
    "VMError",
    "VMSetPropertyFromCommand",
    "VMShellCommand",
    "VMShellMixin",
    "in_vm",
    "listen_for_msgpack_on",
    "next_worker",
    "on_host",
    "step_in_vm",
]
