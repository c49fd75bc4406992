"""The steps that copy files between the builder's directory on the host and a machine."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any, ClassVar

from buildbot.process.results import SUCCESS

from buildbot_kvm.command import VMCommand
from buildbot_kvm.judging import latest
from buildbot_kvm.step import DEFAULT_VM, check_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildbot.process.remotecommand import RemoteCommand


class _VMCopy(VMCommand):
    """What copying in and out have in common: all but the direction."""

    vm_command = "vm_copy"
    renderables: ClassVar[Sequence[str]] = ["src", "dest", "recursive", "preserve"]

    #: ``in`` or ``out``, as seen from the guest.
    direction: ClassVar[str]

    def __init__(
        self,
        src: Any,
        dest: Any,
        *,
        vm: Any = DEFAULT_VM,
        recursive: Any = True,
        preserve: Any = True,
        **kwargs: Any,
    ) -> None:
        self.src = src
        self.dest = dest
        self.recursive = recursive
        self.preserve = preserve
        check_name(self, "src", src)
        check_name(self, "dest", dest)
        super().__init__(vm=vm, **kwargs)

    def arguments(self) -> dict[str, Any]:
        """Give the arguments of ``vm_copy``, with the host's directory as the master knows it.

        Buildbot puts the builder's directory before the paths of its own commands only, so it is done here,
        with the path rules of the worker's system.
        """
        builddir = self.build.path_module.join(self.worker.worker_basedir, self.build.builder.config.workerbuilddir)
        return {
            "direction": self.direction,
            "from": self.src,
            "to": self.dest,
            "recursive": bool(self.recursive),
            "preserve": bool(self.preserve),
            "workdir": self.build.path_module.join(builddir, self.workdir),
        }

    def doing(self) -> str:
        """Say what is going on, for the web page."""
        return f"copying {self._what()}"

    def done(self, command: RemoteCommand) -> tuple[str, int]:
        """Say how much was copied."""
        return f"copied {self._what()}{how_much(command)}", SUCCESS

    def _what(self) -> str:
        preposition = "into" if self.direction == "in" else "out of"
        return f"{posixpath.basename(self.src.rstrip('/')) or self.src} {preposition} {self.called()}"


class VMCopyIn(_VMCopy):
    """Copy files and directories from the host into a machine, as ``scp -rp`` does.

    ``src``, ``dest``
        what to copy, and where to: a path on the host and one in the guest. Relative ones start at ``workdir``,
        which is the same directory on both sides: ``BASEDIR/BUILDER/build``, unless the machine's property
        ``vm_basedir`` says that the worker's base directory is another one in the guest. A host path must stay
        below the worker's base directory, or the builder's if that is elsewhere;
    ``vm``
        the machine's name (default ``"default"``);
    ``recursive``
        copy directories with all that is in them (default True);
    ``preserve``
        keep modification times and modes (default True);
    ``workdir``
        as for any step: relative to the builder's directory (default: the factory's, which is ``"build"``).
    """

    name = "vm-copy-in"
    direction = "in"


class VMCopyOut(_VMCopy):
    """Copy files and directories from a machine to the host, as ``scp -rp`` does.

    The arguments are those of VMCopyIn: ``src`` is a path in the guest here, and ``dest`` one on the host.
    """

    name = "vm-copy-out"
    direction = "out"


def how_much(command: RemoteCommand) -> str:
    """Say how many files and bytes went over, as far as the worker told."""
    said = []
    files = latest(command, "files")
    if isinstance(files, int):
        said.append(f"{files} file" if files == 1 else f"{files} files")
    size = latest(command, "bytes")
    if isinstance(size, int):
        said.append(human_size(size))
    return f" ({', '.join(said)})" if said else ""


def human_size(size: float) -> str:
    """Write a number of bytes with the unit a person would take."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
