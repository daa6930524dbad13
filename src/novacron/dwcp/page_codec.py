"""What both ends of the page codec share: a stream of page records becomes references, differences and few literals,
and itself again.

The wire format is in docs/dwcp.md, "Pieces". What a page record looks like in the stream is not the codec's matter: a
*splitter* cuts the stream into runs (see ``Run``), and the decoder writes out records of 8 bytes of header, which grows
by 4096 from one to the next, and a page.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import msgspec
from blake3 import blake3

from novacron.dwcp.page_ring import PAGE

DIGEST_BYTES = 16
CHECK_BYTES = 8
KEY_BYTES = 32
RECORD = 8 + PAGE
PIECE_BYTES_MAX = 4 * 1024 * 1024
"""Longest piece of the stream, in bytes before encoding and after decoding."""
OPS_MAX = 65_536
OP = struct.Struct("!BIQQ")
HEADER = struct.Struct("!BBHIIIIIQ")
FRESH = 1


class Op(IntEnum):
    """How a run of the stream is encoded. ``BARE`` is added when the stream's header was sent before, as OPAQUE."""

    OPAQUE = 0
    ZERO = 1
    LITERAL = 2
    STORED = 3
    DELTA = 4
    SLOT = 5
    BASE = 6


BARE = 0x80


Run = tuple[int, int, int, int, int, bool]
"""Records in one piece of the stream that belong together: ``(op, at, count, header, space, bare)``.

OPAQUE: bytes ``at`` to ``at + count``, sent unchanged. ZERO: ``count`` records of 9 bytes, header and fill byte 0.
LITERAL: ``count`` records of header and page from ``at`` on, or if ``bare`` one page whose header was sent as OPAQUE.
``header`` is the first record's; ``space`` tells apart the address spaces in which headers count.
"""


class Base(Protocol):
    """Pages that the receiving end has before the session begins."""

    kind: str
    """What it is to people: ``image``, ``sibling`` or ``checkpoint``."""
    name: str
    """The same on both ends only if its digests are."""
    sealed: bool
    """Only this node can write it: that a page is not what it was is then left to be found by the piece's checksum."""
    digests: Sequence[bytes]

    def read(self, index: int, count: int) -> bytes:
        """Return ``count`` pages as they are now; they may be damaged or too few."""
        ...


class PageHash:
    """BLAKE3 under a project's key, cut to 16 bytes: without the key nobody can make two pages of one
    digest nor tell which page has a given one."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a page key has {KEY_BYTES} bytes, got {len(key)}")
        self.key = key

    def digest(self, page: bytes | memoryview) -> bytes:
        return blake3(page, key=self.key).digest(length=DIGEST_BYTES)


def check_of(data: bytes) -> int:
    """Return the 64 bits by which a piece is checked as a whole."""
    return int.from_bytes(blake3(data).digest(length=CHECK_BYTES), "big")


class PageSavings(msgspec.Struct):
    """How a session's pages were told, in pages; and bytes before and after compression."""

    zero: int = 0
    session: int = 0
    image: int = 0
    sibling: int = 0
    checkpoint: int = 0
    difference: int = 0
    literal: int = 0
    incompressible: int = 0
    before_compression: int = 0
    after_compression: int = 0


class Piece(msgspec.Struct):
    """One piece of the stream, encoded but not compressed."""

    body: bytes
    stored: bytes
    ops: int
    opaque: int
    literals: int
    deltas: int
    raw_bytes: int
    check: int
    referenced: list[bytes | int]
    """The pages that BASE ops name, in order: the peer asks for those that it finds damaged. Of a base that this end
    has itself, number << 40 | index."""

    def finish(self, method: int, fresh: bool, data: bytes) -> bytes:
        """Return the piece as it is sent, its body compressed to ``data``."""
        header = HEADER.pack(
            method, FRESH if fresh else 0, 0, self.ops, self.opaque, self.literals, self.deltas, self.raw_bytes,
            self.check,
        )  # fmt: skip
        return b"".join((header, len(data).to_bytes(4, "big"), data, self.stored))


_ZEROS = 256
_ZERO_BYTES = 9
_ADDRESSES = sum(1 << 8 + 72 * (_ZEROS - 1 - number) for number in range(_ZEROS))
"""As many records of zero pages as one large number: that of the header in each of them, and what is added to it."""
_OFFSETS = sum(number * PAGE << 8 + 72 * (_ZEROS - 1 - number) for number in range(_ZEROS))


def zero_records(header: int, count: int) -> bytes:
    """Return records of zero pages; no header may reach 2^64."""
    parts = []
    while count > 0:
        if header + _ZEROS * PAGE >= 1 << 64:  # what is not wanted of the block would change what is
            parts += [(header + number * PAGE).to_bytes(8, "big") + b"\0" for number in range(count)]
            break
        block = (_OFFSETS + header * _ADDRESSES).to_bytes(_ZEROS * _ZERO_BYTES, "big")
        parts.append(block if count >= _ZEROS else block[: count * _ZERO_BYTES])
        header += _ZEROS * PAGE
        count -= _ZEROS
    return b"".join(parts)


def xor(a: bytes | memoryview, b: bytes | memoryview) -> bytes:
    """Return the difference of two pages."""
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(PAGE, "little")
