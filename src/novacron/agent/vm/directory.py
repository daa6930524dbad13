"""A VM's directory on this host: its files and their owner.

It belongs to the agent. QEMU's user can enter it, and use the files in it that are its own, but not make any: what the
agent opens there by name is what the agent put there. Sockets that QEMU has to make itself are in ``run``, which is
QEMU's: what the agent finds there may be anything.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from pathlib import Path

from novacron.model.limits import SHARED_LAYERS_MAX, VOLUMES_PER_VM_MAX
from novacron.qemu.confine import check_peer


def shared_name(number: int) -> str:
    """Return the name of a layer below a VM's own, counted from the lowest: other VMs may have the same file."""
    return f"shared-{number}.qcow2"


def next_name(number: int | str) -> str:
    """Return the name of a layer that is put over a VM's own, and becomes that itself.

    It keeps this name beside that until the next one is over it: QEMU then opens it once more, by the name that it
    knows, to only read it.
    """
    return f"next-{number}.qcow2"


INCOMING_SOCKET = "run/incoming.sock"
"""QEMU's, for the memory that a migration brings."""
INCOMING_DISK_SOCKET = "run/disk.sock"
"""QEMU's, for the disk."""
OUTGOING_SOCKET = "outgoing.sock"
"""The agent's, for the memory that a migration takes away."""
RESTORE_SOCKET = "restore.sock"
"""The agent's, for the disk of a backup that the VM runs from."""
RESTORING = "restoring"
"""Beside a layer that is not whole: QEMU reads what it lacks from the agent."""
DISKS_MAX = VOLUMES_PER_VM_MAX + 1
OUTGOING_DISK_SOCKETS = tuple(f"disk-{number}.sock" for number in range(DISKS_MAX))
"""The agent's, for its own disk and its volumes."""
TRANSFER_SOCKETS = (INCOMING_SOCKET, INCOMING_DISK_SOCKET, OUTGOING_SOCKET, RESTORE_SOCKET, *OUTGOING_DISK_SOCKETS)
DISK_LAYER = "disk.qcow2"
"""What the VM wrote to its disk, over the disk of its image."""
RUN = "run"
COMPLETE = "complete"
"""Beside what a VM that does not run consists of, where all of that is: it is moved last."""
DISKS_COMPLETE = "disks.complete"
"""Where all disks of a VM that came while it ran are there."""
STATE = {
    DISK_LAYER: DISK_LAYER,
    **{shared_name(number): shared_name(number) for number in range(SHARED_LAYERS_MAX)},
    "nvram.fd": "nvram.fd",
    "tpm2.state": "tpm/tpm2-00.permall",
    COMPLETE: COMPLETE,
}
"""What a VM that does not run consists of, by the names under which it moves."""
UIDS_MAX = 65_536
BACKLOG = 1


class NoAccount(Exception):
    """Every user number that VMs may have is taken."""


class VmDirectory:
    """One VM's directory. ``uid_base`` is the first of the user numbers that VMs may have; None: all are the agent's
    own."""

    def __init__(self, path: Path, uid_base: int | None) -> None:
        self.path = path
        self._base = uid_base

    def make(self) -> int | None:
        """Make the missing parts of it and return the VM's user number. Raises NoAccount, OSError."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        run = self.path / RUN
        uid = self.uid()
        if uid is None and self._base is not None:
            uid = self._free()
        with contextlib.suppress(FileExistsError):
            run.mkdir(mode=0o700)
        if uid is not None:
            os.chown(run, uid, uid, follow_symlinks=False)
            os.chown(self.path, 0, uid)
            self.path.chmod(0o710)
        return uid

    def uid(self) -> int | None:
        """Return the VM's user number, if it has one."""
        try:
            uid = (self.path / RUN).lstat().st_uid
        except FileNotFoundError:
            return None
        return uid if self._base is not None and uid >= self._base else None

    def _free(self) -> int:
        assert self._base is not None
        taken = set()
        for other in self.path.parent.iterdir():
            with contextlib.suppress(OSError):  # it goes at this moment
                taken.add((other / RUN).lstat().st_uid)
        for uid in range(self._base, self._base + UIDS_MAX):
            if uid not in taken:
                return uid
        raise NoAccount(f"{UIDS_MAX} VMs already have a user id on this host, and no more are left")

    def give(self, name: str) -> None:
        """Let QEMU read and write a file that the agent made; one that does not exist is made, empty."""
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            uid = self.uid()
            if uid is not None:
                os.fchown(descriptor, uid, uid)
        finally:
            os.close(descriptor)

    def give_directory(self, name: str) -> None:
        """Have a directory that is QEMU's user's own: nothing in it may be trusted."""
        path = self.path / name
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        uid = self.uid()
        if uid is not None:
            os.chown(path, uid, uid, follow_symlinks=False)
            for inner in path.iterdir():
                os.chown(inner, uid, uid, follow_symlinks=False)

    def shared(self) -> list[Path]:
        """Return the layers between the VM's own and its image's disk, from the lowest up."""
        paths = (self.path / shared_name(number) for number in range(SHARED_LAYERS_MAX))
        return [path for path in paths if path.exists()]

    def is_restoring(self) -> bool:
        """Say whether the VM's own layer is not whole yet: the rest is still in a repository."""
        return (self.path / RESTORING).exists()

    def next_layers(self) -> list[Path]:
        """Return the layers that are, or were, put over the VM's own."""
        return sorted(self.path.glob(next_name("*")))

    def listen(self, name: str) -> socket.socket:
        """Return a Unix socket that listens under this name, where QEMU may connect."""
        path = self.path / name
        path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.bind(str(path))
            path.chmod(0o600)
            uid = self.uid()
            if uid is not None:
                os.chown(path, uid, uid)
            server.listen(BACKLOG)
        except BaseException:
            server.close()
            raise
        return server

    def connect(self, name: str, pid: int) -> socket.socket:
        """Return a connection to the socket that QEMU, the process ``pid``, made. Raises OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self.path / name))
            check_peer(connection, pid)
        except BaseException:
            connection.close()
            raise
        return connection

    def clear_sockets(self) -> None:
        """Remove what a transfer left behind."""
        for name in TRANSFER_SOCKETS:
            (self.path / name).unlink(missing_ok=True)

    def remove(self) -> None:
        if self.path.exists():
            shutil.rmtree(self.path)
