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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

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
ANSWER_BYTES_MAX = 64 << 20
HEAD_BYTES_MAX = 4096
"""Of an answer, beside the blocks that differ."""
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
                raise Unacceptable(f"more than {BLOCKS_MAX * BLOCK_BYTES >> 30} GiB were written, too much to compare")
            file.write(RECORD.pack(block, digest(chain.read(block))))
        filler = RECORD.pack(NO_BLOCK, bytes(DIGEST_BYTES))
        while file.tell() % PAGE or not file.tell():
            file.write(filler[: PAGE - file.tell() % PAGE])


def pack(blocks: Iterable[int]) -> bytes:
    """Return blocks, in order, as packed runs. Raises Unacceptable where a sender would not take so many."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and sum(runs[-1]) == block and runs[-1][1] < RUN_BLOCKS_MAX:
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    packed = b""
    if len(runs) * RUN.size < ANSWER_BYTES_MAX:
        packed = zlib.compress(b"".join(RUN.pack(*run) for run in runs))
    if not 0 < len(packed) < ANSWER_BYTES_MAX - HEAD_BYTES_MAX:
        raise Unacceptable(f"what differs is in {len(runs)} places, too many for an answer")
    return packed


def unpack(packed: bytes, end: int) -> Iterator[int]:
    """Return the blocks of packed runs, all below ``end`` and in order. Raises StreamError."""
    try:
        stream = zlib.decompressobj()
        raw = stream.decompress(packed, ANSWER_BYTES_MAX)
        runs = [RUN.unpack_from(raw, at) for at in range(0, len(raw), RUN.size)]
    except (zlib.error, struct.error) as error:
        raise StreamError(f"the answer to a comparison can't be read: {error}") from error
    if not stream.eof:
        raise StreamError("the answer to a comparison is too long")
    at = 0
    for first, count in runs:
        if first < at or count < 1 or first + count > end:
            raise StreamError("the answer to a comparison names blocks that the disk does not have")
        yield from range(first, first + count)
        at = first + count


class Comparison:
    """Finds the blocks in which a sender's disk differs from one that is here, as its digests come in, in order.

    ``is_over``: nobody waits for the answer any more.
    """

    def __init__(self, chain: Chain, digest: Digest, is_over: Callable[[], bool] = lambda: False) -> None:
        self._chain, self._digest, self._is_over = chain, digest, is_over
        self._own = iter(chain.written())
        self._own_next = next(self._own, None)
        self._last = -1
        self.differ: list[int] = []

    def take(self, block: int, digest: bytes) -> None:
        """Raises StreamError for blocks that are not in order, Unacceptable, OSError."""
        if block <= self._last:
            raise StreamError("the digests of a disk's blocks are not in order")
        self._last = block
        self._look_at_own(block)
        if self._digest(self._chain.read(block)) != digest:
            self.differ.append(block)

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
                self.differ.append(block)


class Answering(VolumeSink):
    """Takes the digests of a sender's disk, and answers at their end. Called in a thread that is not the loop's.

    ``open_disk`` returns the disk that is here, and the round that brought it; it raises Unacceptable where there is
    none.
    """

    def __init__(
        self, session: ReceiveSession, open_disk: Callable[[], tuple[Chain, str]], digest: Digest,
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
            raise StreamError("the stream is no comparison of a disk")
        if head.volumes[0].below != key_check(self._digest):
            why = "the two nodes have different keys of the VM's project at this moment"
            raise ProtocolError(why, ErrorCode.NOT_EXPECTED)
        try:
            self._chain, self._since = self._open_disk()
            self._comparison = Comparison(self._chain, self._digest, self._is_over)
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
        sending = asyncio.run_coroutine_threadsafe(self._answer(self._found()), self._loop)
        for _ in range(int(ANSWER_S_MAX / LOOK_S)):
            done, _rest = concurrent.futures.wait([sending], timeout=LOOK_S)
            if done or self._is_over():
                break
        if not sending.done():
            sending.cancel()
            raise StreamError("the answer to a comparison could not be given")
        sending.result()

    def _found(self) -> Compared:
        if self._comparison is not None and self._chain is not None:
            try:
                self._comparison.end()
                differ = pack(sorted(self._comparison.differ))
                return Compared(self._since, self._chain.size_bytes, differ)
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
            raise StreamError("the answer to a comparison is not whole")
        try:
            return msgspec.msgpack.decode(self._raw[4:], type=Compared)
        except MALFORMED as error:
            raise StreamError(f"the answer to a comparison can't be read: {error}") from error
