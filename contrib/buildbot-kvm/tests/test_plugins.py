from __future__ import annotations

import pytest
from buildbot.plugins import steps, worker

import buildbot_kvm


@pytest.mark.parametrize(
    "name",
    ["RebootVM", "StartVM", "StopVM", "VMCopyIn", "VMCopyOut", "VMSetPropertyFromCommand", "VMShellCommand"],
)
def test_master_finds_the_step_beside_its_own(name: str) -> None:
    assert getattr(steps, name) is getattr(buildbot_kvm, name)


def test_master_finds_the_worker_beside_its_own() -> None:
    assert worker.KVMWorker is buildbot_kvm.KVMWorker
