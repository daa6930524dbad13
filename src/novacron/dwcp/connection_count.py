"""How many connections a session wants."""

from __future__ import annotations

import time
from collections.abc import Sequence

from novacron.dwcp import sockets

STREAMS_MAX = 16
QUEUE_RTT_FACTOR = 1.4
PROBE_S = 1.5
PROBE_GAIN = 1.08
PROBE_BLOCKED = 0.8
PROBE_AGAIN_S = 15.0


class StreamCount:
    """Decides how many connections a path wants: one more where data waits and the bottleneck has no queue, and one
    less again if that made no difference."""

    def __init__(self, count: int, *, fixed: bool) -> None:
        self.count = count
        self._fixed = fixed
        self._at = time.monotonic()
        self._blocked_s = 0.0
        self._rate = 0.0
        self._probing = False
        self._not_before = 0.0

    def step(self, now: float, blocked_s: float, paths: Sequence[sockets.PathMetrics]) -> int:
        """Return how many connections there should be. ``blocked_s`` is the time in which data waited so far."""
        passed = now - self._at
        if self._fixed or passed < PROBE_S or not paths:
            return self.count
        blocked = (blocked_s - self._blocked_s) / passed
        rate = float(sum(path.delivery_rate for path in paths))
        self._at, self._blocked_s = now, blocked_s
        if self._probing:
            self._probing = False
            if rate < self._rate * PROBE_GAIN:
                self.count -= 1
                self._not_before = now + PROBE_AGAIN_S
        elif (
            blocked > PROBE_BLOCKED
            and self.count < STREAMS_MAX
            and now > self._not_before
            and all(path.rtt_s < path.rtt_min_s * QUEUE_RTT_FACTOR for path in paths)
        ):
            self._probing, self._rate = True, rate
            self.count += 1
        return self.count
