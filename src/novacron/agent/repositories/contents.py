"""What a backup is in a repository: a snapshot with the VM's disk, its description and the state of its firmware.

All of it blocks. ``stopped`` is asked now and then: once it says so, the work ends with Stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from novacron.agent.repositories.threads import Stopped, WorkStopped, never
from novacron.backup import disks
from novacron.backup.content_cipher import ContentCipher
from novacron.backup.disks import AtHand, DiskReader, Extent, Write
from novacron.backup.errors import Damaged, DamagedBlobs, NotAllowed, NotStored, RepositoryError
from novacron.backup.pack import ID_BYTES, BlobType
from novacron.backup.repository import Repository
from novacron.backup.snapshot import File
from novacron.backup.storage import Kind
from novacron.model.errors import MALFORMED
from novacron.model.firmware_state import FirmwareState
from novacron.telemetry import logs

log = logs.get(__name__)

DIRECTORY, DISK, DESCRIPTION, FIRMWARE = "vm", "disk.raw", "vm.json", "firmware.msgpack"
"""In each snapshot: its directory, and the files in it."""
SEALED_DISK, SEALED_FIRMWARE = "disk.xts", "firmware.sealed"
"""In place of these, where they are encrypted with a project's key."""
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


class DiskSource(Protocol):
    """A disk that stands still. Any thread may read it; all raise OSError."""

    size_bytes: int

    def read(self, offset: int, length: int) -> bytes: ...

    def data_extents(self) -> Iterator[Extent]:
        """Yield what may hold data; the rest reads as zeros."""


class _FileSource:
    """A disk in a raw file that is open."""

    def __init__(self, descriptor: int) -> None:
        self.size_bytes, self._descriptor = os.fstat(descriptor).st_size, descriptor
        self._read = disks.reader_of(descriptor)

    def read(self, offset: int, length: int) -> bytes:
        return self._read(offset, length)

    def data_extents(self) -> Iterator[Extent]:
        return disks.data_extents(self._descriptor, self.size_bytes)


class DiskCopy(NamedTuple):
    """A disk as it is to be stored: one that is open, or the path of a raw file. With an earlier one, only the
    ``changed`` extents are the disk's: elsewhere the disk is as that one."""

    source: DiskSource | Path
    changed: tuple[Extent, ...] = ()
    earlier: EarlierDisk | None = None
    cipher: ContentCipher | None = None
    """Encrypts what is stored; so was the earlier one."""


class KeptDisk(msgspec.Struct, frozen=True):
    """A disk that was stored."""

    snapshot: str
    disk_bytes: int
    read_bytes: int


class BackupState(NamedTuple):
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


def look(
    repository: Repository, backup: str, vm: str, points: Container[str], stopped: Stopped, key_id: str = ""
) -> BackupState:
    """Return what is known. ``points``: ids of snapshots and backups of which the latest is wanted. They come from the
    VM's QEMU, which may lie: backups of other VMs are not looked for. ``key_id``: of the key with which the content is
    encrypted, or empty; disks that are kept in another way count for nothing.

    Raises RepositoryError, WorkStopped.
    """
    known, at = BackupState(), ""
    for id, made in repository.snapshots():
        tags = made.tags or []
        if backup in tags:
            known = known._replace(made=id, parent=made.parent or "")
        elif vm in tags:
            known = known._replace(has_earlier=True)
        asked = vm in tags and backup not in tags and (id in points or any(tag in points for tag in tags))
        if asked and made.time > at and (disk := _whole_disk(repository, (id, tags), stopped, key_id)) is not None:
            name = next((tag for tag in tags if tag not in (TAG, vm, key_id)), id)
            known, at = known._replace(earlier=EarlierDisk(id, name, disk)), made.time
    return known


def _whole_disk(
    repository: Repository, made: tuple[str, Container[str]], stopped: Stopped, key_id: str
) -> File | None:  # fmt: skip
    """Return the disk of a snapshot, given with its tags, if the index knows all of it. Raises WorkStopped."""
    snapshot, tags = made
    try:
        disk = _disk(_files(repository, snapshot), is_sealed=bool(key_id))
    except RepositoryError:
        return None
    if key_id and key_id not in tags:
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
    files = _files(repository, snapshot)
    return _disk(files, is_sealed=SEALED_DISK in files).size


def store(repository: Repository, tags: tuple[str, ...], disk: DiskCopy, beside: Beside, stopped: Stopped) -> KeptDisk:
    """Store a disk, and ``beside`` it the VM's description and firmware state; return what was stored. ``tags`` are the
    backup's id, and the VM's.

    Raises RepositoryError, OSError, WorkStopped.
    """
    description, state = beside
    with _opened(disk.source) as source:

        def read_on(offset: int, length: int) -> bytes:
            if stopped():
                raise WorkStopped
            return source.read(offset, length)

        changed = source.data_extents() if disk.earlier is None else disk.changed
        before = None if disk.earlier is None else disk.earlier.file
        turn = disks.as_it_is if disk.cipher is None else disk.cipher.seal
        written = disks.write_disk(repository, read_on, source.size_bytes, changed, before, turn)
    firmware = msgspec.msgpack.encode(state)
    small, files = {DESCRIPTION: description, FIRMWARE: firmware}, {DISK: written.file}
    if disk.cipher is not None:
        sealed = disk.cipher.seal_file(FIRMWARE, firmware)
        small, files = {DESCRIPTION: description, SEALED_FIRMWARE: sealed}, {SEALED_DISK: written.file}
        tags = (*tags, disk.cipher.key_id)
    for name, content in small.items():
        files[name] = disks.write_stream(repository, io.BytesIO(content).read, len(content))
    if stopped():
        raise WorkStopped
    parent = None if disk.earlier is None else disk.earlier.snapshot
    made = repository.save_snapshot(DIRECTORY, files, [TAG, *tags], parent=parent)
    return KeptDisk(made, written.file.size, written.read_bytes)


