"""The pages that a session's receiver has, as far as its sender knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from novacron.dwcp.frames import BaseInfo, Frame, FrameType, ProtocolError
from novacron.dwcp.page_codec import DIGEST_BYTES, Base, PageHash
from novacron.dwcp.page_encoder import Encoder
from novacron.dwcp.page_ring import PAGE

IN_ORDER = "checkpoint"
"""Kind of base whose digests arrive in about the same order as its pages appear in the stream."""
RUNNING = "sibling:"
"""How the names of bases begin that are the memory of guests that run at the receiver."""
DIGESTS_MAX = 2_097_152
"""Digests that are kept of one peer: 8 GiB of pages, about 400 MB here. Pages beyond them are sent."""
AHEAD_DIGESTS = 4096
"""How far the digests must be ahead of the stream before a page counts as new."""


class PageDamaged(Exception):
    """A page is damaged on both nodes: says which."""


class ReceiverIndex:
    """The receiver's bases. ``own`` are bases that this end has too; ``digests`` are those of others, by name."""

    def __init__(self, hash: PageHash, own: Sequence[Base], digests: Mapping[str, Sequence[bytes]]) -> None:
        self._hash = hash
        self._own = {base.name: base for base in own}
        self._digests = digests
        self._shared: dict[int, Base] = {}
        self._kinds: list[str] = []
        self._names: list[str] = []
        self._received = 0
        """Digests that have arrived."""
        self._counts: list[int] = []
        """Pages that each base has."""
        self._outstanding: list[int] = []
        """Digests that have yet to arrive, by base."""

    @property
    def names(self) -> tuple[str, ...]:
        """The bases whose digests the receiver need not send."""
        return (*self._own, *self._digests)

    def meet(self, bases: Sequence[BaseInfo], encoder: Encoder) -> None:
        """Learn which bases the receiver has."""
        for number, info in enumerate(bases):
            own = self._own.get(info.name)
            if info.announced == 0 and own is not None and len(own.digests) == info.count:
                encoder.add_base(number, info.kind, 0, own.digests, own=True)
                self._shared[number] = own
            elif info.announced == 0:
                encoder.add_base(number, info.kind, 0, self._digests.get(info.name, ())[: info.count])
        self._encoder = encoder
        self._kinds = [info.kind for info in bases]
        self._names = [info.name for info in bases]
        self._counts = [info.count for info in bases]
        self._outstanding = [info.announced for info in bases]

    def take(self, frame: Frame) -> None:
        """Learn digests. Raises ProtocolError."""
        number, first = frame.sequence >> 40, frame.sequence & (1 << 40) - 1
        if frame.type is not FrameType.BASE or number >= len(self._kinds) or len(frame.payload) % DIGEST_BYTES:
            raise ProtocolError(f"expected BASE, got {frame.type.name} {frame.sequence}")
        payload = frame.payload
        count = len(payload) // DIGEST_BYTES
        if count > self._outstanding[number] or first + count > self._counts[number]:
            raise ProtocolError(f"base {number}: more digests than the {self._counts[number]} announced")
        room = max(0, DIGESTS_MAX - self._received)
        digests = [payload[at : at + DIGEST_BYTES] for at in range(0, min(count, room) * DIGEST_BYTES, DIGEST_BYTES)]
        self._encoder.add_base(number, self._kinds[number], first, digests)
        self._received += count
        self._outstanding[number] -= count

    def can_begin(self) -> bool:
        """Return whether the stream may begin: digests still to come will be in its order."""
        return all(untold <= 0 or kind == IN_ORDER for untold, kind in zip(self._outstanding, self._kinds, strict=True))

    def covers(self, pages: int) -> bool:
        """Return whether enough digests have arrived to look up the stream's first ``pages``."""
        return sum(self._outstanding) <= 0 or self._received >= pages + AHEAD_DIGESTS

    def page(self, referred: bytes | int) -> bytes:
        """Return a page that the encoder referred to. Raises Damaged."""
        if isinstance(referred, bytes):
            return referred
        base, index = self._shared[referred >> 40], referred & (1 << 40) - 1
        page = base.read(index, 1)
        if len(page) != PAGE or self._hash.digest(page) != base.digests[index]:
            raise PageDamaged(f"page {index} of {base.name} is damaged on both nodes")
        return page

    def may_change(self, referred: bytes | int) -> bool:
        """Say whether a page that the encoder referred to was found in the memory of a guest that runs at the
        receiver: that it is another one by now is no damage."""
        if isinstance(referred, int):
            return False
        number = self._encoder.base_of(self._hash.digest(referred))
        return number is not None and self._names[number].startswith(RUNNING)
