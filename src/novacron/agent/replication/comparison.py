"""How a VM's disk differs from what the node that keeps its replica has of it, where nothing recorded what was written.

The sender tells the digests of all blocks that its layers have, in order; the receiver answers which blocks differ. So
a disk of 1 GiB costs 400 kB, and what is then sent is what changed, after a stop, a move or a failover alike. Digests
are keyed by project: without the key nobody can make two blocks of one digest.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import struct
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron.agent.replication.rounds import Compared
from novacron.disk.chain import BLOCK_BYTES, Chain
from novacron.disk.errors import Unacceptable
from novacron.disk.stream import PAGE, DiskPlayer, Head, StreamError, VolumeSink
from novacron.dwcp.frames import ErrorCode, ProtocolError
from novacron.dwcp.page_codec import DIGEST_BYTES
from novacron.dwcp.receiver import ReceiveSession
from novacron.model.errors import MALFORMED

VOLUME = "digests"
RECORD = struct.Struct(f"!Q{DIGEST_BYTES}s")
NO_BLOCK = (1 << 64) - 1
"""Fills the last page of records up."""
RUN = struct.Struct("!QI")
RUN_BLOCKS_MAX = (1 << 32) - 1
BLOCKS_MAX = 16 << 20
"""1 TiB that was written."""
VOLUME_BYTES_MAX = BLOCKS_MAX * RECORD.size + PAGE
ANSWER_BYTES_MAX = 64 << 20
HEAD_BYTES_MAX = 4096
"""Of an answer, beside the blocks that differ."""
PIECE_BYTES = 64 << 10
"""Of an answer that is unpacked at once."""
ANSWER_S_MAX, LOOK_S = 300.0, 0.2
Digest = Callable[[bytes], bytes]


def key_check(digest: Digest) -> str:
    """Return what both ends have if they have the same key."""
    return digest(b"comparison").hex()


def describe(chain: Chain, digest: Digest, path: Path) -> None:
    """Write the digests of all blocks that a disk's layers have. Raises Unacceptable, OSError."""
    with path.open("xb") as file:
        for count, block in enumerate(chain.written()):
            if count >= BLOCKS_MAX:
                raise Unacceptable(
                    f"more than {BLOCKS_MAX * BLOCK_BYTES >> 30} GiB were written, which is too much to compare"
                )
            file.write(RECORD.pack(block, digest(chain.read(block))))
        filler = RECORD.pack(NO_BLOCK, bytes(DIGEST_BYTES))
        while file.tell() % PAGE or not file.tell():
            file.write(filler[: PAGE - file.tell() % PAGE])


class Runs:
    """Blocks that come in order, as runs: what a peer says makes no more of them than an answer may name."""

    def __init__(self) -> None:
        self._firsts = array("Q")
        self._counts = array("I")

    def __len__(self) -> int:
        return len(self._firsts)

    def add(self, block: int) -> None:
        """Raises Unacceptable where a sender would not take so many runs."""
        if self._firsts and self._firsts[-1] + self._counts[-1] == block and self._counts[-1] < RUN_BLOCKS_MAX:
            self._counts[-1] += 1
            return
        if (len(self) + 1) * RUN.size >= ANSWER_BYTES_MAX:
            raise Unacceptable(f"the differences are in {len(self) + 1} places or more, too many for one answer")
        self._firsts.append(block)
        self._counts.append(1)

    def pack(self) -> bytes:
        """Return them packed. Raises Unacceptable where a sender would not take so many bytes."""
        packer, packed = zlib.compressobj(), bytearray()
        for run in zip(self._firsts, self._counts, strict=True):
            packed += packer.compress(RUN.pack(*run))
        packed += packer.flush()
        if len(packed) >= ANSWER_BYTES_MAX - HEAD_BYTES_MAX:
            raise Unacceptable(f"the differences are in {len(self)} places, too many for one answer")
        return bytes(packed)


def unpack(packed: bytes, end: int) -> Iterator[int]:
    """Return the blocks of packed runs, all below ``end`` and in order. Raises StreamError.

    They are unpacked as they are asked for: an answer of a few kilobytes may stand for millions of runs.
    """
    at = 0
    for first, count in _runs(packed):
        if first < at or count < 1 or first + count > end:
            raise StreamError("the answer to a comparison names blocks that the disk does not have")
        yield from range(first, first + count)
        at = first + count


