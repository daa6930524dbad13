"""Rate limits: a token bucket for each API token, and for each address of unauthenticated callers, in this process.
Processes that share a Redis take off, a few times a second, what callers spend at the others."""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec

from novacron.api.access.recorder import UNSAFE
from novacron.api.read_model.principals import Caller

Header = tuple[bytes, bytes]
KEPT_MAX = 50_000
BURST_S = 2.0


class RateSettings(msgspec.Struct, frozen=True):
    """Requests a second: reads and writes of one token, and requests from one address without a token."""

    reads: float = 5000.0
    writes: float = 500.0
    strangers: float = 100.0


class Limit(NamedTuple):
    """What a request has left, as headers say it (draft-ietf-httpapi-ratelimit-headers)."""

    exceeded: bool
    most: int
    retry_s: int
    headers: list[Header]


class _Bucket:
    __slots__ = ("at_s", "has")

    def __init__(self, has: float, at_s: float) -> None:
        self.has, self.at_s = has, at_s


class Rates:
    """All buckets of this process."""

    def __init__(self, settings: RateSettings | None = None) -> None:
        self.settings = settings or RateSettings()
        self.spent: dict[str, int] = {}
        """Requests of each bucket since they were last collected to be shared."""
        self._buckets: dict[str, _Bucket] = {}
        self._headers: dict[tuple[str, int], list[Header]] = {}

    def take(self, caller: Caller | None, address: str, method: str) -> Limit:
        """Take one request out of the caller's bucket."""
        if caller is None:
            return self._take(f"a:{address}", "address", self.settings.strangers)
        if method in UNSAFE:
            return self._take(f"w:{caller.id}", "writes", self.settings.writes)
        return self._take(f"r:{caller.id}", "reads", self.settings.reads)

    def spend(self, key: str, count: int) -> None:
        """Take out what a caller spent at other processes."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            bucket.has -= count

    def _take(self, key: str, policy: str, rate: float) -> Limit:
        now, burst = time.monotonic(), rate * BURST_S
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= KEPT_MAX:
                self._forget(now)
            bucket = self._buckets[key] = _Bucket(burst, now)
        has = min(burst, bucket.has + (now - bucket.at_s) * rate)
        bucket.at_s = now
        if has < 1:
            bucket.has = has
            return Limit(True, int(rate), max(1, int((1 - has) / rate + 0.999)), self._headers_of(policy, rate, 0))
        bucket.has = has - 1
        self.spent[key] = self.spent.get(key, 0) + 1
        return Limit(False, int(rate), 0, self._headers_of(policy, rate, int(has - 1)))

    def _headers_of(self, policy: str, rate: float, remaining: int) -> list[Header]:
        """Return the headers; the remainder is rounded down to tenths of a burst, so that they can be cached."""
        step = max(1, int(rate * BURST_S / 10))
        remaining = remaining // step * step if remaining > 10 else remaining
        headers = self._headers.get((policy, remaining))
        if headers is None:
            headers = self._headers[policy, remaining] = [
                (b"ratelimit-policy", f'"{policy}";q={int(rate * BURST_S)};w={BURST_S:.0f}'.encode()),
                (b"ratelimit", f'"{policy}";r={remaining};t={BURST_S:.0f}'.encode()),
            ]
        return headers

    def _forget(self, now: float) -> None:
        """Forget callers that have been idle for a while: their buckets are full."""
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket.at_s < BURST_S}
        if len(self._buckets) >= KEPT_MAX:
            self._buckets.clear()
