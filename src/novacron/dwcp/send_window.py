"""What a session has still to send, and what its receiver has not taken yet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from novacron.dwcp.frames import Frame, FrameType, ProtocolError
from novacron.dwcp.page_codec import Piece
from novacron.dwcp.page_ring import PAGE
from novacron.dwcp.send_pipeline import Counters

WINDOW_FRAMES = 512
"""Frames that may be on their way: 32 MiB."""
RETAINED_BYTES_MAX = 96 * 1024 * 1024
"""Pages told by reference that are kept until the peer has found them all."""


class SentPiece(NamedTuple):
    """A piece that the receiver has not taken yet."""

    last_frame: int
    number: int
    raw_bytes: int
    retained_bytes: int
    referenced: list[bytes | int]


class SendWindow:
    """Frames from the moment they are queued until the receiver has taken them, and the pieces that they make up.

    A frame waits (``unsent``), is given to a connection, and waits again when that is lost.
    """

    def __init__(self, counters: Counters) -> None:
        self.next = 0
        """The number of the next frame."""
        self.acknowledged = 0
        """The first frame that the receiver has not taken."""
        self.moved_at = time.monotonic()
        """When the receiver took something last."""
        self.raw_bytes = 0
        """Bytes of the stream in pieces that were not taken."""
        self._counters = counters
        self._frames: dict[int, Frame] = {}
        self._unsent: deque[int] = deque()
        self._pieces: deque[SentPiece] = deque()
        self._piece_count = 0
        self._retained_bytes = 0

    def __contains__(self, number: int) -> bool:
        """Say whether the receiver lacks a frame."""
        return number in self._frames

    @property
    def is_empty(self) -> bool:
        """The receiver has every frame."""
        return not self._frames

    @property
    def unsent(self) -> int:
        """Frames that wait for a connection."""
        return len(self._unsent)

    def bytes_waiting(self) -> int:
        """Return the bytes that the receiver lacks, here or on their way."""
        return sum(len(frame.payload) for frame in self._frames.values())

    def has_room(self) -> bool:
        """Say whether one more frame may be on its way."""
        return self.next - self.acknowledged < WINDOW_FRAMES and self._retained_bytes < RETAINED_BYTES_MAX

    def add(self, kind: FrameType, payload: bytes, flags: int = 0) -> None:
        """Queue a frame."""
        self._frames[self.next] = Frame(kind, self.next, payload, flags)
        self._unsent.append(self.next)
        self.next += 1

    def add_piece(self, piece: Piece) -> None:
        """Say that the frames queued last are this piece's: its pages are kept until the receiver has taken them."""
        size = sum(PAGE for page in piece.referenced if isinstance(page, bytes))
        self._pieces.append(SentPiece(self.next - 1, self._piece_count, piece.raw_bytes, size, piece.referenced))
        self._retained_bytes += size
        self.raw_bytes += piece.raw_bytes
        self._piece_count += 1

    def pages_of(self, piece: int) -> list[bytes | int] | None:
        """Return what a piece refers to, or None if it was taken or is none."""
        return next((sent.referenced for sent in self._pieces if sent.number == piece), None)

    def take_unsent(self) -> Frame | None:
        """Return the next frame to send; None if the receiver turned out to have it. There must be one."""
        return self._frames.get(self._unsent.popleft())

    def give_back(self, numbers: Iterable[int]) -> None:
        """Frames were given to a connection that is lost: those that the receiver lacks are sent first."""
        self._unsent.extendleft(reversed([number for number in numbers if number in self._frames]))

    def acknowledge(self, number: int, held: Iterable[int] = ()) -> bool:
        """Take that the receiver has taken every frame before ``number``, and holds some later ones; say whether
        anything changed. Raises ProtocolError."""
        if number > self.next:
            raise ProtocolError(f"frame {number - 1} is acknowledged and was never sent")
        for each in held:
            self._frames.pop(each, None)
        if number <= self.acknowledged:
            return False
        for taken in range(self.acknowledged, number):
            frame = self._frames.pop(taken, None)
            self._counters.delivered_bytes += 0 if frame is None else len(frame.payload)
        self.acknowledged = number
        self.moved_at = time.monotonic()
        while self._pieces and self._pieces[0].last_frame < number:
            piece = self._pieces.popleft()
            self._retained_bytes -= piece.retained_bytes
            self.raw_bytes -= piece.raw_bytes
        return True
