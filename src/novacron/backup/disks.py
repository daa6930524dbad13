"""Disks in a repository: files whose blobs are aligned blocks of one size, so that what two disks share is there once.

A block that is all zeros is one blob of the repository, too; where the host knows that nothing is there it is not read.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from novacron.backup.errors import Damaged, NotStored
from novacron.backup.pack import ID_BYTES, BlobType, check_length, content_of
from novacron.backup.repository import Repository
from novacron.backup.snapshot import File
from novacron.backup.storage import Kind

BLOCK_BYTES = 64 << 10
"""Of QEMU's dirty bitmaps and of qcow2's clusters: a guest's small write changes one blob. The last block of a disk may
be shorter."""
STRIDE_BYTES = 2 << 20
"""What a thread takes at a time."""
THREADS = min(4, os.cpu_count() or 1)
GAP_BYTES = 128 << 10
"""Reading over a gap in a pack costs less than another request."""
READ_BYTES_MAX = 8 << 20
"""Of one request to a pack."""
CACHED_BLOCKS = 512

ZERO_ID = hashlib.sha256(bytes(BLOCK_BYTES)).digest()

T = TypeVar("T")
Extent: TypeAlias = tuple[int, int]
"""Offset and length, in bytes."""
Read: TypeAlias = Callable[[int, int], bytes]
"""Reads so many bytes of a disk from an offset on; any thread may call it. Raises OSError."""
Write: TypeAlias = Callable[[int, bytes], None]
"""Writes to a disk from an offset on; any thread may call it. Raises OSError."""
Turn: TypeAlias = Callable[[int, bytes], bytes]
"""Turns the block with this number into what is to be stored: as long, and zeros stay zeros."""


class Written(NamedTuple):
    """What became of a disk."""

    file: File
    read_bytes: int
    """Read from the disk."""


def data_extents(descriptor: int, size: int) -> Iterator[Extent]:
    """Yield where a file holds data; the rest are holes, which are zeros. Raises OSError."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # a hole up to the end
        at = min(size, os.lseek(descriptor, begin, os.SEEK_HOLE))
        yield begin, at - begin


def reader_of(descriptor: int) -> Read:
    """Return how a file is read that stands still."""

    def read(offset: int, length: int) -> bytes:
        parts = list[bytes]()
        while length:
            part = os.pread(descriptor, length, offset)
            if not part:
                raise OSError(f"the disk ends at {offset}")
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    return read


def as_it_is(_number: int, block: bytes) -> bytes:
    return block


