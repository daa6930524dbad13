"""The receiving end of the page codec. docs/dwcp.md, "Pieces"."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from novacron.dwcp.compression import Decompressor
from novacron.dwcp.frames import ProtocolError
from novacron.dwcp.page_codec import (
    BARE,
    FRESH,
    HEADER,
    OP,
    OPS_MAX,
    PIECE_BYTES_MAX,
    RECORD,
    Base,
    Op,
    PageHash,
    check_of,
    xor,
    zero_records,
)
from novacron.dwcp.page_ring import PAGE, PageRing

MISMATCH = "a piece does not decode to what was encoded: its checksum does not match"
UNIT_BYTES = (1, 9, RECORD, RECORD, RECORD, RECORD, RECORD)
BARE_UNIT_BYTES = (1, 9, PAGE, PAGE, PAGE, PAGE, PAGE)
"""Bytes of the stream that one unit of an op's count becomes, by op: with headers, and without."""


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


class PieceHeader(NamedTuple):
    """What a piece says of itself, in the order of the wire format, and checked against the limits."""

    method: int
    flags: int
    ops: int
    opaque: int
    literals: int
    deltas: int
    raw_bytes: int
    check: int
    compressed: int

    @classmethod
    def parse(cls, data: bytes) -> PieceHeader:
        """Raises ProtocolError."""
        if len(data) < HEADER.size + 4:
            raise ProtocolError("a piece shorter than its header")
        method, flags, _, ops, opaque, literals, deltas, raw_bytes, check = HEADER.unpack_from(data)
        compressed = int.from_bytes(data[HEADER.size : HEADER.size + 4], "big")
        header = cls(method, flags, ops, opaque, literals, deltas, raw_bytes, check, compressed)
        if raw_bytes > PIECE_BYTES_MAX or ops > OPS_MAX or max(literals, deltas) * PAGE > PIECE_BYTES_MAX:
            raise ProtocolError(f"a piece of {raw_bytes} bytes in {ops} ops is over the limits")
        if header.body_bytes > 2 * PIECE_BYTES_MAX:
            raise ProtocolError(f"a piece with a body of {header.body_bytes} bytes is over the limits")
        if compressed > len(data) - HEADER.size - 4:
            raise ProtocolError("a piece ends before its body does")
        return header

    @property
    def body_bytes(self) -> int:
        """Length of the body before compression."""
        return self.ops * OP.size + self.opaque + (self.literals + self.deltas) * PAGE


class Decoder:
    """Decodes what an Encoder made, in order."""

    def __init__(self, hash: PageHash, ring: PageRing | None, bases: Sequence[Base]) -> None:
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
        header = PieceHeader.parse(data)
        self.check = header.check
        view = memoryview(data)[HEADER.size + 4 :]
        fresh = bool(header.flags & FRESH)
        compressed = view[: header.compressed]
        body = self._decompressor.decompress(header.method, fresh, compressed, header.body_bytes)
        building = _Building(header, body, view[header.compressed :], self._ring, self._bases)
        building.run()
        if self._ring is not None and building.fresh:
            self._ring.append(building.fresh)
        return self._finish(header, building)

    def _finish(self, header: PieceHeader, building: _Building) -> bytes | Missing:
        """Return the piece if it is what was encoded; else find out which pages are damaged."""
        missing = Missing(building.parts, [], [], header.raw_bytes, header.check)
        for use in building.uses:
            if not use.base.sealed:
                self._check(use, missing)
        if not missing.ordinals:
            raw = b"".join(building.parts)
            if check_of(raw) == header.check:
                return raw
        for use in building.uses:
            if use.base.sealed:
                self._check(use, missing)
        if not missing.ordinals:
            raise ProtocolError(MISMATCH)
        return missing

    def _check(self, use: _Use, missing: Missing) -> None:
        """Find the pages that are not what their digests say."""
        for number, page in enumerate(use.pages):
            if len(page) != PAGE or self._hash.digest(page) != use.base.digests[use.first + number]:
                self.damaged += 1
                missing.places.append(use.place + use.stride * number + use.stride - 1)
                missing.ordinals.append(use.ordinal + number)

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


