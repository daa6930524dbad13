"""The connections over which one session sends: what they can deliver, and how fast they may."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import NamedTuple

from novacron.dwcp import sockets
from novacron.dwcp.connection import FrameConnection
from novacron.dwcp.send_pipeline import Counters
from novacron.dwcp.send_window import SendWindow

RATE_GUESS_BYTES_PER_S = 12_500_000.0
SHALLOW_SHARE = 0.9
"""Share of what a path can deliver that is used when nothing may wait in it."""
KNOWN_AFTER_BYTES = 4 * 1024 * 1024
"""What a path can deliver is not known before so much was: pacing to less would keep it from ever being seen."""
RAW_AHEAD_BYTES = 24 * 1024 * 1024
"""How much of the stream the receiver may have to decode yet when its end may come soon: that is downtime, too. It may
be more where the receiver is fast and the round trip long."""
RAW_AHEAD_S = 0.06


class SendPath:
    """One connection of the session, and the frames that it was given and that are not acknowledged."""

    def __init__(self, connection: FrameConnection) -> None:
        self.connection = connection
        self.unacknowledged: deque[int] = deque()
        self.task: asyncio.Task[None] | None = None
        self.done = False
        """The receiver said on it that it has everything."""
        self.pinged_at = 0.0
        self.retransmits = 0
        self.best_rate = 0
        """Bytes a second that the path delivered at its best."""
        self.idle = False
        """Frames are given to the others."""

    def forget_acknowledged(self, window: SendWindow) -> None:
        """Keep only numbers of frames that the peer has not taken."""
        while self.unacknowledged and self.unacknowledged[0] not in window:
            self.unacknowledged.popleft()


class _Progress(NamedTuple):
    """How much of the stream the receiver had taken at one moment."""

    at: float
    raw_bytes: int


class SendPaths:
    """The session's connections that live."""

    def __init__(self, counters: Counters, count: int, rate_max: int | None) -> None:
        self.live: list[SendPath] = []
        self.count = count
        """How many connections there should be."""
        self.rate_max = rate_max
        """Bytes a second that the session may use; None for all there is."""
        self.shallow = False
        """Nothing may wait in the path."""
        self.raw_rate = 0.0
        """Bytes of the stream a second that the receiver took at best."""
        self._counters = counters
        self._measured_from = 0
        self._retransmits_lost = 0
        self._progress = _Progress(time.monotonic(), 0)

    @property
    def rate_is_known(self) -> bool:
        """Enough was delivered to tell what the path can do."""
        return self._counters.delivered_bytes - self._measured_from >= KNOWN_AFTER_BYTES

    @property
    def rate_bytes_per_s(self) -> float:
        """What the path delivers at its best, as far as it was seen and may be used; a guess before anything was."""
        seen = sum(path.best_rate for path in self.live) or RATE_GUESS_BYTES_PER_S
        return seen if self.rate_max is None else min(seen, self.rate_max)

    @property
    def round_trip_s(self) -> tuple[float, float]:
        """The round trip now and at its best, in seconds."""
        measured = self.measured()
        if not measured:
            return 0.0, 0.0
        return max(m.rtt_s for m in measured), min(m.rtt_min_s for m in measured)

    @property
    def raw_ahead_bytes(self) -> float:
        """How much of the stream the receiver may have to decode yet when the stream's end may come soon."""
        return max(RAW_AHEAD_BYTES, self.raw_rate * (self.round_trip_s[1] + RAW_AHEAD_S))

    def measured(self) -> list[sockets.PathMetrics]:
        """Return what the kernel knows of each connection."""
        return [m for path in self.live if (m := path.connection.measured()) is not None]

    def limit(self, rate_bytes_per_s: int | None) -> None:
        """Use so much from now on, or all there is."""
        self.rate_max = rate_bytes_per_s
        for path in self.live:
            path.best_rate = 0  # it was measured under the old limit: the path may carry more
        self._measured_from = self._counters.delivered_bytes
        self.pace()

    def remove(self, path: SendPath) -> None:
        """Forget a connection that is lost."""
        path.connection.abort()
        if path in self.live:
            self.live.remove(path)
        self._retransmits_lost += path.retransmits

    def pace(self) -> None:
        """Limit each connection to its share of what this session may use, and to what leaves the path no queue."""
        share = None if self.rate_max is None else max(1, self.rate_max // max(1, self.count))
        has_rate = self.rate_is_known
        for path in self.live:
            rate = share
            if self.shallow and has_rate and path.best_rate > 0:
                free = int(path.best_rate * SHALLOW_SHARE)
                rate = free if share is None else min(share, free)
            path.connection.deepen(not self.shallow)
            path.connection.pace(rate)

    def measure(self, raw_bytes_taken: int) -> None:
        """Take what the kernel measured into the counters; the receiver has taken so much of the stream by now."""
        progress = _Progress(time.monotonic(), raw_bytes_taken)
        before, self._progress = self._progress, progress
        passed_s = progress.at - before.at
        if passed_s > 0:
            self.raw_rate = max(self.raw_rate, (progress.raw_bytes - before.raw_bytes) / passed_s)
        self._counters.streams = sum(not path.idle for path in self.live)
        for path in self.live:
            measured = path.connection.measured()
            if measured is not None:
                path.retransmits = measured.retransmits
                path.best_rate = max(path.best_rate, measured.delivery_rate)
                self._counters.rtt_ms = round(measured.rtt_s * 1e3, 1)
        self._counters.retransmits = self._retransmits_lost + sum(path.retransmits for path in self.live)
