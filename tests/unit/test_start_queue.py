"""In which order VMs start, and how many at once."""

from __future__ import annotations

import asyncio

from novacron.agent.vm.start_queue import StartQueue
from tests.waiting import pause_async


async def test_the_lowest_order_starts_first_and_no_more_than_allowed_at_once() -> None:
    queue, started, now, most = StartQueue(2), [], 0, 0

    async def start(order: int) -> None:
        nonlocal now, most
        async with queue.slot(order):
            started.append(order)
            now += 1
            most = max(most, now)
            await pause_async(0.001)
            now -= 1

    await asyncio.wait_for(asyncio.gather(*(start(order) for order in (5, 3, 9, 1, 3, 0, 7))), 20)
    assert started == [0, 1, 3, 3, 5, 7, 9] and most == 2


async def test_a_cancelled_waiter_takes_nobodys_turn() -> None:
    queue = StartQueue(1)
    entered, leave = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with queue.slot(0):
            entered.set()
            await leave.wait()

    async def want() -> None:
        async with queue.slot(1):
            pass

    holding = asyncio.create_task(hold())
    await asyncio.wait_for(entered.wait(), 20)
    given_up = asyncio.create_task(want())
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    leave.set()
    await holding
    await asyncio.wait_for(want(), 20)
