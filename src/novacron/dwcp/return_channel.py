"""The return channel: a few bytes from the receiver to the sender, in order, each once. docs/dwcp.md, "The way back".

While a guest runs at the target before its memory is there, its QEMU asks the source for pages over it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from novacron.dwcp.frames import Frame, FrameType, ProtocolError

BYTES_MAX = 16 * 1024
"""In one frame."""
FRAMES_MAX = 256
AGAIN_S = 1.0


class ReturnSender:
    """The receiver's end. ``say`` sends a frame on a live connection and returns whether there is one."""

    def __init__(self, say: Callable[[Frame], bool]) -> None:
        self._say = say
        self._untaken: dict[int, Frame] = {}
        self._next = 0
        self._room = asyncio.Event()
        self._said_at = 0.0

    async def send(self, data: bytes) -> None:
        """Send bytes; wait while the peer has not acknowledged too many frames."""
        for start in range(0, len(data), BYTES_MAX):
            while len(self._untaken) >= FRAMES_MAX:
                self._room.clear()
                await self._room.wait()
            frame = Frame(FrameType.BACK, self._next, data[start : start + BYTES_MAX])
            self._untaken[self._next] = frame
            self._next += 1
            self._said_at = time.monotonic()
            self._say(frame)

    async def drain(self) -> None:
        """Return when the peer has acknowledged all."""
        while self._untaken:
            self._room.clear()
            await self._room.wait()

    def taken(self, number: int) -> None:
        """The peer acknowledges every frame before ``number``. Raises ProtocolError."""
        if number > self._next:
            raise ProtocolError(f"way back: frame {number - 1} is acknowledged and was never sent")
        for each in [each for each in self._untaken if each < number]:
            del self._untaken[each]
        self._room.set()

    def repeat(self, *, at_once: bool = False) -> None:
        """Send again what was not acknowledged for a while: its connection may be lost."""
        now = time.monotonic()
        if self._untaken and (at_once or now - self._said_at > AGAIN_S):
            self._said_at = now
            for frame in list(self._untaken.values()):
                self._say(frame)


class ReturnReceiver:
    """The sender's end."""

    def __init__(self) -> None:
        self.next = 0
        """The first frame that has not arrived."""
        self._held: dict[int, bytes] = {}

    def take(self, frame: Frame) -> bytes:
        """Return the bytes that this frame completes, in order; nothing if it is early or a repetition. Raises
        ProtocolError."""
        if frame.sequence >= self.next + FRAMES_MAX or len(frame.payload) > BYTES_MAX:
            raise ProtocolError(f"way back: frame {frame.sequence} is too far ahead of {self.next}, or too long")
        if frame.sequence >= self.next:
            self._held[frame.sequence] = frame.payload
        parts = []
        while (part := self._held.pop(self.next, None)) is not None:
            parts.append(part)
            self.next += 1
        return b"".join(parts)
