"""The QEMUs of VMs that run on this host, found by what they are: command line, environment, and where they run.

No file is asked: one may be copied, restored, moved away or removed while its QEMU goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from novacron.qemu.command import name_argument, uuid_argument

OWNER, STATE = "NOVACRON_OWNER", "NOVACRON_STATE_DIR"
"""In the environment of each QEMU: the installation and node that started it, and that agent's state folder."""
GUEST = name_argument("")
REMOVED = " (deleted)"
"""The kernel's word for a directory that a process is in and that has no name any more."""


class RunningQemu(NamedTuple):
    """A QEMU that runs a VM on this host."""

    pid: int
    vm: str
    directory: Path | None
    """Where it runs, also if that was moved; None: that was removed."""
    owner: str = ""
    """Installation and node of the agent that started it; empty: not known."""
    state_dir: str = ""
    """That agent's state folder, as it was then."""


def marks(owner: str, state_dir: Path) -> dict[str, str]:
    """Return what a QEMU carries in its environment, to be told from those of other agents."""
    return {OWNER: owner, STATE: str(state_dir.resolve())}


def running() -> list[RunningQemu]:
    """Return every QEMU on this host that runs a VM of NovaCron, whoever started it."""
    return list(_look(lambda vm: True))


def of_vm(vm: str) -> list[RunningQemu]:
    """Return every QEMU on this host that runs a VM."""
    return list(_look(lambda other: other == vm))


def find(directory: Path, owner: str) -> RunningQemu | None:
    """Return the QEMU that runs a VM for this node: in its directory, which has the VM's name, or anywhere else."""
    return choose(of_vm(directory.name), directory, owner)


def choose(found: list[RunningQemu], directory: Path, owner: str) -> RunningQemu | None:
    """Return, of the QEMUs that run a VM on this host, the one that ``find`` means. Pure but for resolving links."""
    directory = directory.resolve()
    here = (qemu for qemu in found if qemu.directory == directory)
    return next(here, next((qemu for qemu in found if owner and qemu.owner == owner), None))


def _look(wanted: Callable[[str], bool]) -> Iterator[RunningQemu]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it ends at this moment, or is another user's
            vm = vm_of((entry / "cmdline").read_bytes())
            if vm is not None and wanted(vm) and _lives(entry):
                yield _describe(entry, vm)


def vm_of(command_line: bytes) -> str | None:
    """Return the VM that a process (proc_pid_cmdline(5)) runs; None: it is no QEMU of ours."""
    if b"-name\0" + GUEST.encode() not in command_line:  # most of a host's processes, some with thousands of bytes
        return None
    arguments = [os.fsdecode(argument) for argument in command_line.split(b"\0")]
    for option, value in itertools.pairwise(arguments):
        if option == "-name" and value.startswith(GUEST):
            vm = value.removeprefix(GUEST)
            return vm if uuid_argument(vm) in arguments else None
    return None


def _lives(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")


def _describe(entry: Path, vm: str) -> RunningQemu:
    where = (entry / "cwd").readlink()
    environment = dict(
        variable.split("=", 1)
        for variable in (entry / "environ").read_bytes().decode(errors="surrogateescape").split("\0")
        if variable.startswith((f"{OWNER}=", f"{STATE}="))
    )
    directory = None if where.name.endswith(REMOVED) else where
    return RunningQemu(int(entry.name), vm, directory, environment.get(OWNER, ""), environment.get(STATE, ""))


def files_of(pid: int) -> list[Path]:
    """Return the files that a process has open, under their present names."""
    paths = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed at this moment
            paths.append(entry.readlink())
    return paths
