"""The sending end of the page codec. docs/dwcp.md, "Pieces"."""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from novacron.dwcp.page_codec import (
    BARE,
    OP,
    RECORD,
    Op,
    PageHash,
    PageSavings,
    Piece,
    Run,
    check_of,
    xor,
)
from novacron.dwcp.page_ring import PAGE, PageRing

DELTA_ZEROS_MIN = PAGE // 2
"""A page is sent as a difference when at least so many bytes of it did not change."""
SAMPLE_STRIDE = 64
SAMPLE_DISTINCT_MIN = 54
"""A page whose 64 sampled bytes have so many different values is taken for incompressible (random bytes: 56.6)."""


class _Draft:
    """One piece while it is encoded: its columns, in the order of the stream."""

    __slots__ = ("deltas", "fresh", "literals", "next_slot", "oldest", "opaque", "ops", "referenced", "stored")

    def __init__(self, ring: PageRing | None) -> None:
        self.oldest = 0 if ring is None else ring.oldest
        """The first slot that may be named."""
        self.next_slot = 0 if ring is None else ring.next
        self.ops: list[bytes] = []
        self.opaque: list[bytes] = []
        self.literals: list[bytes] = []
        self.stored: list[bytes] = []
        self.deltas: list[bytes] = []
        self.fresh: list[bytes] = []
        """Pages that get the next slots."""
        self.referenced: list[bytes | int] = []

    def tell_opaque(self, data: bytes) -> None:
        self.opaque.append(data)
        self.ops.append(OP.pack(Op.OPAQUE, len(data), 0, 0))

    def piece(self, data: bytes) -> Piece:
        """Return the piece that stands for ``data``."""
        body = b"".join((*self.ops, *self.opaque, *self.literals, *self.deltas))
        return Piece(
            body, b"".join(self.stored), len(self.ops), sum(map(len, self.opaque)), len(self.literals),
            len(self.deltas), len(data), check_of(data), self.referenced,
        )  # fmt: skip


class Encoder:
    """Encodes pieces of one session in order. ``bases`` are the receiver's, in its order."""

    def __init__(self, hash: PageHash, ring: PageRing | None) -> None:
        self.savings = PageSavings()
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
        indexes = self._bases
        for index, digest in enumerate(digests, start):
            indexes.setdefault(digest, index)

    def base_of(self, digest: bytes) -> int | None:
        """Return the number of the base in which a page of this digest is referred to."""
        index = self._bases.get(digest)
        return None if index is None else index >> 40

    def encode(self, data: bytes, runs: list[Run]) -> Piece:
        """Encode ``data``, all of which ``runs`` describe."""
        ring = self._ring
        draft = _Draft(ring)
        for run in runs:
            kind, at, length, header, _, bare = run
            if kind == Op.OPAQUE:
                draft.tell_opaque(data[at : at + length])
            elif kind == Op.ZERO:
                self.savings.zero += length
                draft.ops.append(OP.pack(Op.ZERO, length, header, 0))
            elif self.light:
                self.savings.literal += length
                draft.tell_opaque(data[at : at + (PAGE if bare else length * RECORD)])
            else:
                self._encode_pages(data, run, draft)
        if ring is not None and draft.fresh:
            ring.append(draft.fresh)
            self._forget(ring.oldest)
        return draft.piece(data)

    def _encode_pages(self, data: bytes, run: Run, draft: _Draft) -> None:
        """Encode a run of pages: neighbours encoded alike share one op. Names are bound here, and ops are plain
        numbers, because the loop runs for every page of a guest."""
        _, at, length, header, space, bare = run
        flag = BARE if bare else 0
        at += 0 if bare else 8
        first = space << 52 | header >> 12
        page_key, in_base, in_slot, encode_new = self._hash.key, self._bases.get, self._slots.get, self._encode_new_page
        own, oldest, pack, ops = self._own, draft.oldest, OP.pack, draft.ops
        run_op, run_length, run_header, run_argument = -1, 0, header, 0
        for place, start in zip(range(first, first + length), range(at, at + length * RECORD, RECORD), strict=True):
            page = data[start : start + PAGE]
            digest = blake3(page, key=page_key).digest(16)
            if (argument := in_base(digest, -1)) >= 0:
                op = 6
                draft.referenced.append(argument if own[argument >> 40] else page)
            elif (argument := in_slot(digest, -1)) >= oldest:
                op = 5
                self._versions[place] = argument
            else:
                op, argument = encode_new(page, digest, place, draft)
            if op == run_op and (op < 4 or argument == run_argument + run_length):
                run_length += 1
                continue
            if run_length:
                ops.append(pack(run_op | flag, run_length, run_header, run_argument))
                self._count(run_op, run_length, run_argument)
            run_op, run_length, run_header, run_argument = op, 1, header + (place - first) * PAGE, argument
        ops.append(pack(run_op | flag, run_length, run_header, run_argument))
        self._count(run_op, run_length, run_argument)

    def _encode_new_page(self, page: bytes, digest: bytes, place: int, draft: _Draft) -> tuple[int, int]:
        """Encode a page that the receiver does not have, at this place of the guest's; return its op and argument."""
        ring = self._ring
        if ring is not None:
            versions, slot = self._versions, draft.next_slot
            before = versions.get(place, -1)
            self._slots[digest] = versions[place] = slot
            self._held[slot] = (digest, place)
            draft.next_slot = slot + 1
            draft.fresh.append(page)
            if draft.oldest <= before < ring.next:
                difference = xor(page, ring.read(before))
                if difference.count(0) >= DELTA_ZEROS_MIN:
                    draft.deltas.append(difference)
                    return 4, before
        if len(set(page[::SAMPLE_STRIDE])) >= SAMPLE_DISTINCT_MIN:
            draft.stored.append(page)
            return 3, 0
        draft.literals.append(page)
        return 2, 0

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