class _Building:
    """One piece while it is decoded, from its ops."""

    def __init__(
        self, header: PieceHeader, body: bytes, stored: memoryview, ring: PageRing | None, bases: Sequence[Base]
    ) -> None:
        ops_end = header.ops * OP.size
        opaque_end = ops_end + header.opaque
        literals_end = opaque_end + header.literals * PAGE
        self._header, self._ring, self._bases = header, ring, bases
        self._ops = memoryview(body)[:ops_end]
        self._opaque = _Column(body, ops_end, opaque_end)
        self._literals = _Column(body, opaque_end, literals_end)
        self._deltas = _Column(body, literals_end, len(body))
        self._stored = _Column(stored, 0, len(stored))
        self._first_slot = ring.next if ring is not None else 0
        self._ordinal = 0
        self.fresh: list[bytes | memoryview] = []
        """Pages that get the next slots."""
        self.parts: list[bytes | memoryview] = []
        """What the piece becomes, in order."""
        self.uses: list[_Use] = []
        """What it takes from bases."""

    def run(self) -> None:
        """Carry out all ops. Raises ProtocolError when they do not make what the piece says."""
        parts, total, limit = self.parts, 0, self._header.raw_bytes
        for code, count, header, argument in OP.iter_unpack(self._ops):
            op, bare = code & ~BARE, code >= BARE
            if op > 6 or count == 0 or (bare and count != 1):
                raise ProtocolError(f"op {code} with count {count} is not known")
            total += count * (BARE_UNIT_BYTES if bare else UNIT_BYTES)[op]
            if total > limit or header + count * PAGE >= 1 << 64:
                raise ProtocolError("a piece's ops make more than it says")
            if op == Op.OPAQUE:
                parts.append(self._opaque.take(count))
            elif op == Op.ZERO:
                parts.append(zero_records(header, count))
            elif bare:
                parts += self._pages(op, count, argument, 1)
            else:
                self._put_records(header, self._pages(op, count, argument, 2))
        if total != limit or self._left():
            raise ProtocolError("a piece's ops do not make what it says")

    def _put_records(self, header: int, pages: Sequence[bytes | memoryview]) -> None:
        count = len(pages)
        words = struct.pack(f"!{count}Q", *range(header, header + count * PAGE, PAGE))
        addresses = [words[at : at + 8] for at in range(0, count * 8, 8)]
        self.parts += itertools.chain.from_iterable(zip(addresses, pages, strict=True))

    def _left(self) -> int:
        """Return the bytes that no op took."""
        return self._opaque.left + self._literals.left + self._deltas.left + self._stored.left

    def _pages(self, op: int, count: int, argument: int, stride: int) -> Sequence[bytes | memoryview]:
        """Return the pages of an op; ``stride`` says how many parts each becomes."""
        if op == Op.BASE:
            base, index = self._base(argument, count)
            pages = _read(base, index, count)
            self.uses.append(_Use(base, index, len(self.parts), stride, self._ordinal, pages))
            self._ordinal += count
            return pages
        if op == Op.SLOT:
            return self._from_slots(argument, count)
        if op == Op.DELTA:
            for slot in range(argument, argument + count):  # each may have been made by the one before
                self.fresh.append(xor(self._deltas.take(PAGE), self._from_slots(slot, 1)[0]))
            return self.fresh[-count:]
        column = (self._literals if op == Op.LITERAL else self._stored).take(count * PAGE)
        literals = _pages_of(column, count)
        self.fresh += literals
        return literals

    def _base(self, argument: int, count: int) -> tuple[Base, int]:
        number, index = argument >> 40, argument & (1 << 40) - 1
        if number >= len(self._bases) or index + count > len(self._bases[number].digests):
            raise ProtocolError(f"base {number} has no pages {index} to {index + count}")
        return self._bases[number], index

    def _from_slots(self, slot: int, count: int) -> list[bytes | memoryview]:
        """Return pages of slots in a row: older pieces' from the ring, and then this piece's."""
        old = min(count, max(0, self._first_slot - slot))
        pages: list[bytes | memoryview] = []
        try:
            if old:
                if self._ring is None:
                    raise KeyError(slot)
                pages = _pages_of(memoryview(self._ring.read(slot, old)), old)
        except KeyError:
            raise ProtocolError(f"slot {slot} is not held") from None
        new = slot + old - self._first_slot
        pages += self.fresh[new : new + count - old]
        if len(pages) != count:
            raise ProtocolError(f"slot {slot + len(pages)} is not held")
        return pages


class _Column:
    """Bytes of a piece, taken from the front."""

    def __init__(self, data: bytes | memoryview, start: int, end: int) -> None:
        self._data, self._at, self._end = memoryview(data), start, end

    def take(self, count: int) -> memoryview:
        if count > self.left:
            raise ProtocolError("a piece's ops need more than it holds")
        self._at += count
        return self._data[self._at - count : self._at]

    @property
    def left(self) -> int:
        return self._end - self._at


def _read(base: Base, index: int, count: int) -> list[bytes | memoryview]:
    """Return pages of a base; those that can't be read are too short."""
    try:
        data = memoryview(base.read(index, count))
    except OSError:
        data = memoryview(b"")
    return _pages_of(data, count)


def _pages_of(data: memoryview, count: int) -> list[bytes | memoryview]:
    return [data[at : at + PAGE] for at in range(0, count * PAGE, PAGE)]
