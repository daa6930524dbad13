"""How tests wait: for a condition, with a limit; or for a while, where the time itself is what is tested."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

from lab import platform
from lab.platform import until

__all__ = ["eventually", "pause", "pause_async", "until"]

POLL_S = 0.01


async def eventually(
    condition: Callable[[], object | Awaitable[object]], what: str = "it is so", timeout_s: float = 20.0
) -> None:
    """Wait in an event loop until ``condition()`` is true. Raises AssertionError naming ``what``."""
    timeout_s *= platform.patience
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if await value if inspect.isawaitable(value) else value:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        await asyncio.sleep(POLL_S)


def pause(seconds: float) -> None:
    """Let what is tested go on for a while: how long a fault, a load or a look lasts, never a wait for a result."""
    time.sleep(seconds)


async def pause_async(seconds: float) -> None:
    """Do in an event loop what :func:`pause` does."""
    await asyncio.sleep(seconds)