def write_disk(
    repository: Repository, read: Read, size: int, changed: Iterable[Extent], before: File | None = None,
    turn: Turn = as_it_is,
) -> Written:  # fmt: skip
    """Store a disk of which the extents ``changed`` may differ from ``before``, or from zeros if there is none.

    The disk stands still meanwhile. ``turn`` is applied to each block that is read. Raises ValueError where ``before``
    can't be what was there before; NotStored where the repository lacks a part of it: then all of the disk has to be
    read.
    """
    content = bytearray(ZERO_ID * -(-size // BLOCK_BYTES)) if before is None else _grown(before, size)
    strides = list(_strides(changed, size))
    tail = size % BLOCK_BYTES
    if tail and (before is None or before.size != size):  # the last block is shorter than others
        strides = list(_strides([*strides, (size - tail, tail)], size))
    _check_known(repository, content, strides)
    repository.add(BlobType.DATA, bytes(BLOCK_BYTES))

    def store(offset: int, length: int) -> None:
        data = memoryview(read(offset, length))
        for at in range(0, length, BLOCK_BYTES):
            number = (offset + at) // BLOCK_BYTES
            block = data[at : at + BLOCK_BYTES]
            if turn is not as_it_is:
                block = memoryview(turn(number, bytes(block)))
            content[number * ID_BYTES : (number + 1) * ID_BYTES] = repository.add(BlobType.DATA, block)

    _side_by_side(store, strides)
    return Written(File(size, bytes(content)), sum(length for _, length in strides))


def write_stream(repository: Repository, read: Callable[[int], bytes], size: int) -> File:
    """Store a file that is read once, from its beginning to its end. Raises OSError if it ends before."""
    content = bytearray(-(-size // BLOCK_BYTES) * ID_BYTES)

    def pieces() -> Iterator[tuple[int, bytes]]:
        at = 0
        while at < size:
            piece = read(min(STRIDE_BYTES, size - at))
            if len(piece) != min(STRIDE_BYTES, size - at):
                raise OSError(f"it ends after {at + len(piece)} of {size} bytes")
            yield at, piece
            at += len(piece)

    def store(offset: int, piece: bytes) -> None:
        data = memoryview(piece)
        for at in range(0, len(data), BLOCK_BYTES):
            place = (offset + at) // BLOCK_BYTES * ID_BYTES
            content[place : place + ID_BYTES] = repository.add(BlobType.DATA, data[at : at + BLOCK_BYTES])

    if size <= STRIDE_BYTES:  # no thread is worth it
        for offset, piece in pieces():
            store(offset, piece)
    else:
        _side_by_side(store, pieces())
    return File(size, bytes(content))


def _grown(before: File, size: int) -> bytearray:
    """Return the ids of a disk that has grown, or stayed as it is. Raises ValueError for any other one."""
    if len(before.content) != -(-before.size // BLOCK_BYTES) * ID_BYTES:
        raise ValueError("the earlier backup is not a disk in blocks of this size")
    if size < before.size or (size > before.size and before.size % BLOCK_BYTES):
        raise ValueError("a disk that shrank, or grew by part of a block, must be read completely")
    more = -(-size // BLOCK_BYTES) - -(-before.size // BLOCK_BYTES)
    return bytearray(before.content + ZERO_ID * more)


def _check_known(repository: Repository, content: bytearray, strides: list[Extent]) -> None:
    """Raise NotStored unless the repository has every block outside of ``strides``."""
    bounds = [
        0,
        *(edge for offset, length in strides for edge in (offset, offset + length)),
        len(content) * BLOCK_BYTES,
    ]
    for begin, end in list(pairwise(bounds))[::2]:
        first, last = begin // BLOCK_BYTES * ID_BYTES, min(len(content), -(-end // BLOCK_BYTES) * ID_BYTES)
        for at in range(first, last, ID_BYTES):
            id = bytes(content[at : at + ID_BYTES])
            if id not in repository.index and id != ZERO_ID:
                raise NotStored(f"data blob {id.hex()} of the previous backup is no longer in the repository")


def _strides(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """Yield whole blocks that cover the extents, each once and in order, in pieces for one thread."""
    end = 0
    for offset, length in sorted(extents):
        begin = max(end, offset // BLOCK_BYTES * BLOCK_BYTES)
        end = max(end, min(size, -(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES))
        for at in range(begin, end, STRIDE_BYTES):
            yield at, min(STRIDE_BYTES, end - at)


def _side_by_side(work: Callable[[int, T], None], items: Iterable[tuple[int, T]]) -> None:
    """Do the work for each item in a few threads, a few ahead. Raises what the first one that fails raises."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting = deque[concurrent.futures.Future[None]]()
        try:
            for item in items:
                waiting.append(pool.submit(work, *item))
                if len(waiting) > 2 * THREADS:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class PackPiece(NamedTuple, Generic[T]):
    """Blobs that are near each other in a pack, each with what it is for, such as where on a disk it belongs."""

    pack: bytes
    offset: int
    length: int
    blobs: list[tuple[bytes, list[T]]]

    def read(self, repository: Repository) -> Callable[[bytes], bytes]:
        """Read it; return what returns a blob's content by its id, and raises Damaged. Raises NotStored, Damaged,
        RepositoryError."""
        sealed = memoryview(repository.storage.read(Kind.PACK, self.pack.hex(), self.offset, self.length))

        def content(id: bytes) -> bytes:
            place = repository.index.find(id)
            assert place is not None
            begin = place.blob.offset - self.offset
            return content_of(repository.key, place.blob, sealed[begin : begin + place.blob.length])

        return content


class AtHand(NamedTuple):
    """A disk on this host that may be much like one in a repository: the image that it began as."""

    read: Read
    extents: Iterable[Extent]
    """What may hold data."""


def restore_disk(repository: Repository, file: File, descriptor: int, at_hand: AtHand | None = None) -> int:
    """Write a disk into an empty file, zeros as holes; return how many bytes were read from the repository.

    Raises NotStored, Damaged, RepositoryError, OSError.
    """
    os.ftruncate(descriptor, file.size)
    return fetch_disk(repository, file, lambda offset, content: _write(descriptor, content, offset), at_hand)


def fetch_disk(repository: Repository, file: File, write: Write, at_hand: AtHand | None = None) -> int:
    """Write the blocks of a disk that are no zeros, in any order, and fetch only those that another disk does not have
    at the same place; return how many bytes were read from the repository.

    Raises NotStored, Damaged, RepositoryError, OSError.
    """
    has = bytes(len(file.content) // ID_BYTES) if at_hand is None else _take(file, write, at_hand)
    read, lock = 0, threading.Lock()

    def fetch(piece: PackPiece[int]) -> None:
        nonlocal read
        content_of_blob = piece.read(repository)
        with lock:
            read += piece.length
        for id, offsets in piece.blobs:
            content = content_of_blob(id)
            if any(len(content) != min(BLOCK_BYTES, file.size - offset) for offset in offsets):
                raise Damaged(f"data blob {id.hex()} is not a block of this disk")
            for offset in offsets:
                write(offset, content)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fetch, pieces(repository, _lacking(file, has))):
            pass
    return read


def _lacking(file: File, has: bytes | bytearray) -> dict[bytes, list[int]]:
    """Return the blobs of a disk that are no zeros, and where each belongs, without the blocks that are there."""
    places: dict[bytes, list[int]] = {}
    for number, id in enumerate(file.ids()):
        if id != ZERO_ID and not has[number]:
            places.setdefault(id, []).append(number * BLOCK_BYTES)
    return places


def _take(file: File, write: Write, at_hand: AtHand) -> bytearray:
    """Write the blocks of a disk that another has at the same place; return which, a byte for each block."""
    has = bytearray(len(file.content) // ID_BYTES)

    def take(_number: int, extent: Extent) -> None:
        offset, length = extent
        data = at_hand.read(offset, length)
        for at in range(offset, offset + length, BLOCK_BYTES):
            number = at // BLOCK_BYTES
            id = file.content[number * ID_BYTES : (number + 1) * ID_BYTES]
            block = data[at - offset : at - offset + BLOCK_BYTES]
            if id != ZERO_ID and hashlib.sha256(block).digest() == id:
                write(at, block)
                has[number] = 1

    within = ((offset, min(length, file.size - offset)) for offset, length in at_hand.extents if offset < file.size)
    _side_by_side(take, enumerate(_strides(within, file.size)))
    return has


def pieces(repository: Repository, blobs: Mapping[bytes, list[T]]) -> Iterator[PackPiece[T]]:
    """Yield what to read from packs for these blobs of data, few requests for many. Raises NotStored, Damaged."""
    stored = []
    for id, uses in blobs.items():
        place = repository.index.find(id)
        if place is None or place.blob.type is not BlobType.DATA:
            raise NotStored(f"data blob {id.hex()} is not in the repository")
        check_length(place.blob)
        stored.append((place.pack, place.blob.offset, place.blob.length, id, uses))
    stored.sort(key=lambda blob: blob[:2])
    piece: PackPiece[T] | None = None
    for pack, offset, length, id, uses in stored:
        if (
            piece is not None and piece.pack == pack and offset - piece.offset - piece.length <= GAP_BYTES
            and offset + length - piece.offset <= READ_BYTES_MAX
        ):  # fmt: skip
            piece.blobs.append((id, uses))
            piece = piece._replace(length=offset + length - piece.offset)
            continue
        if piece is not None:
            yield piece
        piece = PackPiece(pack, offset, length, [(id, uses)])
    if piece is not None:
        yield piece


def _write(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


class DiskReader:
    """Reads parts of a disk in a repository, as a file. Any thread may use it."""

    def __init__(self, repository: Repository, file: File, turn: Turn = as_it_is) -> None:
        """``turn`` is done to each block that is read."""
        self.size = file.size
        self._repository, self._content, self._turn = repository, file.content, turn
        self._blocks: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer at the disk's end. Raises NotStored, Damaged, RepositoryError."""
        end, parts = min(self.size, offset + length), []
        while offset < end:
            number, begin = divmod(offset, BLOCK_BYTES)
            part = self._block(number)[begin : begin + end - offset]
            if not part:
                raise Damaged(f"block {number} of the disk is too short")
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        id = self._content[number * ID_BYTES : (number + 1) * ID_BYTES]
        if id == ZERO_ID:
            return bytes(BLOCK_BYTES)
        with self._lock:
            if id in self._blocks:
                self._blocks.move_to_end(id)
                return self._blocks[id]
        content = self._turn(number, self._repository.load(BlobType.DATA, id))
        with self._lock:
            self._blocks[id] = content
            while len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return content
