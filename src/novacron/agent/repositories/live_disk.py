"""A backup's disk that is read while it is still in its repository: block by block, as it is needed, and ahead of that.

A few threads fetch; what somebody waits for goes before what nobody has asked for yet. What can't be fetched is tried
again for a while, and then is an error of that read.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import NamedTuple, TypeAlias

from novacron.backup import disks
from novacron.backup.disks import BLOCK_BYTES, ZERO_ID, PackPiece, Read, Turn
from novacron.backup.errors import Damaged, NotStored, RepositoryError
from novacron.backup.pack import ID_BYTES
from novacron.backup.repository import Repository
from novacron.backup.snapshot import File
from novacron.telemetry import logs

log = logs.get(__name__)

THREADS, THREADS_AHEAD = 6, 4
"""Which fetch, and how many of them may fetch what nobody waits for yet."""
CACHED_BLOCKS = 1024
"""64 MiB."""
AHEAD_BLOCKS_MIN, AHEAD_BLOCKS_MAX = 4, 64
"""How far ahead of a read is fetched: of one that goes on where another ended twice as far as of that."""
PIECE_BLOCKS_MAX = 16
"""In one request: what is urgent waits for no more than a few of these."""
STREAMS_MAX = 8
"""Readers that go on where they were, which are known apart."""
HOLD_S_MAX = 6.0
"""For how long a read waits for a repository that is away. QEMU answers nobody while it waits for one, so it is less
than anybody waits for QEMU."""
RETRY_S, INDEX_S = 1.0, 10.0
"""Between attempts to fetch something, and to read the repository's index anew."""


class ReadAhead:
    """Decides how far ahead to fetch. Pure."""

    def __init__(self) -> None:
        self._streams: OrderedDict[int, int] = OrderedDict()
        """Of each reader, the block at which it goes on, and how many blocks were fetched ahead of it."""

    def after(self, first: int, last: int) -> int:
        """Blocks ``first`` to ``last`` are read: return how many behind them to fetch, too."""
        known = self._streams.pop(first, None) or self._streams.pop(first - 1, None)
        ahead = AHEAD_BLOCKS_MIN if known is None else min(2 * known, AHEAD_BLOCKS_MAX)
        self._streams[last + 1] = ahead
        while len(self._streams) > STREAMS_MAX:
            self._streams.popitem(last=False)
        return ahead


_Batch: TypeAlias = PackPiece[int]
"""Blocks that are fetched together: for each blob, their numbers."""


class Trouble(NamedTuple):
    """What keeps a repository from being read."""

    error: str
    since: float
    """Monotonic clock, in seconds."""


