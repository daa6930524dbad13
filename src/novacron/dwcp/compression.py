"""Compression: one zstd stream after another over a session, from light to dense as link or processor is scarce."""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec
import zstandard

from novacron.dwcp.frames import ProtocolError

WINDOW_LOG_MAX = 27
"""log2 of the longest window in bytes: 128 MiB, held by each end while such a stream is in use."""
LIGHT = 0
FIRST = 3
SLICE_BYTES = 1024
"""Compressed bytes decoded at once: a hostile peer's few bytes can become 32 MiB at most before they are counted."""


class CompressionMethod(msgspec.Struct, frozen=True):
    level: int
    window_log: int | None


METHODS = (
    # As it is, and pages are not looked up either: for links that are faster than this processor.
    CompressionMethod(0, None),
    CompressionMethod(1, 23),
    CompressionMethod(3, 27),
    CompressionMethod(5, 27),
)
LIGHTER_AFTER_S = 0.05
DENSER_AFTER_S = 1.0
LIGHT_BYTES_PER_S = 25_000_000
"""A link that took so much, and waited for more, may be faster than this processor."""


class Compressor:
    """Compresses a session's pieces in order. Releases the GIL while it works."""

    def __init__(self, method: int = FIRST, *, fixed: bool = False) -> None:
        self.method = method
        self.busy_s = 0.0
        """Time spent compressing."""
        self._fixed = fixed
        self._fresh = True
        self._stream = self._open(method)

    def _open(self, method: int) -> zstandard.ZstdCompressionObj | None:
        if method == LIGHT:
            return None
        chosen = METHODS[method]
        more = {"enable_ldm": True} if chosen.window_log == WINDOW_LOG_MAX else {}
        parameters = zstandard.ZstdCompressionParameters.from_level(
            chosen.level, window_log=chosen.window_log, write_content_size=False, **more
        )
        return zstandard.ZstdCompressor(compression_params=parameters).compressobj()

    def compress(self, body: bytes) -> tuple[int, bool, bytes]:
        """Return ``(method, whether a new stream begins, data)``: complete, the peer can decode it without waiting."""
        fresh, self._fresh = self._fresh, False
        if self._stream is None:
            return self.method, fresh, body
        started = time.monotonic()
        data = self._stream.compress(body) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        self.busy_s += time.monotonic() - started
        return self.method, fresh, data

    def switch(self, method: int) -> None:
        """Go on with another method, in a new stream."""
        if method != self.method and not self._fixed:
            self.method, self._fresh = method, True
            self._stream = self._open(method)


class StageClocks(NamedTuple):
    """Where a session's clocks and counters stood at one moment."""

    at: float
    looking_up_s: float = 0.0
    compressing_s: float = 0.0
    blocked_s: float = 0.0
    """Time in which what was ready waited for the link."""
    delivered_bytes: int = 0
    """What the peer has confirmed: what was only given to a connection says nothing about the link."""

    def working(self, since: StageClocks) -> float:
        """Return the share of the time that the busier of the two stages took, looking pages up or compressing."""
        passed = self.at - since.at
        return max(self.looking_up_s - since.looking_up_s, self.compressing_s - since.compressing_s) / passed

    def blocked(self, since: StageClocks) -> float:
        return (self.blocked_s - since.blocked_s) / (self.at - since.at)

    def rate(self, since: StageClocks) -> float:
        """Return delivered bytes a second."""
        return (self.delivered_bytes - since.delivered_bytes) / (self.at - since.at)


class MethodChooser:
    """Adapts compression to the bottleneck: quickly lighter when the link idles, slowly denser otherwise."""

    def __init__(self, now: StageClocks) -> None:
        self._before = self._since = self._lately = now

    def choose(self, now: StageClocks, method: int) -> int:
        """Return the method to go on with."""
        if now.at - self._lately.at < LIGHTER_AFTER_S:
            return method
        lately, self._lately = self._lately, now
        if now.working(lately) > 0.6 and now.blocked(lately) < 0.05:
            fast = now.rate(self._before) > LIGHT_BYTES_PER_S  # over a second or two: confirmations come in bursts
            chosen = method // 2 if fast else min(method, FIRST)
            if chosen != method:
                self._since = now
            return chosen
        since = lately if method == LIGHT else self._since
        if method != LIGHT and now.at - since.at < DENSER_AFTER_S:
            return method
        self._before, self._since = self._since, now
        if now.blocked(since) > 0.5 and now.working(since) < 0.35:
            return min(len(METHODS) - 1, method + 1)
        return method


class Decompressor:
    """Undoes what a Compressor did, in order."""

    def __init__(self) -> None:
        self._stream: zstandard.ZstdDecompressionObj | None = None

    def decompress(self, method: int, fresh: bool, data: bytes | memoryview, length: int) -> bytes:
        """Return ``length`` bytes. Raises ProtocolError for what is no such stream, or has another length."""
        if method == LIGHT:
            raw = bytes(data)
        else:
            if fresh:
                self._stream = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX).decompressobj()
            if self._stream is None:
                raise ProtocolError("a compressed piece before its stream began")
            raw = _inflate(self._stream, data, length)
        if len(raw) != length:
            raise ProtocolError(f"a piece has {len(raw)} bytes, not the {length} that it says")
        return raw


def _inflate(stream: zstandard.ZstdDecompressionObj, data: bytes | memoryview, length: int) -> bytes:
    """Decompress a little at a time, and stop when more comes out than ``length``. Raises ProtocolError."""
    parts, total = [], 0
    try:
        for start in range(0, len(data), SLICE_BYTES):
            part = stream.decompress(data[start : start + SLICE_BYTES])
            total += len(part)
            if total > length:
                raise ProtocolError(f"a piece is longer than the {length} bytes that it says")
            parts.append(part)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"a piece can't be decompressed: {error}") from error
    return b"".join(parts)
