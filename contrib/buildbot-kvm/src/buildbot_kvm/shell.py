"""Buildbot's shell steps, run in a machine."""

from __future__ import annotations

from typing import Any

from buildbot import config
from buildbot.steps.shell import SetPropertyFromCommand, ShellCommand

from buildbot_kvm.placing import AddingMixin
from buildbot_kvm.step import VMMixin


class VMShellMixin(AddingMixin, VMMixin):
    """Makes a step that is derived from Buildbot's ShellMixin run its commands in a machine.

    Put it first::

        class VMCompile(VMShellMixin, steps.Compile):
            pass

    The step takes the arguments of VMMixin beside its own. Its ``workdir`` is the guest's directory that
    corresponds to the one it would have on the host, and is made if it is missing.
    """

    def _vm_place_now(self) -> dict[str, Any]:
        return {"vm": self.vm, "console_log": self.console_log, "max_retries": self.max_retries}


class VMShellCommand(VMShellMixin, ShellCommand):
    """Run a command in a machine.

    ``vm``
        the machine's name (default ``"default"``);
    ``console_log``
        name of a log for what the guest's serial console prints while the command runs (default: none).

    All arguments of Buildbot's ShellCommand mean what they mean there. FAILURE says that the command itself failed;
    for a machine that died under it see ``buildbot_kvm.RESULTS``.
    """

    name = "vm-shell"

    def __init__(self, **kwargs: Any) -> None:
        if "command" not in kwargs:
            config.error("VMShellCommand: the argument command is missing")
        super().__init__(**kwargs)


class VMSetPropertyFromCommand(VMShellMixin, SetPropertyFromCommand):
    """Set properties of the build from what a command prints in a machine.

    Takes ``vm`` and ``console_log`` as VMShellCommand does, and all arguments of Buildbot's
    SetPropertyFromCommand: ``property`` or ``extract_fn``, ``strip``, ``includeStdout``, ``includeStderr`` and those
    of a ShellCommand. No property is set, and ``extract_fn`` is not called, where the machine failed or a user
    stopped the build.
    """

    name = "vm-setproperty"