def _runs(packed: bytes) -> Iterator[tuple[int, int]]:
    rest = b""
    try:
        for piece in _unpacked(packed):
            raw = rest + piece
            whole = len(raw) // RUN.size * RUN.size
            yield from RUN.iter_unpack(raw[:whole])
            rest = raw[whole:]
    except zlib.error as error:
        raise StreamError(f"the answer to a comparison can't be read: {error}") from error
    if rest:
        raise StreamError("the answer to a comparison can't be read: its last run is incomplete")


def _unpacked(packed: bytes) -> Iterator[bytes]:
    """Return what is packed, a piece at a time. Raises StreamError, zlib.error."""
    stream, total = zlib.decompressobj(), 0
    for start in range(0, len(packed), PIECE_BYTES):
        rest, piece = packed[start : start + PIECE_BYTES], b""
        while rest or len(piece) == PIECE_BYTES:
            piece = stream.decompress(rest, PIECE_BYTES)
            rest = stream.unconsumed_tail
            total += len(piece)
            if total > ANSWER_BYTES_MAX:
                raise StreamError("the answer to a comparison is too long")
            yield piece
    if not stream.eof:
        raise StreamError("the answer to a comparison is incomplete")


class Comparison:
    """Finds the blocks in which a sender's disk differs from one that is here, as its digests come in, in order.

    ``disk_bytes``: how large the sender's disk is at most. ``is_over``: nobody waits for the answer any more.
    """

    def __init__(
        self, chain: Chain, digest: Digest, disk_bytes: int, is_over: Callable[[], bool] = lambda: False
    ) -> None:
        self._chain, self._digest, self._is_over = chain, digest, is_over
        self._end = -(-max(disk_bytes, chain.size_bytes) // BLOCK_BYTES)
        self._own = iter(chain.written())
        self._own_next = next(self._own, None)
        self._last = -1
        self.differ = Runs()

    def take(self, block: int, digest: bytes) -> None:
        """Raises StreamError for blocks that are not in order or that no disk has, Unacceptable, OSError."""
        if block <= self._last:
            raise StreamError("the digests of a disk's blocks are not in order")
        if block >= self._end:
            raise StreamError(f"there is a digest of block {block}, and the disk has {self._end} blocks")
        self._last = block
        self._look_at_own(block)
        if self._digest(self._chain.read(block)) != digest:
            self.differ.add(block)

    def end(self) -> None:
        """There are no more. Raises StreamError, Unacceptable, OSError."""
        self._look_at_own(None)

    def _look_at_own(self, before: int | None) -> None:
        """Look at the blocks that only this disk's layers have: the sender's are as in its image."""
        while self._own_next is not None and (before is None or self._own_next <= before):
            if self._is_over():
                raise StreamError("nobody waits for the answer to a comparison any more")
            block = self._own_next
            self._own_next = next(self._own, None)
            if block != before and self._chain.read(block) != self._chain.below(block):
                self.differ.add(block)


class OpenedDisk(NamedTuple):
    """The disk that is here, and the round that brought it. ``disk_bytes``: how large the sender's is at most."""

    chain: Chain
    since: str
    disk_bytes: int


class Answering(VolumeSink):
    """Takes the digests of a sender's disk, and answers at their end. Called in a thread that is not the loop's.

    ``open_disk`` raises Unacceptable where there is no disk.
    """

    def __init__(
        self, session: ReceiveSession, open_disk: Callable[[], OpenedDisk], digest: Digest,
        loop: asyncio.AbstractEventLoop,
    ) -> None:  # fmt: skip
        self._session, self._open_disk, self._digest, self._loop = session, open_disk, digest, loop
        self._comparison: Comparison | None = None
        self._chain: Chain | None = None
        self._since = self._lacks = ""
        self._rest = b""
        self._at = 0
        self._given_up = threading.Event()

    def open(self, head: Head) -> list[VolumeSink]:
        """Return where the digests go. Raises StreamError, ProtocolError."""
        if [volume.name for volume in head.volumes] != [VOLUME]:
            raise StreamError("the stream is not a disk comparison")
        if head.volumes[0].size_bytes > VOLUME_BYTES_MAX:
            raise StreamError(f"the digests of a disk have {head.volumes[0].size_bytes} bytes, too many to compare")
        if head.volumes[0].below != key_check(self._digest):
            why = "the two nodes have different keys of the VM's project at the moment"
            raise ProtocolError(why, ErrorCode.NOT_EXPECTED)
        try:
            disk = self._open_disk()
            self._chain, self._since = disk.chain, disk.since
            self._comparison = Comparison(disk.chain, self._digest, disk.disk_bytes, self._is_over)
        except (Unacceptable, OSError) as error:
            self._lacks = _why(error)
        return [self]

    def write(self, offset: int, data: bytes) -> None:
        if offset != self._at:
            raise StreamError("the digests of a disk's blocks are not in order")
        self._at += len(data)
        if self._comparison is None:
            return
        data = self._rest + data
        whole = len(data) // RECORD.size * RECORD.size
        self._rest = data[whole:]
        try:
            for block, digest in RECORD.iter_unpack(data[:whole]):
                if block != NO_BLOCK:
                    self._comparison.take(block, digest)
        except StreamError:
            raise
        except (Unacceptable, OSError) as error:
            self._comparison, self._lacks = None, _why(error)

    def zero(self, offset: int, length: int) -> None:
        raise StreamError("the digests of a disk's blocks can't be zeros")

    def flush(self) -> None:
        """Answer, and return when the sender has it. Raises OSError, StreamError."""
        sending = asyncio.run_coroutine_threadsafe(self._answer(self._compared()), self._loop)
        for _ in range(int(ANSWER_S_MAX / LOOK_S)):
            done, _rest = concurrent.futures.wait([sending], timeout=LOOK_S)
            if done or self._is_over():
                break
        if not sending.done():
            sending.cancel()
            raise StreamError("the answer to a comparison could not be given")
        sending.result()

    def _compared(self) -> Compared:
        if self._comparison is not None and self._chain is not None:
            try:
                self._comparison.end()
                return Compared(self._since, self._chain.size_bytes, self._comparison.differ.pack())
            except StreamError:
                raise
            except (Unacceptable, OSError) as error:
                self._lacks = _why(error)
        return Compared(lacks=self._lacks)

    async def _answer(self, found: Compared) -> None:
        raw = msgspec.msgpack.encode(found)
        await self._session.back.send(len(raw).to_bytes(4, "big") + raw)
        await self._session.back.drain()

    def _is_over(self) -> bool:
        return self._given_up.is_set() or self._session.has_failed

    def give_up(self) -> None:
        """The session is over: nobody waits for the answer."""
        self._given_up.set()

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()
            self._chain = None


def _why(error: Exception) -> str:
    return f"the disk there can't be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)


class ComparisonPlayer(DiskPlayer):
    """The sink of a session that brings digests."""

    def __init__(self, answering: Answering) -> None:
        super().__init__(answering.open)
        self._answering = answering

    def abort(self) -> None:
        self._answering.give_up()


class Answer:
    """Puts an answer together that comes over a session's return channel."""

    def __init__(self) -> None:
        self._raw = bytearray()

    def take(self, data: bytes) -> None:
        """Take the next part; of an answer that is too long, none after that. The session goes on."""
        if len(self._raw) <= ANSWER_BYTES_MAX:
            self._raw += data

    def result(self) -> Compared:
        """Return the answer, once the session has ended. Raises StreamError."""
        if len(self._raw) > ANSWER_BYTES_MAX:
            raise StreamError("the answer to a comparison is too long")
        if len(self._raw) < 4 or len(self._raw) != 4 + int.from_bytes(self._raw[:4], "big"):
            raise StreamError("the answer to a comparison is incomplete")
        try:
            return msgspec.msgpack.decode(memoryview(self._raw)[4:], type=Compared)
        except MALFORMED as error:
            raise StreamError(f"the answer to a comparison can't be read: {error}") from error
