"""The page codec: a stream of page records becomes references, differences and few literals, and itself again.

The wire format is in docs/dwcp.md, "Pieces". What a page record looks like in the stream is not this module's matter:
a *splitter* cuts the stream into runs (see ``Run``), and the decoder writes out records of 8 bytes of header, which
grows by 4096 from one to the next, and a page.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import msgspec
from blake3 import blake3

from novacron.dwcp.compression import Decompressor
from novacron.dwcp.frames import ProtocolError
from novacron.dwcp.page_ring import PAGE, Ring

DIGEST_BYTES = 16
CHECK_BYTES = 8
KEY_BYTES = 32
RECORD = 8 + PAGE
PIECE_BYTES_MAX = 4 * 1024 * 1024
"""Longest piece of the stream, in bytes before encoding and after decoding."""
OPS_MAX = 65_536
OP = struct.Struct("!BIQQ")
HEADER = struct.Struct("!BBHIIIIIQ")
DELTA_ZEROS_MIN = PAGE // 2
"""A page is sent as a difference when at least so many bytes of it did not change."""
SAMPLE_STRIDE = 64
SAMPLE_DISTINCT_MIN = 54
"""A page whose 64 sampled bytes have so many different values is taken for incompressible (random bytes: 56.6)."""
FRESH = 1
MISMATCH = "a piece does not decode to what was encoded: its checksum does not match"
_ZERO_RECORD = struct.Struct("!QB")
_ADDRESS = struct.Struct("!Q")


class Op(IntEnum):
    """How a run of the stream is told. ``BARE`` is added when the stream's header is told before, as OPAQUE."""

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

OPAQUE: bytes ``at`` to ``at + count``, told as they are. ZERO: ``count`` records of 9 bytes, header and fill byte 0.
LITERAL: ``count`` records of header and page from ``at`` on, or if ``bare`` one page whose header was told as OPAQUE.
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
    """BLAKE3 under a project's key, cut to 16 bytes: who does not know the key can neither make two pages of one
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


class Savings(msgspec.Struct):
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


class Encoder:
    """Encodes pieces of one session in order. ``bases`` are the receiver's, in its order."""

    def __init__(self, hash: PageHash, ring: Ring | None) -> None:
        self.savings = Savings()
        self.light = False
        """Tell pages as they are, without a look at them."""
        self._hash = hash
        self._ring = ring
        self._bases: dict[bytes, int] = {}
        self._kinds: list[str] = []
        self._own: list[bool] = []
        self._slots: dict[bytes, int] = {}
        self._versions: dict[int, int] = {}
        self._held: dict[int, tuple[bytes, int]] = {}
        self._forgotten = 0

    def add_base(
        self, number: int, kind: str, first: int, digests: Sequence[bytes], *, own: bool = False
    ) -> None:  # fmt: skip
        """Learn that the receiver's base ``number`` holds pages of these digests from index ``first`` on; ``own`` says
        that this end can read them, too."""
        while len(self._kinds) <= number:
            self._kinds.append("")
            self._own.append(False)
        self._kinds[number], self._own[number] = kind, own
        start = number << 40 | first
        known = self._bases
        for index, digest in enumerate(digests, start):
            known.setdefault(digest, index)

    def encode(self, data: bytes, runs: list[Run]) -> Piece:
        """Encode ``data``, all of which ``runs`` describe."""
        ops: list[bytes] = []
        opaque: list[bytes] = []
        literals: list[bytes] = []
        stored: list[bytes] = []
        deltas: list[bytes] = []
        fresh: list[bytes] = []
        referenced: list[bytes | int] = []
        own = self._own
        savings = self.savings
        page_key = self._hash.key
        known, slots, versions = self._bases.get, self._slots, self._versions
        ring = self._ring
        next_slot = ring.next if ring is not None else 0
        oldest = ring.oldest if ring is not None else 0
        pack = OP.pack
        for kind, at, length, header, space, bare in runs:
            if kind == Op.OPAQUE:
                opaque.append(data[at : at + length])
                ops.append(pack(Op.OPAQUE, length, 0, 0))
                continue
            if kind == Op.ZERO:
                savings.zero += length
                ops.append(pack(Op.ZERO, length, header, 0))
                continue
            if self.light:
                size = PAGE if bare else length * RECORD
                savings.literal += length
                opaque.append(data[at : at + size])
                ops.append(pack(Op.OPAQUE, size, 0, 0))
                continue
            flag = BARE if bare else 0
            at += 0 if bare else 8
            key = space << 52 | header >> 12
            op_now, op_count, op_header, op_argument = -1, 0, header, 0
            for number in range(length):
                page = data[at : at + PAGE]
                at += RECORD
                digest = blake3(page, key=page_key).digest(16)
                argument = known(digest)
                if argument is not None:
                    op = 6
                    referenced.append(argument if own[argument >> 40] else page)
                else:
                    argument = slots.get(digest)
                    if argument is not None and argument >= oldest:
                        op = 5
                        versions[key + number] = argument
                    else:
                        op, argument = 2, 0
                        if ring is not None:
                            before = versions.get(key + number)
                            if before is not None and oldest <= before < ring.next:
                                difference = _xor(page, ring.read(before))
                                if difference.count(0) >= DELTA_ZEROS_MIN:
                                    op, argument = 4, before
                                    deltas.append(difference)
                            slots[digest] = versions[key + number] = next_slot
                            fresh.append(page)
                            self._held[next_slot] = (digest, key + number)
                            next_slot += 1
                        if op == 2:
                            if len(set(page[::SAMPLE_STRIDE])) >= SAMPLE_DISTINCT_MIN:
                                op = 3
                                stored.append(page)
                            else:
                                literals.append(page)
                if op == op_now and (op < 4 or argument == op_argument + op_count):
                    op_count += 1
                else:
                    if op_count:
                        ops.append(pack(op_now | flag, op_count, op_header, op_argument))
                        self._count(op_now, op_count, op_argument)
                    op_now, op_count, op_header, op_argument = op, 1, header + number * PAGE, argument
            ops.append(pack(op_now | flag, op_count, op_header, op_argument))
            self._count(op_now, op_count, op_argument)
        if ring is not None and fresh:
            ring.append(fresh)
            self._forget(ring.oldest)
        body = b"".join((*ops, *opaque, *literals, *deltas))
        opaque_bytes = sum(map(len, opaque))
        return Piece(
            body, b"".join(stored), len(ops), opaque_bytes, len(literals), len(deltas), len(data),
            check_of(data), referenced,
        )  # fmt: skip

    def _count(self, op: int, count: int, argument: int) -> None:
        savings = self.savings
        if op == Op.BASE:
            match self._kinds[argument >> 40]:
                case "image":
                    savings.image += count
                case "checkpoint":
                    savings.checkpoint += count
                case _:  # a kind that a newer peer has: its pages are of another VM, or as good as
                    savings.sibling += count
        elif op == Op.SLOT:
            savings.session += count
        elif op == Op.DELTA:
            savings.difference += count
        elif op == Op.STORED:
            savings.incompressible += count
        else:
            savings.literal += count

    def _forget(self, oldest: int) -> None:
        """Drop what names slots that the ring does not hold any more."""
        for slot in range(self._forgotten, oldest):
            digest, key = self._held.pop(slot)
            if self._slots.get(digest) == slot:
                del self._slots[digest]
            if self._versions.get(key) == slot:
                del self._versions[key]
        self._forgotten = max(self._forgotten, oldest)


