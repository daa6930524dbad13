"""The API's client for asyncio: the methods of ``Client``, awaited.

The modules here are the source: ``script/generate`` makes ``novacron.client.sync`` of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from novacron.client.aio.collections import AsyncCollections
from novacron.client.aio.transport import AsyncTransport
from novacron.client.api import Client
from novacron.client.config import Config, load_config

T = TypeVar("T")

CONNECTIONS = 8


class AsyncClient(AsyncCollections):
    """Calls an API from the tasks of one event loop, over at most ``connections`` connections.

    ``await client.vms.create(name="web", image="debian")`` does what ``Client`` does; ``async for vm in
    client.vms.list()`` fetches page after page. Close it with ``async with`` or ``await client.close()``.
    """

    def __init__(self, config: Config | None = None, connections: int = CONNECTIONS) -> None:
        self.config = config or load_config()
        self._transport = AsyncTransport(self.config, connections)
        self._threads = asyncio.Semaphore(connections)

    async def do(self, work: Callable[[Client], T]) -> T:
        """Run ``work``, which makes blocking calls, in a thread with a client of its own. Raises what it raises."""

        def run() -> T:
            with Client(self.config) as client:
                return work(client)

        async with self._threads:
            return await asyncio.to_thread(run)
