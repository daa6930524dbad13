"""In which order VMs start, and how many at once."""

from __future__ import annotations

import asyncio

from novacron.agent.vm.start_queue import StartDelayed, StartQueue
from tests.waiting import pause_async


async def test_the_lowest_order_starts_first_and_no_more_than_allowed_at_once() -> None:
    queue, started, now, most = StartQueue(2), [], 0, 0

    async def start(order: int) -> None:
        nonlocal now, most
        async with queue.slot("acme", order):
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
        async with queue.slot("acme", 0):
            entered.set()
            await leave.wait()

    async def want() -> None:
        async with queue.slot("acme", 1):
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


async def test_a_start_delays_those_of_higher_orders_unless_it_fails() -> None:
    queue, started = StartQueue(2), list[int]()

    async def start(order: int, delay_s: float = 0, fails: bool = False) -> None:
        async with queue.slot("acme", order, delay_s):
            started.append(order)
            if fails:
                raise OSError("no disk")

    delayed, *others = await asyncio.gather(start(7), start(5, 600), start(5), start(3), return_exceptions=True)
    assert started == [3, 5, 5] and others == [None] * 3, "equal and lower orders are not delayed"
    assert isinstance(delayed, StartDelayed) and 590 < delayed.wait_s <= 600
    assert queue.full("acme", 6) and not queue.full("acme", 5)

    queue = StartQueue(1)
    failed, next_one = await asyncio.gather(start(1, 600, fails=True), start(2), return_exceptions=True)
    assert isinstance(failed, OSError) and next_one is None, "who did not start delays nobody"


async def test_a_project_with_many_starts_delays_nobody_else() -> None:
    queue, started = StartQueue(1), list[str]()

    async def start(project: str, order: int, delay_s: float = 0) -> None:
        async with queue.slot(project, order, delay_s):
            started.append(project)

    many = [start("big", 0, 600) for _ in range(50)]
    await asyncio.wait_for(asyncio.gather(*many, start("small", 900), start("small", 901)), 20)
    assert [place for place, project in enumerate(started) if project == "small"] == [1, 3], "in rotation"
    assert queue.full("big", 1) and not queue.full("small", 1000), "a delay is one of its project"
