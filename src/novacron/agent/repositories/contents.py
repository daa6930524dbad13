"""What a backup is in a repository: a snapshot with the VM's disk, its description and the state of its firmware.

All of it blocks. ``stopped`` is asked now and then: once it says so, the work ends with Stopped.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec

from novacron.agent.repositories.threads import Stopped, WorkStopped
from novacron.backup import disks
from novacron.backup.disks import DiskReader, Extent
from novacron.backup.errors import Damaged, DamagedBlobs, NotAllowed, NotStored, RepositoryError
from novacron.backup.pack import ID_BYTES, BlobType
from novacron.backup.repository import Repository
from novacron.backup.snapshot import File
from novacron.backup.storage import Kind
from novacron.model.errors import MALFORMED
from novacron.model.firmware_state import FirmwareState

DIRECTORY, DISK, DESCRIPTION, FIRMWARE = "vm", "disk.raw", "vm.json", "firmware.msgpack"
"""In each snapshot: its directory, and the files in it."""
TAG = "novacron-vm"
SMALL_BYTES_MAX = 4 << 20
"""Of what is no disk."""
BLOCKS_AT_ONCE = 1 << 16
"""Which are sorted by where they stand in the repository, and then verified: 4 GiB."""

Beside: TypeAlias = tuple[bytes, FirmwareState]
"""A VM's description, as JSON, and what its firmware and its TPM remember."""


class EarlierDisk(NamedTuple):
    """A disk that is in the repository: the parent of an increment."""

    snapshot: str
    backup: str
    file: File


class DiskCopy(NamedTuple):
    """A disk as it is to be stored, in a raw file. With an earlier one, only the ``changed`` extents of the file are
    the disk's: elsewhere the disk is as that one."""

    path: Path
    changed: tuple[Extent, ...] = ()
    earlier: EarlierDisk | None = None


class KeptDisk(msgspec.Struct, frozen=True):
    """A disk that was stored."""

    snapshot: str
    disk_bytes: int
    read_bytes: int


class Known(NamedTuple):
    """What a repository knows of a VM."""

    made: str = ""
    """The snapshot of the backup that is to be made; empty: it was not made yet."""
    parent: str = ""
    """That snapshot's own parent."""
    has_earlier: bool = False
    """It has other backups of the VM."""
    earlier: EarlierDisk | None = None
    """One of those that were asked for, whose disk is whole as far as the index says."""


class _Block(NamedTuple):
    """A block of a file: what to call it, its id, and its length."""

    what: str
    id: bytes
    length: int


def look(repository: Repository, backup: str, vm: str, points: Container[str], stopped: Stopped) -> Known:
    """Return what is known. ``points``: ids of snapshots and backups of which the latest is wanted. They come from the
    VM's QEMU, which may lie: backups of other VMs are not looked for.

    Raises RepositoryError, WorkStopped.
    """
    known, at = Known(), ""
    for id, made in repository.snapshots():
        tags = made.tags or []
        if backup in tags:
            known = known._replace(made=id, parent=made.parent or "")
        elif vm in tags:
            known = known._replace(has_earlier=True)
        wanted = vm in tags and backup not in tags and (id in points or any(tag in points for tag in tags))
        if wanted and made.time > at and (disk := _whole_disk(repository, id, stopped)) is not None:
            name = next((tag for tag in tags if tag not in (TAG, vm)), id)
            known, at = known._replace(earlier=EarlierDisk(id, name, disk)), made.time
    return known


