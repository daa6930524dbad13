"""Compression: one zstd stream after another over a session, from light to dense as link or processor is scarce."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import zstandard

from novacron.dwcp.frames import ProtocolError

WINDOW_LOG_MAX = 27
"""log2 of the longest window in bytes: 128 MiB, held by each end while such a stream is in use."""
SLICE_BYTES = 1024
"""Compressed bytes decoded at once: a hostile peer's few bytes can become 32 MiB at most before they are counted."""


class CompressionMethod(NamedTuple):
    """How zstd compresses, and what that costs. Only the sender knows it: any receiver decodes any method."""

    level: int
    window_log: int
    distant: bool
    """Repetitions are found wherever they are in the window, not only nearby."""
    cost: float
    """Processor time for a byte, against the others."""


METHODS = (
    # As it is, and pages are not looked up either: for links that are faster than this processor.
    CompressionMethod(0, 0, False, 0.0),
    CompressionMethod(1, 23, False, 1.0),
    CompressionMethod(1, WINDOW_LOG_MAX, True, 1.3),
    CompressionMethod(3, WINDOW_LOG_MAX, True, 2.5),
    CompressionMethod(5, WINDOW_LOG_MAX, True, 4.5),
)
LIGHT = 0
LIGHTEST_ON_SLOW_LINKS = 2
"""Below that, what is sent grows by more than the processor time saved is worth there."""
FIRST = 3
DISTANT_HASH_RATE_LOG = 7
"""Distant repetitions are remembered by every 128th place: as many are found in pages as with zstd's own choice, for
less time."""
FAST_LIGHTER_AFTER_S, LIGHTER_AFTER_S = 0.05, 0.25
DENSER_AFTER_S, DENSER_AFTER_S_MAX = 1.0, 16.0
"""How soon a denser method is tried, and how late where that was undone."""
LIGHT_BYTES_PER_S = 25_000_000
"""A link that took so much, and waited for more, may be faster than this processor."""
WORKING_MAX, STARVED_MIN = 0.6, 0.25
"""A stage that works for so much of the time, while the link has nothing to send for so much of it, is too slow."""
CONTENDED_SHARE = 0.75
"""A compressor that has a processor for less of its time than that shares it with others."""
DENSE_SHARE_MAX, DENSE_BLOCKED_MIN, DENSE_IDLE_MARGIN = 0.5, 0.3, 0.25
"""A denser method may take so much of a processor, where the link was waited for so long, and so much more than it
needs (of one processor) idles on this host."""


class Compressor:
    """Compresses a session's pieces in order. Releases the GIL while it works."""

    def __init__(self, method: int = FIRST, *, fixed: bool = False) -> None:
        self.method = method
        self.busy_s = self.cpu_s = 0.0
        """Time spent compressing, and how much of it a processor was there."""
        self._fixed = fixed
        self._fresh = True
        self._stream = self._open(method)

    def _open(self, method: int) -> zstandard.ZstdCompressionObj | None:
        if method == LIGHT:
            return None
        chosen = METHODS[method]
        more = {"enable_ldm": True, "ldm_hash_rate_log": DISTANT_HASH_RATE_LOG} if chosen.distant else {}
        parameters = zstandard.ZstdCompressionParameters.from_level(
            chosen.level, window_log=chosen.window_log, write_content_size=False, **more
        )
        return zstandard.ZstdCompressor(compression_params=parameters).compressobj()

    def compress(self, body: bytes) -> tuple[int, bool, bytes]:
        """Return ``(method, whether a new stream begins, data)``: complete, the peer can decode it without waiting."""
        fresh, self._fresh = self._fresh, False
        if self._stream is None:
            return self.method, fresh, body
        started, cpu_started = time.monotonic(), time.thread_time()
        data = self._stream.compress(body) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        self.busy_s += time.monotonic() - started
        self.cpu_s += time.thread_time() - cpu_started
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
    compressing_cpu_s: float = 0.0
    blocked_s: float = 0.0
    """Time in which what was ready waited for the link."""
    starved_s: float = 0.0
    """Time in which the link waited for what is sent."""
    delivered_bytes: int = 0
    """What the peer has confirmed: what was only given to a connection says nothing about the link."""


