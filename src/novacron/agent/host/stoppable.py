"""Work on a repository in a thread, which is asked to stop once nobody wants it any more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from novacron.agent.host.clock import finished_in_thread
from novacron.agent.repositories.contents import Stopped

T = TypeVar("T")


async def in_thread(work: Callable[[Stopped], T]) -> T:
    """Do work that blocks; when cancelled, raise CancelledError once it has stopped. Raises what the work raises."""
    ended = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, ended.is_set))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        ended.set()
        with contextlib.suppress(Exception):  # the cancellation is what counts
            await finished_in_thread(running)
        raise
