"""What processes share through a real Redis, and that its loss costs nothing but that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest

from lab.platform import open_directory
from novacron.api.access.passwords import TRIES_OF_NAME_AT_ADDRESS as TRIES
from novacron.api.access.passwords import Passwords
from novacron.api.access.shared_counters import Shared
from novacron.api.edge.rate_limits import Rates, RateSettings
from novacron.api.edge.shared_limits import share_rates
from novacron.model.errors import TooManyRequests
from tests.support.redis import Redis
from tests.waiting import pause_async


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with open_directory("nvr-") as directory:
        server = Redis(str(directory))
        yield server
        server.stop()


async def test_processes_share_rate_limit_counters(redis: Redis) -> None:
    here, there = (Rates(RateSettings(strangers=10)) for _ in range(2))
    shared = [Shared(redis.url), Shared(redis.url)]
    tasks = [asyncio.create_task(share_rates(each, rates)) for each, rates in zip(shared, (here, there), strict=True)]
    try:
        for _ in range(15):
            assert not here.take(None, "192.0.2.1", "GET").exceeded
        there.take(None, "192.0.2.1", "GET")

        async def spent() -> bool:
            there.take(None, "192.0.2.1", "GET")
            await pause_async(0.05)
            return there.take(None, "192.0.2.1", "GET").exceeded

        async with asyncio.timeout(20):
            while not await spent():
                pass
        assert not there.take(None, "192.0.2.2", "GET").exceeded, "another address is not concerned"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in shared:
            await each.close()


async def test_password_guesses_are_counted_across_processes_and_without_redis(redis: Redis) -> None:
    shared = [Shared(redis.url), Shared(redis.url)]
    here, other = (Passwords(each) for each in shared)
    for number in range(TRIES):
        assert not await (here if number % 2 else other).verify("ann", "192.0.2.1", None, "guess")
    with pytest.raises(TooManyRequests, match="for ann from"):
        await here.verify("ann", "192.0.2.1", None, "guess")
    redis.stop()
    try:
        with suppress(TooManyRequests):
            assert not await here.verify("bob", "192.0.2.3", None, "guess")
        for _ in range(TRIES):
            with suppress(TooManyRequests):
                await here.verify("bob", "192.0.2.4", None, "guess")
        with pytest.raises(TooManyRequests):
            await here.verify("bob", "192.0.2.4", None, "guess")
    finally:
        redis.start()
        for each in shared:
            await each.close()