@contextlib.contextmanager
def _opened(source: DiskSource | Path) -> Iterator[DiskSource]:
    if not isinstance(source, Path):
        yield source
        return
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield _FileSource(descriptor)
    finally:
        os.close(descriptor)


def _files(repository: Repository, snapshot: str) -> dict[str, File]:
    """Return the files of a snapshot. Raises NotStored, Damaged."""
    made = next((made for id, made in repository.snapshots() if id == snapshot), None)
    if made is None:
        raise NotStored(f"snapshot {snapshot} is no longer in the repository")
    files = repository.content(made).files
    for name in (SEALED_DISK if SEALED_DISK in files else DISK, DESCRIPTION):
        if name not in files:
            raise Damaged(f"snapshot {snapshot} has no {name}")
    if (SEALED_FIRMWARE if SEALED_DISK in files else FIRMWARE) not in files:
        raise Damaged(f"snapshot {snapshot} has no firmware state")
    return files


def _disk(files: Mapping[str, File], *, is_sealed: bool) -> File:
    """Return a snapshot's disk, if it is kept in this way. Raises Damaged."""
    if is_sealed and SEALED_DISK not in files:
        raise Damaged("the snapshot's data is not encrypted, but should be")
    if not is_sealed and SEALED_DISK in files:
        raise Damaged("the snapshot's data is encrypted with a project's key, but should not be")
    return files[SEALED_DISK if is_sealed else DISK]


def verify(repository: Repository, snapshot: str, stopped: Stopped) -> None:
    """Read all of a backup back. Raises DamagedBlobs for blocks that can't be; Damaged, NotStored, RepositoryError,
    WorkStopped."""
    packs, first, bad = set[bytes](), "", 0
    for text, pack in _damage(repository, snapshot, stopped):
        first, bad = first or text, bad + 1
        packs |= set() if pack is None else {pack}
    if bad:
        more = f"; {bad - 1} other blocks can't be read back either" if bad > 1 else ""
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
            raise Damaged(f"{name} has fewer or more blocks than its size requires")
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
        raise Damaged(f"{block.what} has content that does not match its name")


def forget(repository: Repository, backup: str) -> None:
    """Take a backup's snapshots out of a repository; restic's prune frees the space. Raises NotAllowed,
    RepositoryError."""
    for id, made in list(repository.snapshots()):
        if backup in (made.tags or ()):
            try:
                repository.storage.remove(Kind.SNAPSHOT, id)
            except NotAllowed as error:
                raise NotAllowed(
                    f"this node is not allowed to delete backups: run restic forget {id[:8]} on the host that maintains"
                    f" the repository; NovaCron then removes the backup from its list ({error})"
                ) from error


def restore(
    repository: Repository, snapshot: str, disk: Path, image: Path | None = None, stopped: Stopped = never
) -> FirmwareState:
    """Write a backup's disk into a new file, zeros as holes; return the state of the firmware. Blocks that the disk of
    an ``image`` of this host has, too, are not fetched.

    Raises NotStored, Damaged, RepositoryError, OSError, WorkStopped.
    """
    kept = KeptContent(repository, snapshot, None)
    descriptor = os.open(disk, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, descriptor)
        at_hand = None
        if image is not None:
            source = opened.enter_context(_opened(image))

            def read_on(offset: int, length: int) -> bytes:
                if stopped():
                    raise WorkStopped
                return source.read(offset, min(length, source.size_bytes - offset)).ljust(length, b"\0")

            at_hand = AtHand(read_on, source.data_extents())
        fetched = disks.restore_disk(repository, kept.disk, descriptor, at_hand)
        os.fsync(descriptor)
    log.info("a backup's disk is restored", snapshot=snapshot, disk_bytes=kept.disk.size, fetched_bytes=fetched)
    return kept.firmware


class KeptContent:
    """What a backup has, read with the key of its project if it is encrypted."""

    def __init__(self, repository: Repository, snapshot: str, cipher: ContentCipher | None) -> None:
        """Raises NotStored, Damaged, RepositoryError."""
        self._repository, self._cipher = repository, cipher
        files = _files(repository, snapshot)
        self.disk = _disk(files, is_sealed=cipher is not None)
        state = _small(repository, files[FIRMWARE if cipher is None else SEALED_FIRMWARE])
        if cipher is not None:
            state = cipher.open_file(FIRMWARE, state)
        try:
            self.firmware = msgspec.msgpack.decode(state, type=FirmwareState)
        except MALFORMED as error:
            raise Damaged(f"the firmware's state can't be read: {error}") from None

    def reader(self) -> DiskReader:
        """Return what reads parts of the disk."""
        return DiskReader(self._repository, self.disk, disks.as_it_is if self._cipher is None else self._cipher.open)

    def fetch_disk(self, write: Write, stopped: Stopped) -> None:
        """Write the blocks of the disk that are no zeros, in any order, from several threads.

        Raises NotStored, Damaged, RepositoryError, OSError, WorkStopped.
        """
        turn = disks.as_it_is if self._cipher is None else self._cipher.open

        def write_on(offset: int, content: bytes) -> None:
            if stopped():
                raise WorkStopped
            write(offset, turn(offset // disks.BLOCK_BYTES, content))

        disks.fetch_disk(self._repository, self.disk, write_on)


def _small(repository: Repository, file: File) -> bytes:
    if file.size > SMALL_BYTES_MAX:
        raise RepositoryError(f"a file of {file.size} bytes is too large")
    return DiskReader(repository, file).read(0, file.size)