class Missing(msgspec.Struct):
    """A piece that lacks pages: the peer is to send those whose ordinals, among the piece's BASE pages, are named."""

    parts: list[bytes | memoryview]
    places: list[int]
    """Where in ``parts`` they belong."""
    ordinals: list[int]
    raw_bytes: int
    check: int


class _Use(NamedTuple):
    """A run of pages that a piece takes from a base."""

    base: Base
    first: int
    place: int
    """Where in the piece's parts it begins; a page is every ``stride``-th of them, the last of each."""
    stride: int
    ordinal: int
    pages: list[bytes | memoryview]


class Decoder:
    """Decodes what an Encoder made, in order."""

    def __init__(self, hash: PageHash, ring: Ring | None, bases: Sequence[Base]) -> None:
        self._hash = hash
        self._ring = ring
        self._bases = bases
        self._decompressor = Decompressor()
        self.damaged = 0
        """Pages of bases that were not what their digests say."""
        self.check = 0
        """What the last piece was checked against."""

    def decode(self, data: bytes) -> bytes | Missing:
        """Return a piece of the stream, or what it lacks. Raises ProtocolError for what no encoder makes, and OSError
        when the disk is full."""
        if len(data) < HEADER.size + 4:
            raise ProtocolError("a piece shorter than its header")
        method, flags, _, ops, opaque, literals, deltas, raw_bytes, check = HEADER.unpack_from(data)
        if raw_bytes > PIECE_BYTES_MAX or ops > OPS_MAX or max(literals, deltas) * PAGE > PIECE_BYTES_MAX:
            raise ProtocolError(f"a piece of {raw_bytes} bytes in {ops} ops is over the limits")
        self.check = check
        length = ops * OP.size + opaque + (literals + deltas) * PAGE
        if length > 2 * PIECE_BYTES_MAX:
            raise ProtocolError(f"a piece with a body of {length} bytes is over the limits")
        compressed = int.from_bytes(data[HEADER.size : HEADER.size + 4], "big")
        view = memoryview(data)[HEADER.size + 4 :]
        if compressed > len(view):
            raise ProtocolError("a piece ends before its body does")
        body = self._decompressor.decompress(method, bool(flags & FRESH), view[:compressed], length)
        return self._rebuild(body, view[compressed:], ops, opaque, literals, deltas, raw_bytes, check)

    def _rebuild(
        self, body: bytes, stored: memoryview, ops: int, opaque: int, literals: int, deltas: int, raw_bytes: int,
        check: int,
    ) -> bytes | Missing:  # fmt: skip
        toldat = ops * OP.size + opaque
        columns = {
            Op.OPAQUE: _Column(body, ops * OP.size, toldat),
            Op.LITERAL: _Column(body, toldat, toldat + literals * PAGE),
            Op.DELTA: _Column(body, toldat + literals * PAGE, len(body)),
            Op.STORED: _Column(stored, 0, len(stored)),
        }
        ring = self._ring
        first = ring.next if ring is not None else 0
        fresh: list[bytes] = []
        parts: list[bytes | memoryview] = []
        missing = Missing([], [], [], raw_bytes, check)
        sealed: list[_Use] = []
        ordinal, total = 0, 0
        for code, count, header, argument in OP.iter_unpack(memoryview(body)[: ops * OP.size]):
            bare = bool(code & BARE)
            if code & ~BARE > Op.BASE or count == 0 or (bare and count != 1):
                raise ProtocolError(f"op {code} with count {count} is not known")
            op = Op(code & ~BARE)
            total += count * (1 if op is Op.OPAQUE else 9 if op is Op.ZERO else PAGE if bare else RECORD)
            if total > raw_bytes or header + count * PAGE >= 1 << 64:
                raise ProtocolError("a piece's ops make more than it says")
            if op is Op.OPAQUE:
                parts.append(columns[op].take(count))
                continue
            if op is Op.ZERO:
                parts.append(_zeros(header, count))
                continue
            if op is Op.BASE:
                base, index = self._base(argument, count)
                found: list[bytes | memoryview] = self._pages_of(base, index, count)
                use = _Use(base, index, len(parts), 1 if bare else 2, ordinal, found)
                if base.sealed:
                    sealed.append(use)
                else:
                    self._check(use, missing)
                ordinal += count
            elif op is Op.SLOT:
                found = [self._from_ring(argument + number, first, fresh) for number in range(count)]
            elif op is Op.DELTA:
                found = []
                for number in range(count):
                    before = self._from_ring(argument + number, first, fresh)
                    changed = _xor(columns[op].take(PAGE), before)
                    found.append(changed)
                    fresh.append(changed)
            else:
                column = columns[op].take(count * PAGE)
                told = [column[at : at + PAGE] for at in range(0, len(column), PAGE)]
                fresh += told
                found = list(told)
            if bare:
                parts += found
                continue
            for page in found:
                parts.append(_ADDRESS.pack(header))
                parts.append(page)
                header += PAGE
        if total != raw_bytes or any(column.left for column in columns.values()):
            raise ProtocolError("a piece's ops do not make what it says")
        if ring is not None and fresh:
            ring.append(fresh)
        if not missing.ordinals:
            raw = b"".join(parts)
            if check_of(raw) == check:
                return raw
        for use in sealed:
            self._check(use, missing)
        if not missing.ordinals:
            raise ProtocolError(MISMATCH)
        missing.parts = parts
        return missing

    def _base(self, argument: int, count: int) -> tuple[Base, int]:
        number, index = argument >> 40, argument & (1 << 40) - 1
        if number >= len(self._bases) or index + count > len(self._bases[number].digests):
            raise ProtocolError(f"base {number} has no pages {index} to {index + count}")
        return self._bases[number], index

    def _pages_of(self, base: Base, index: int, count: int) -> list[bytes | memoryview]:
        try:
            data = memoryview(base.read(index, count))
        except OSError:
            data = memoryview(b"")
        return [data[at : at + PAGE] for at in range(0, count * PAGE, PAGE)]

    def _check(self, use: _Use, missing: Missing) -> None:
        """Find the pages that are not what their digests say."""
        for number, page in enumerate(use.pages):
            if len(page) != PAGE or self._hash.digest(page) != use.base.digests[use.first + number]:
                self.damaged += 1
                missing.places.append(use.place + use.stride * number + use.stride - 1)
                missing.ordinals.append(use.ordinal + number)

    def _from_ring(self, slot: int, first: int, fresh: list[bytes]) -> bytes:
        if first <= slot < first + len(fresh):
            return fresh[slot - first]
        try:
            if self._ring is None:
                raise KeyError(slot)
            return self._ring.read(slot)
        except KeyError:
            raise ProtocolError(f"slot {slot} is not held") from None

    def repair(self, missing: Missing, pages: list[bytes]) -> bytes:
        """Return the piece, its missing pages filled in. Raises ProtocolError when they are not what it lacks."""
        if len(pages) != len(missing.places) or any(len(page) != PAGE for page in pages):
            raise ProtocolError(f"{len(missing.places)} pages were asked for, {len(pages)} came")
        for place, page in zip(missing.places, pages, strict=True):
            missing.parts[place] = page
        raw = b"".join(missing.parts)
        if check_of(raw) != missing.check:
            raise ProtocolError(MISMATCH)
        return raw


class _Column:
    """Bytes of a piece, taken from the front."""

    def __init__(self, data: bytes | memoryview, start: int, end: int) -> None:
        self._data, self._at, self._end = data, start, end

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ProtocolError("a piece's ops need more than it holds")
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    @property
    def left(self) -> int:
        return self._end - self._at


def _xor(a: bytes, b: bytes) -> bytes:
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(PAGE, "little")


def _zeros(header: int, count: int) -> bytes:
    pack = _ZERO_RECORD.pack
    return b"".join([pack(header + number * PAGE, 0) for number in range(count)])
