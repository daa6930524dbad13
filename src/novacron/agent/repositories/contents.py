"""What a backup is in a repository: a snapshot with the VM's disk, its description and the state of its firmware.

All of it blocks. ``stopped`` is asked now and then: once it says so, the work ends with Stopped.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

from novacron.backup import disks
from novacron.backup.disks import DiskReader
from novacron.backup.errors import Damaged, NotStored, RepositoryError
from novacron.backup.pack import BlobType
from novacron.backup.repository import Repository
from novacron.backup.snapshot import File
from novacron.backup.storage import Kind, Storage
from novacron.model.errors import MALFORMED
from novacron.model.firmware_state import FirmwareState

DIRECTORY, DISK, DESCRIPTION, FIRMWARE = "vm", "disk.raw", "vm.json", "firmware.msgpack"
"""In each snapshot: its directory, and the files in it."""
TAG = "novacron-vm"
SMALL_BYTES_MAX = 4 << 20
"""Of what is no disk."""
READ_ALL = "all blocks of the disk that hold data were read: what has changed is not known yet"

Stopped = Callable[[], bool]
Beside: TypeAlias = tuple[bytes, FirmwareState]
"""A VM's description, as JSON, and what its firmware and its TPM remember."""


class WorkStopped(Exception):
    """Nobody wants the work any more."""


class KeptDisk(msgspec.Struct, frozen=True):
    """A disk that was stored."""

    snapshot: str
    disk_bytes: int
    read_bytes: int


def find(repository: Repository, backup: str) -> str | None:
    """Return the id of a backup's snapshot, None if the repository has none. Raises RepositoryError."""
    return next((id for id, made in repository.snapshots() if backup in (made.tags or ())), None)


def disk_bytes(repository: Repository, snapshot: str) -> int:
    """Return the size of a backup's disk. Raises RepositoryError."""
    return _files(repository, snapshot)[DISK].size


def store(repository: Repository, backup: str, disk: Path, beside: Beside, stopped: Stopped) -> KeptDisk:
    """Store a raw disk, and ``beside`` it the VM's description and firmware state; return what was stored.

    Raises RepositoryError, OSError, WorkStopped.
    """
    description, state = beside
    descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size, read = os.fstat(descriptor).st_size, disks.reader_of(descriptor)

        def read_on(offset: int, length: int) -> bytes:
            if stopped():
                raise WorkStopped
            return read(offset, length)

        written = disks.write_disk(repository, read_on, size, disks.data_extents(descriptor, size))
    finally:
        os.close(descriptor)
    files = {DISK: written.file}
    for name, content in ((DESCRIPTION, description), (FIRMWARE, msgspec.msgpack.encode(state))):
        files[name] = disks.write_stream(repository, io.BytesIO(content).read, len(content))
    if stopped():
        raise WorkStopped
    return KeptDisk(repository.save_snapshot(DIRECTORY, files, [TAG, backup]), size, written.read_bytes)


def _files(repository: Repository, snapshot: str) -> dict[str, File]:
    """Return the files of a snapshot. Raises NotStored, Damaged."""
    made = next((made for id, made in repository.snapshots() if id == snapshot), None)
    if made is None:
        raise NotStored(f"snapshot {snapshot} is not in the repository any more")
    files = repository.content(made).files
    for name in (DISK, DESCRIPTION, FIRMWARE):
        if name not in files:
            raise Damaged(f"snapshot {snapshot} has no {name}")
    return files


def verify(repository: Repository, snapshot: str, stopped: Stopped) -> None:
    """Read all of a backup back. Raises Damaged, NotStored, RepositoryError, WorkStopped."""
    seen = set[bytes]()
    for name, file in _files(repository, snapshot).items():
        if len(file.ids()) != -(-file.size // disks.BLOCK_BYTES):
            raise Damaged(f"{name} does not have as many blocks as its size asks for")
        for number, id in enumerate(file.ids()):
            length = min(disks.BLOCK_BYTES, file.size - number * disks.BLOCK_BYTES)
            if id in seen and length == disks.BLOCK_BYTES:
                continue
            if stopped():
                raise WorkStopped
            content = repository.load(BlobType.DATA, id)
            if hashlib.sha256(content).digest() != id or len(content) != length:
                raise Damaged(f"block {number} of {name} has another content than its name says")
            seen.add(id)


def forget(repository: Repository, backup: str) -> None:
    """Take a backup's snapshots out of a repository; restic's prune frees the space. Raises RepositoryError."""
    for id, made in list(repository.snapshots()):
        if backup in (made.tags or ()):
            repository.storage.remove(Kind.SNAPSHOT, id)


class _StoppedReads:
    """A storage of which each read may be the last."""

    def __init__(self, storage: Storage, stopped: Stopped) -> None:
        self._storage, self._stopped = storage, stopped
        self.write, self.names, self.remove = storage.write, storage.names, storage.remove

    def read(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if self._stopped():
            raise WorkStopped
        return self._storage.read(kind, name, offset, length)


def restore(repository: Repository, snapshot: str, disk: Path, stopped: Stopped) -> FirmwareState:
    """Write a backup's disk into a new file, zeros as holes; return the state of the firmware.

    Raises NotStored, Damaged, RepositoryError, OSError, WorkStopped.
    """
    repository.storage = _StoppedReads(repository.storage, stopped)
    files = _files(repository, snapshot)
    state = _small(repository, files[FIRMWARE])
    descriptor = os.open(disk, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        disks.restore_disk(repository, files[DISK], descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        return msgspec.msgpack.decode(state, type=FirmwareState)
    except MALFORMED as error:
        raise Damaged(f"the firmware's state can't be read: {error}") from None


def _small(repository: Repository, file: File) -> bytes:
    if file.size > SMALL_BYTES_MAX:
        raise RepositoryError(f"a file of {file.size} bytes is too large to be what it should be")
    return DiskReader(repository, file).read(0, file.size)