class Interval(NamedTuple):
    """What happened between two moments, as shares of the time between them."""

    looking_up: float
    compressing: float
    compressing_cpu: float
    """Of one processor."""
    blocked: float
    starved: float
    bytes_per_s: float

    @classmethod
    def between(cls, since: StageClocks, now: StageClocks) -> Interval:
        passed = now.at - since.at
        return cls(*((end - begin) / passed for begin, end in zip(since[1:], now[1:], strict=True)))

    @property
    def working(self) -> float:
        """The busier of the two stages."""
        return max(self.looking_up, self.compressing)

    @property
    def is_contended(self) -> bool:
        """Others use the processors that compression needs."""
        return self.compressing_cpu < CONTENDED_SHARE * self.compressing


class MethodChooser:
    """Adapts compression to the bottleneck: quickly lighter when the link idles, slowly denser when it is full and
    processors idle.

    ``idle_s`` tells how long the host's processors have idled, together, since any moment.
    """

    def __init__(self, now: StageClocks, idle_s: Callable[[], float]) -> None:
        self._idle_s = idle_s
        self._before = self._since = self._lately = now
        self._idle_since = idle_s()
        self._denser_after_s = DENSER_AFTER_S

    def choose(self, now: StageClocks, method: int) -> int:
        """Return the method to go on with."""
        if now.at - self._lately.at < FAST_LIGHTER_AFTER_S:
            return method
        recent = Interval.between(self._lately, now)
        fast = now.at > self._before.at and Interval.between(self._before, now).bytes_per_s > LIGHT_BYTES_PER_S
        if not fast and now.at - self._lately.at < LIGHTER_AFTER_S and method != LIGHT:
            return method
        since, self._lately = self._lately, now
        chosen = self._lighter(recent, fast, method)
        if chosen != method:
            self._restart(now)
            return chosen
        return self._denser(since, now, method)

    def _lighter(self, recent: Interval, fast: bool, method: int) -> int:
        """Return a lighter method if the link waits for this end's processor."""
        if fast and recent.working > WORKING_MAX and recent.blocked < 0.05:
            return method // 2
        if method <= LIGHTEST_ON_SLOW_LINKS or recent.starved < STARVED_MIN or recent.blocked > recent.starved:
            return method
        # Where pages are looked up more slowly than the link sends, compression only matters if it takes their time.
        too_slow = recent.compressing > WORKING_MAX or (recent.working > WORKING_MAX and recent.is_contended)
        return method - 1 if too_slow else method

    def _denser(self, lately: StageClocks, now: StageClocks, method: int) -> int:
        """Return a denser method if the link is what is waited for, and this host has the time."""
        since = lately if method == LIGHT else self._since
        if method != LIGHT and now.at - since.at < self._denser_after_s:
            return method
        passed = Interval.between(since, now)
        idle_s = self._idle_s()
        idle = (idle_s - self._idle_since) / (now.at - since.at)
        self._before, self._since, self._idle_since = self._since, now, idle_s
        if method == LIGHT:
            return 1 if passed.blocked > 0.5 and passed.working < 0.35 else LIGHT
        if method + 1 == len(METHODS) or passed.blocked < DENSE_BLOCKED_MIN:
            return method
        share = passed.compressing_cpu * METHODS[method + 1].cost / METHODS[method].cost
        more = share - passed.compressing_cpu
        return method + 1 if share < DENSE_SHARE_MAX and idle > more + DENSE_IDLE_MARGIN else method

    def _restart(self, now: StageClocks) -> None:
        """A lighter method begins: try a denser one later than last time."""
        self._since, self._idle_since = now, self._idle_s()
        self._denser_after_s = min(DENSER_AFTER_S_MAX, self._denser_after_s * 2)


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