class LiveDisk:
    """One disk. Any thread may read it; ``close`` ends its threads, of which one may hang as the storage does."""

    def __init__(self, repository: Repository, file: File, turn: Turn = disks.as_it_is, image: Read | None = None,
                 hold_s: float = HOLD_S_MAX) -> None:  # fmt: skip
        """``turn`` is done to each block that is fetched. ``image`` reads a disk of this host that may have the same
        blocks at the same places; short at its end."""
        self.size, self.fetched_bytes = file.size, 0
        self.trouble: Trouble | None = None
        """None: what was fetched last came."""
        self._repository, self._content, self._turn = repository, file.content, turn
        self._image, self._hold_s = image, hold_s
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._coming: dict[int, Future[bytes]] = {}
        self._urgent, self._ahead = deque[_Batch](), deque[_Batch]()
        self._busy_ahead = 0
        self._read_ahead = ReadAhead()
        self._condition = threading.Condition()
        self._closed = False
        self._index_read_at = time.monotonic()
        for number in range(THREADS):
            threading.Thread(target=self._work, name=f"live-disk-{number}", daemon=True).start()

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            for future in self._coming.values():
                future.cancel()

    def read(self, offset: int, length: int) -> bytes:
        """Return so many bytes; what is beyond the disk's end is zeros. Raises OSError once the repository has not
        answered for too long."""
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        numbers = range(first, last + 1)
        deadline = time.monotonic() + self._hold_s
        with self._condition:
            ahead = self._read_ahead.after(first, last)
        blocks = self._all_of(numbers, range(last + 1, last + 1 + ahead), deadline)
        begin = offset - first * BLOCK_BYTES
        return b"".join(blocks[number] for number in numbers)[begin : begin + length]

    def _all_of(self, numbers: range, ahead: range, deadline: float) -> dict[int, bytes]:
        """Return these blocks, and have those ``ahead`` fetched, too."""
        blocks, coming = self._begin(numbers, ahead)
        while True:
            for number, future in coming.items():
                with contextlib.suppress(FutureTimeout, RepositoryError, OSError):
                    blocks[number] = future.result(max(0.0, deadline - time.monotonic()))
            if len(blocks) == len(numbers):
                return blocks
            if time.monotonic() + RETRY_S > deadline:
                trouble = self.trouble
                raise OSError("the repository does not answer" if trouble is None else trouble.error)
            with self._condition:
                self._condition.wait_for(lambda: self._closed, RETRY_S)
            more, coming = self._begin([number for number in numbers if number not in blocks], range(0))
            blocks |= more

    def _begin(self, numbers: Sequence[int], ahead: range) -> tuple[dict[int, bytes], dict[int, Future[bytes]]]:
        """Return the blocks that are known, and what tells of those that come."""
        with self._condition:
            if self._closed:
                raise OSError("the disk is read no more")
            known = {number: block for number in numbers if (block := self._cached(number)) is not None}
            coming = self._have([number for number in numbers if number not in known], urgent=True)
            self._have([number for number in ahead if self._cached(number) is None], urgent=False)
        return known, coming

    def _cached(self, number: int) -> bytes | None:
        """Return a block that need not be fetched. The condition is held."""
        id = self._id(number)
        if id in (b"", ZERO_ID):
            return bytes(BLOCK_BYTES)
        block = self._blocks.get(number)
        if block is not None:
            self._blocks.move_to_end(number)
        return block

    def _id(self, number: int) -> bytes:
        return self._content[number * ID_BYTES : (number + 1) * ID_BYTES]

    def _have(self, numbers: Collection[int], *, urgent: bool) -> dict[int, Future[bytes]]:
        """Have blocks fetched, if they are not yet; return what tells of those that come. The condition is held."""
        coming = {number: self._coming[number] for number in numbers if number in self._coming}
        if urgent:
            self._hurry(coming)
        for batch in self._batches([number for number in numbers if number not in coming]):
            coming |= {number: self._coming.setdefault(number, Future()) for number in _numbers(batch)}
            (self._urgent if urgent else self._ahead).append(batch)
        while len(self._ahead) > AHEAD_BLOCKS_MAX:  # nobody has asked for the oldest since
            self._fail(_numbers(self._ahead.popleft()), NotStored("it was not fetched in time"))
        self._condition.notify_all()
        return coming

    def _batches(self, numbers: Sequence[int]) -> list[_Batch]:
        """Return what to fetch for these blocks, in few requests; without those of which nothing is known."""
        batches = list[_Batch]()
        for at in range(0, len(numbers), PIECE_BLOCKS_MAX):
            by_id: dict[bytes, list[int]] = {}
            for number in numbers[at : at + PIECE_BLOCKS_MAX]:
                by_id.setdefault(self._id(number), []).append(number)
            try:
                batches += disks.pieces(self._repository, by_id)
            except RepositoryError as error:
                self._note(error)
        return batches

    def _hurry(self, numbers: Container[int]) -> None:
        for batch in list(self._ahead):
            if any(number in numbers for number in _numbers(batch)):
                self._ahead.remove(batch)
                self._urgent.append(batch)

    def _fail(self, numbers: Iterable[int], error: Exception) -> None:
        for number in numbers:
            future = self._coming.pop(number, None)
            if future is not None and not future.cancelled():
                future.set_exception(error)

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._next() is not None)
                if self._closed:
                    return
                queue = self._next()
                assert queue is not None
                batch, is_ahead = queue.popleft(), queue is self._ahead
                self._busy_ahead += is_ahead
            try:
                self._fetch(batch)
            finally:
                with self._condition:
                    self._busy_ahead -= is_ahead
                    self._condition.notify_all()

    def _next(self) -> deque[_Batch] | None:
        if self._urgent:
            return self._urgent
        return self._ahead if self._ahead and self._busy_ahead < THREADS_AHEAD else None

    def _fetch(self, piece: _Batch) -> None:
        try:
            blocks = self._at_hand(piece)
            if len(blocks) < len(_numbers(piece)):
                blocks |= self._from_repository(piece)
        except Exception as error:  # a read that waits must hear of it, whatever it was
            with self._condition:
                self._note(error)
                self._fail(_numbers(piece), error if isinstance(error, OSError) else NotStored(str(error)))
            return
        with self._condition:
            for number, block in blocks.items():
                self._blocks[number] = block
                future = self._coming.pop(number, None)
                if future is not None and not future.cancelled():
                    future.set_result(block)
            while len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)

    def _at_hand(self, piece: PackPiece[int]) -> dict[int, bytes]:
        """Return the blocks that the image has at the same places."""
        blocks: dict[int, bytes] = {}
        if self._image is None:
            return blocks
        for id, numbers in piece.blobs:
            for number in numbers:
                block = self._image(number * BLOCK_BYTES, BLOCK_BYTES)
                if hashlib.sha256(block).digest() == id:
                    blocks[number] = block.ljust(BLOCK_BYTES, b"\0")
        return blocks

    def _from_repository(self, piece: PackPiece[int]) -> dict[int, bytes]:
        """Raises RepositoryError, OSError."""
        blocks, content_of = dict[int, bytes](), piece.read(self._repository)
        for id, numbers in piece.blobs:
            content = content_of(id)
            for number in numbers:
                if len(content) != min(BLOCK_BYTES, self.size - number * BLOCK_BYTES):
                    raise Damaged(f"data blob {id.hex()} is not a block of this disk")
                blocks[number] = self._turn(number, content).ljust(BLOCK_BYTES, b"\0")
        with self._condition:
            self.trouble = None
            self.fetched_bytes += piece.length
        return blocks

    def _note(self, error: Exception) -> None:
        """Something could not be fetched. The condition is held."""
        if self.trouble is None:
            log.warning("a live restore can't read its repository", error=str(error))
            self.trouble = Trouble(str(error) or type(error).__name__, time.monotonic())
        else:
            self.trouble = self.trouble._replace(error=str(error) or type(error).__name__)
        if isinstance(error, NotStored) and time.monotonic() - self._index_read_at > INDEX_S:
            self._index_read_at = time.monotonic()
            threading.Thread(target=self._read_index, name="live-disk-index", daemon=True).start()

    def _read_index(self) -> None:
        """A prune may have put blobs into other packs."""
        known = self._repository
        fresh = Repository(known.storage, known.key, known.id)
        with contextlib.suppress(RepositoryError, OSError):
            fresh.read_index()
            known.index = fresh.index


def _numbers(batch: _Batch) -> list[int]:
    return [number for _, of_blob in batch.blobs for number in of_blob]


def reader_of_image(read: Callable[[int, int], bytes], size: int) -> Read:
    """Return what reads a disk as far as it reaches; ``read`` raises OSError at its end."""

    def read_within(offset: int, length: int) -> bytes:
        return read(offset, min(length, size - offset)) if offset < size else b""

    return read_within