def _whole_disk(repository: Repository, snapshot: str, stopped: Stopped) -> File | None:
    """Return a snapshot's disk, if the index knows all of it. Raises WorkStopped."""
    try:
        disk = _files(repository, snapshot)[DISK]
    except RepositoryError:
        return None
    if len(disk.content) != -(-disk.size // disks.BLOCK_BYTES) * ID_BYTES:
        return None
    for at in range(0, len(disk.content), ID_BYTES):
        if at % (ID_BYTES << 16) == 0 and stopped():
            raise WorkStopped
        if disk.content[at : at + ID_BYTES] not in repository.index:
            return None
    return disk


def disk_bytes(repository: Repository, snapshot: str) -> int:
    """Return the size of a backup's disk. Raises RepositoryError."""
    return _files(repository, snapshot)[DISK].size


def store(repository: Repository, tags: tuple[str, ...], disk: DiskCopy, beside: Beside, stopped: Stopped) -> KeptDisk:
    """Store a disk, and ``beside`` it the VM's description and firmware state; return what was stored. ``tags`` are the
    backup's id, and the VM's.

    Raises RepositoryError, OSError, WorkStopped.
    """
    description, state = beside
    descriptor = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size, read = os.fstat(descriptor).st_size, disks.reader_of(descriptor)

        def read_on(offset: int, length: int) -> bytes:
            if stopped():
                raise WorkStopped
            return read(offset, length)

        earlier = disk.earlier
        if earlier is None:
            written = disks.write_disk(repository, read_on, size, disks.data_extents(descriptor, size))
        else:
            written = disks.write_disk(repository, read_on, size, disk.changed, earlier.file)
    finally:
        os.close(descriptor)
    files = {DISK: written.file}
    for name, content in ((DESCRIPTION, description), (FIRMWARE, msgspec.msgpack.encode(state))):
        files[name] = disks.write_stream(repository, io.BytesIO(content).read, len(content))
    if stopped():
        raise WorkStopped
    parent = None if earlier is None else earlier.snapshot
    made = repository.save_snapshot(DIRECTORY, files, [TAG, *tags], parent=parent)
    return KeptDisk(made, size, written.read_bytes)


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
    """Read all of a backup back. Raises DamagedBlobs for blocks that can't be; Damaged, NotStored, RepositoryError,
    WorkStopped."""
    packs, first, bad = set[bytes](), "", 0
    for text, pack in _damage(repository, snapshot, stopped):
        first, bad = first or text, bad + 1
        packs |= set() if pack is None else {pack}
    if bad:
        more = f"; {bad - 1} other blocks can't be read back, either" if bad > 1 else ""
        raise DamagedBlobs(first + more, frozenset(packs))


def _damage(repository: Repository, snapshot: str, stopped: Stopped) -> Iterator[tuple[str, bytes | None]]:
    """Yield for each block of a backup that can't be read back what is wrong, and the pack in which it should be."""
    blocks = _blocks(_files(repository, snapshot))
    while batch := list(itertools.islice(blocks, BLOCKS_AT_ONCE)):
        for block in _suspects(repository, batch, stopped):
            if stopped():
                raise WorkStopped
            try:
                _verify_block(repository, block)
            except (Damaged, NotStored) as error:
                place = repository.index.find(block.id)
                yield str(error), None if place is None else place.pack


def _blocks(files: Mapping[str, File]) -> Iterator[_Block]:
    """Yield the blocks of files; whole blocks that are alike once. Raises Damaged."""
    seen = set[bytes]()
    for name, file in files.items():
        ids = file.ids()
        if len(ids) != -(-file.size // disks.BLOCK_BYTES):
            raise Damaged(f"{name} does not have as many blocks as its size asks for")
        for number, id in enumerate(ids):
            length = min(disks.BLOCK_BYTES, file.size - number * disks.BLOCK_BYTES)
            if id not in seen or length != disks.BLOCK_BYTES:
                seen.add(id)
                yield _Block(f"block {number} of {name}", id, length)


def _suspects(repository: Repository, batch: list[_Block], stopped: Stopped) -> Iterator[_Block]:
    """Yield the blocks that are not whole as they are read together with those beside them, in few requests. Raises
    RepositoryError, WorkStopped."""
    known: dict[bytes, list[_Block]] = {}
    for block in batch:
        place = repository.index.find(block.id)
        if place is None or place.blob.type is not BlobType.DATA:
            yield block
        else:
            known.setdefault(block.id, []).append(block)
    for piece in disks.pieces(repository, known):
        if stopped():
            raise WorkStopped
        try:
            content = piece.read(repository)
        except (Damaged, NotStored):
            yield from (block for _, blocks in piece.blobs for block in blocks)
            continue
        yield from (block for id, blocks in piece.blobs for block in blocks if not _is_whole(content, id, block.length))


def _is_whole(content: Callable[[bytes], bytes], id: bytes, length: int) -> bool:
    try:
        plain = content(id)
    except Damaged:
        return False
    return hashlib.sha256(plain).digest() == id and len(plain) == length


def _verify_block(repository: Repository, block: _Block) -> None:
    content = repository.load(BlobType.DATA, block.id)
    if hashlib.sha256(content).digest() != block.id or len(content) != block.length:
        raise Damaged(f"{block.what} has another content than its name says")


def forget(repository: Repository, backup: str) -> None:
    """Take a backup's snapshots out of a repository; restic's prune frees the space. Raises NotAllowed,
    RepositoryError."""
    for id, made in list(repository.snapshots()):
        if backup in (made.tags or ()):
            try:
                repository.storage.remove(Kind.SNAPSHOT, id)
            except NotAllowed as error:
                raise NotAllowed(
                    f"this node may not delete backups: run restic forget {id[:8]} where the repository is looked "
                    f"after; the backup is gone here soon after ({error})"
                ) from error


def restore(repository: Repository, snapshot: str, disk: Path) -> FirmwareState:
    """Write a backup's disk into a new file, zeros as holes; return the state of the firmware.

    Raises NotStored, Damaged, RepositoryError, OSError, WorkStopped.
    """
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
