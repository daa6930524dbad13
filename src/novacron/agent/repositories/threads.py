"""Work on a repository in a thread of its own: its storage may hang, and then so does the thread, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from novacron.model.waiting import WaitCode

STALL_S_MAX = 300.0
"""For how long work may not go on: a request to a repository takes seconds at most."""
STOP_S_MAX = 10.0
"""For how long work that nobody wants any more is waited for."""
LOOK_S = 1.0

T = TypeVar("T")
Stopped: TypeAlias = Callable[[], bool]
"""Says whether the work is to end. Work asks it all the time: otherwise it counts as stalled."""


def never() -> bool:
    """Say that work is to go on."""
    return False


class WorkStopped(Exception):
    """Nobody wants the work any more."""


class Stalled(Exception):
    """The work did not go on for too long. Its thread may still be there."""

    code = WaitCode.TIME_LIMIT


class _Pulse:
    """Is asked whether the work is to end, and knows when it was asked last."""

    def __init__(self) -> None:
        self.ended = False
        self.asked_at = time.monotonic()

    def __call__(self) -> bool:
        self.asked_at = time.monotonic()
        return self.ended

    def silent_s(self) -> float:
        return time.monotonic() - self.asked_at


async def in_thread(
    work: Callable[[Stopped], T], left: list[threading.Thread], stall_s_max: float = STALL_S_MAX
) -> T:  # fmt: skip
    """Do work that blocks. When cancelled, raise CancelledError once it has stopped; a thread that does not stop in
    time is added to ``left``. Raises Stalled, and what the work raises."""
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may be there to hear it
    pulse = _Pulse()
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(_run, work, pulse, done), name="repository", daemon=True
    )
    thread.start()
    try:
        while not done.done():
            await asyncio.wait({done}, timeout=min(LOOK_S, stall_s_max))
            if not done.done() and pulse.silent_s() > stall_s_max:
                raise Stalled(f"its repository did not answer for {stall_s_max:.0f} s: check its storage")
        return done.result()
    finally:
        pulse.ended = True
        if not done.done():
            if pulse.silent_s() <= stall_s_max:
                await asyncio.wait({done}, timeout=STOP_S_MAX)
            if not done.done():
                left.append(thread)


def _run(work: Callable[[Stopped], T], pulse: _Pulse, done: asyncio.Future[T]) -> None:
    try:
        result = work(pulse)
    except BaseException as error:
        _tell(done, done.set_exception, error)
    else:
        _tell(done, done.set_result, result)


def _tell(done: asyncio.Future[T], set_outcome: Callable[..., None], outcome: object) -> None:
    def in_loop() -> None:
        if not done.done():
            set_outcome(outcome)

    with contextlib.suppress(RuntimeError):  # the loop is closed: the agent ends
        done.get_loop().call_soon_threadsafe(in_loop)
