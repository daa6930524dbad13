"""Disks as a stream of pages: writes to volumes, in order, in a form whose pages can be sent as references.

The format is in docs/dwcp.md, "Disks": records that begin with a 64-bit word, an offset with a tag in its low 12 bits.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from novacron.model.errors import MALFORMED

PAGE = 4096
RECORD = 8 + PAGE
VERSION = 1
ZERO, RANGE, PAGE_TAG, HEAD, VOLUME = 0x02, 0x04, 0x08, 0x10, 0x20
TAGS = PAGE - 1
CHUNK_BYTES = 512 * 1024
WRITE_BYTES_MAX = 1024 * 1024
HEAD_BYTES_MAX = 64 * 1024
WAITING_CHUNKS = 4
CHECK_S = 0.2
VOLUMES_MAX = 64
ZERO_PAGE = bytes(PAGE)
_word = struct.Struct("!Q")
_zero = struct.Struct("!QB")
_range = struct.Struct("!QQ")
_head = struct.Struct("!QI")

OPAQUE_RUN, ZERO_RUN, PAGES_RUN = 0, 1, 2
Run = tuple[int, int, int, int, int, bool]
"""``(kind, at, count, header, space, bare)``: see the page codec."""


class StreamError(OSError):
    """What came is no such stream, or not the one that was expected: says why."""


class VolumeInfo(msgspec.Struct, frozen=True):
    """A volume that the stream tells of. ``below`` is what it lies over: the digest of an image, or nothing."""

    name: str
    size_bytes: int
    below: str = ""


class Head(msgspec.Struct, frozen=True):
    """The first record: volumes, by whose place here the others name them."""

    version: int
    volumes: tuple[VolumeInfo, ...]
    needed_bytes: int = 0
    """What they take of a disk, as far as that is known."""


class VolumeSink(Protocol):
    """Where what the stream tells is written to. Each raises OSError."""

    def write(self, offset: int, data: bytes) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...

    def flush(self) -> None:
        """Return when all that was written is durable."""
        ...


class DiskRecorder:
    """Makes the stream of writes to one volume after another: the source of a session.

    One thread writes and waits for room, another reads.
    """

    def __init__(self, volumes: Sequence[VolumeInfo], needed_bytes: int = 0) -> None:
        self.piece_bytes = CHUNK_BYTES
        """How much is put together of one write; ``read`` returns that."""
        self._volumes = volumes
        self._volume = 0
        self._chunks: queue.Queue[bytes] = queue.Queue(WAITING_CHUNKS)
        self._stop = threading.Event()
        body = msgspec.msgpack.encode(Head(VERSION, tuple(volumes), needed_bytes))
        self._put(_head.pack(HEAD, len(body)) + body)

    def _put(self, chunk: bytes) -> None:
        while not self._stop.is_set():
            try:
                self._chunks.put(chunk, timeout=CHECK_S)
                return
            except queue.Full:
                continue
        raise BrokenPipeError("the session that takes this disk has ended")

    def select(self, volume: int) -> None:
        """Write to this volume from now on."""
        self._volume = volume
        self._put(_word.pack(volume << 12 | VOLUME))

    def _check(self, offset: int, length: int) -> None:
        size = self._volumes[self._volume].size_bytes
        if offset % PAGE or length % PAGE or not 0 <= offset <= offset + length <= -(-size // PAGE) * PAGE:
            raise StreamError(f"bytes {offset} to {offset + length} are not whole pages of a volume of {size}")

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Tell whole pages. Raises BrokenPipeError when nobody reads any more."""
        self._check(offset, len(data))
        view, chunk = memoryview(data), max(PAGE, self.piece_bytes // PAGE * PAGE)
        for start in range(0, len(view), chunk):
            parts: list[bytes | memoryview] = []
            for at in range(start, min(start + chunk, len(view)), PAGE):
                page = view[at : at + PAGE]
                if page == ZERO_PAGE:
                    parts.append(_zero.pack(offset + at | ZERO, 0))
                else:
                    parts.append(_word.pack(offset + at | PAGE_TAG))
                    parts.append(page)
            self._put(b"".join(parts))

    def zero(self, offset: int, length: int) -> None:
        self._check(offset, length)
        self._put(_range.pack(offset | RANGE, length))

    def flush(self) -> None:
        """Nothing to do: all is durable before the end is confirmed."""

    def end(self) -> None:
        """Nothing more is written."""
        self._put(b"")

    def read(self) -> bytes:
        while not self._stop.is_set():
            try:
                return self._chunks.get(timeout=CHECK_S)
            except queue.Empty:
                continue
        return b""

    def abort(self) -> None:
        self._stop.set()


class DiskSplitter:
    """Cuts a DiskRecorder's stream, which comes in whole records, into runs."""

    def __init__(self) -> None:
        self._volume = 0

    def split(self, data: bytes) -> tuple[bytes, list[Run]]:
        runs: list[Run] = []
        at, end = 0, len(data)
        while at < end:
            word = _word.unpack_from(data, at)[0]
            tag, begin = word & TAGS, at
            if tag == PAGE_TAG:
                at = _run_end(data, at, RECORD)
                runs.append((PAGES_RUN, begin, (at - begin) // RECORD, word, self._volume, False))
            elif tag == ZERO:
                at = _run_end(data, at, _zero.size)
                runs.append((ZERO_RUN, begin, (at - begin) // _zero.size, word, self._volume, False))
            else:
                if tag == VOLUME:
                    self._volume = word >> 12
                at += _head.size + _head.unpack_from(data, at)[1] if tag == HEAD else _size(tag)
                runs.append((OPAQUE_RUN, begin, at - begin, 0, 0, False))
        return data, runs

    def finish(self) -> tuple[bytes, list[Run]]:
        return b"", []


def _run_end(data: bytes, at: int, record_bytes: int) -> int:
    """Return where the records of pages that follow one another, from ``at`` on, end."""
    expected = _word.unpack_from(data, at)[0]
    while at < len(data) and _word.unpack_from(data, at)[0] == expected:
        at, expected = at + record_bytes, expected + PAGE
    return at


def _size(tag: int) -> int:
    return _range.size if tag == RANGE else _word.size


class DiskPlayer:
    """Writes what a stream tells to volumes: the sink of a session. ``open`` finds them, or raises OSError."""

    def __init__(self, open: Callable[[Head], Sequence[VolumeSink]]) -> None:
        self._open = open
        self._head: Head | None = None
        self._volumes: Sequence[VolumeSink] = ()
        self._number = 0

    def write(self, data: bytes) -> None:
        """Take some whole records. Raises OSError, StreamError for damaged records."""
        at, end = 0, len(data)
        if self._head is None:
            at = self._begin(data)
        assert self._head is not None
        while at < end:
            if at + 8 > end:
                raise StreamError("a record is cut off")
            word = _word.unpack_from(data, at)[0]
            offset, tag = word & ~TAGS, word & TAGS
            if tag == PAGE_TAG:
                at = self._pages(data, at, word)
            elif tag == ZERO:
                at = self._zero_pages(data, at, word)
            elif tag == RANGE and at + _range.size <= end:
                length = _range.unpack_from(data, at)[1]
                self._volume(offset, length).zero(offset, length)
                at += _range.size
            elif tag == VOLUME and offset >> 12 < len(self._volumes):
                self._number = offset >> 12
                at += 8
            else:
                raise StreamError(f"record {word:#x} is unknown")

    def _pages(self, data: bytes, at: int, word: int) -> int:
        """Write the pages that follow one another from ``at`` on; return where the next record begins."""
        pages: list[bytes] = []
        expected = word
        while at + RECORD <= len(data) and len(pages) < WRITE_BYTES_MAX // PAGE:
            if _word.unpack_from(data, at)[0] != expected:
                break
            pages.append(data[at + 8 : at + RECORD])
            at, expected = at + RECORD, expected + PAGE
        offset = word & ~TAGS
        self._volume(offset, len(pages) * PAGE).write(offset, b"".join(pages))
        return at

    def _zero_pages(self, data: bytes, at: int, word: int) -> int:
        """Zero the pages that follow one another from ``at`` on; return where the next record begins."""
        expected, begin, offset = word, at, word & ~TAGS
        while at + _zero.size <= len(data) and _zero.unpack_from(data, at) == (expected, 0):
            at, expected = at + _zero.size, expected + PAGE
        length = (at - begin) // _zero.size * PAGE
        self._volume(offset, length).zero(offset, length)
        return at

    def _begin(self, data: bytes) -> int:
        if len(data) < _head.size:
            raise StreamError("a disk's stream without a head")
        word: int
        length: int
        word, length = _head.unpack_from(data)
        if word != HEAD or length > HEAD_BYTES_MAX or _head.size + length > len(data):
            raise StreamError("a disk's stream without a head")
        try:
            head = msgspec.msgpack.decode(data[_head.size : _head.size + length], type=Head)
        except MALFORMED as error:
            raise StreamError(f"the head of a disk's stream can't be read: {error}") from error
        if head.version != VERSION or not 0 < len(head.volumes) <= VOLUMES_MAX:
            raise StreamError(f"version {head.version} with {len(head.volumes)} volumes is unknown")
        self._head = head
        self._volumes = self._open(head)
        return _head.size + length

    def _volume(self, offset: int, length: int) -> VolumeSink:
        """Return the volume of a write. Raises StreamError for a write outside of it."""
        assert self._head is not None
        size = self._head.volumes[self._number].size_bytes
        if length < 1 or length % PAGE or offset + length > -(-size // PAGE) * PAGE:
            raise StreamError(f"bytes {offset} to {offset + length} are not whole pages of a volume of {size}")
        return self._volumes[self._number]

    def finish(self) -> None:
        """Return when all is durable. Raises OSError; StreamError when there was no stream."""
        if self._head is None:
            raise StreamError("the stream ended before its head")
        for volume in self._volumes:
            volume.flush()

    def abort(self) -> None:
        """Nothing waits here for long: the volumes have time limits of their own."""
