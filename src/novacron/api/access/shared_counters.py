"""Counters that the API's processes share through Redis (or Valkey), where there is one: requests of each caller, wrong
passwords. Without it, or while it is away, each process counts for itself; nothing else depends on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from novacron.telemetry import logs

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logs.get(__name__)

PREFIX = "novacron:"
TIMEOUT_S = 0.5
AWAY_S = 5.0
"""How long it is left alone after it did not answer."""


class Shared:
    """Counters that processes have in common."""

    def __init__(self, url: str | None) -> None:
        self._redis: Redis | None = None
        self._away: tuple[type[Exception], ...] = (OSError,)
        if url is not None:
            from redis.asyncio import Redis  # takes 0.3 s, and most servers have no Redis
            from redis.exceptions import RedisError

            self._away = (RedisError, OSError)
            self._redis = Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        self._away_until = 0.0

    @property
    def here(self) -> bool:
        """Say whether it is worth asking."""
        return self._redis is not None and time.monotonic() >= self._away_until

    def _lost(self, error: BaseException) -> None:
        self._away_until = time.monotonic() + AWAY_S
        log.warning("the shared cache is away: each process counts for itself", error=str(error))

    async def add(self, counts: dict[str, int], ttl_s: int) -> dict[str, int]:
        """Add to counters, and return what they are then; nothing while it is away."""
        if not counts or not self.here:
            return {}
        assert self._redis is not None
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, count in counts.items():
                    pipe.incrby(PREFIX + key, count)
                    pipe.expire(PREFIX + key, ttl_s)
                answers = await pipe.execute()
        except self._away as error:
            self._lost(error)
            return {}
        return {key: int(answers[2 * number]) for number, key in enumerate(counts)}

    async def get(self, keys: tuple[str, ...]) -> dict[str, int]:
        """Return counters; nothing while it is away."""
        if not self.here:
            return {}
        assert self._redis is not None
        try:
            values = await self._redis.mget([PREFIX + key for key in keys])
        except self._away as error:
            self._lost(error)
            return {}
        return {key: int(value or 0) for key, value in zip(keys, values, strict=True)}

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()
