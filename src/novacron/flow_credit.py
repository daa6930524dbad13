"""Back-pressure of a byte stream that shares a connection with others: how much may be on its way at once."""

from __future__ import annotations

import asyncio

WINDOW_BYTES = 1024 * 1024
"""On its way to one end of a stream, not yet taken there."""
PIECE_BYTES_MIN = 4096
"""What a smaller piece counts as: each takes a place in queues."""
TOLD_BYTES = WINDOW_BYTES // 4
"""After how many bytes the sender is told that they were taken."""


def weight(data: bytes) -> int:
    """Return what a piece counts as."""
    return max(len(data), PIECE_BYTES_MIN)


class SendCredit:
    """How much the sender may still send."""

    def __init__(self) -> None:
        self._left_bytes = WINDOW_BYTES
        self._room = asyncio.Event()
        self._room.set()

    async def wait(self) -> None:
        """Wait until there is room for a piece."""
        await self._room.wait()

    def spend(self, data: bytes) -> None:
        """Count a piece as sent."""
        self._left_bytes -= weight(data)
        if self._left_bytes <= 0:
            self._room.clear()

    def give_back(self, size_bytes: int) -> None:
        """So much was taken at the other end, which may lie."""
        self._left_bytes = min(WINDOW_BYTES, self._left_bytes + max(0, size_bytes))
        if self._left_bytes > 0:
            self._room.set()

    def end(self) -> None:
        """Nothing more is sent: whoever waits goes on."""
        self._room.set()


class Taken:
    """What the receiver has taken, and not told the sender yet."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, data: bytes) -> int:
        """Count a piece as taken; return how much to tell the sender now, 0 for nothing."""
        self._bytes += weight(data)
        if self._bytes < TOLD_BYTES:
            return 0
        due_bytes, self._bytes = self._bytes, 0
        return due_bytes
