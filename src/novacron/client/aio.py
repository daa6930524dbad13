"""The API's client for asyncio: the same methods, each awaited; calls run in threads, on connections of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from novacron.client.api import Client, Config, Object, load_config

T = TypeVar("T")

CONNECTIONS = 8


class AsyncClient:
    """Calls an API from several tasks at once, at most ``connections`` at a time.

    ``await client.create_vm(name="web", image="debian")`` does what ``Client.create_vm`` does; ``async for vm in
    client.list("vms")`` fetches page after page; ``do`` runs what needs several calls.
    """

    def __init__(self, config: Config | None = None, connections: int = CONNECTIONS) -> None:
        self.config = config or load_config()
        self._free: asyncio.LifoQueue[Client] = asyncio.LifoQueue()
        for _ in range(connections):
            self._free.put_nowait(Client(self.config))

    async def do(self, work: Callable[[Client], T]) -> T:
        """Run ``work`` with a client that is nobody else's meanwhile. Raises what it raises."""
        client = await self._free.get()
        try:
            return await asyncio.to_thread(work, client)
        finally:
            self._free.put_nowait(client)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name.startswith("_") or not callable(getattr(Client, name, None)):
            raise AttributeError(f"the client has no method {name!r}")

        async def call(*arguments: Any, **more: Any) -> Any:
            return await self.do(lambda client: getattr(client, name)(*arguments, **more))

        return call

    async def one(self, type_: type[T], ref: str) -> T:
        """Return one object by id or name as a value of its type, as ``Client.one`` does."""
        return await self.do(lambda client: client.one(type_, ref))

    async def every(self, type_: type[T], limit: int | None = None, **filters: str) -> AsyncIterator[T]:
        """Yield the objects of a type as values of it, as ``Client.every`` does."""
        from novacron.client import typed

        async for found in self.list(typed.kind_of(type_), limit, **filters):
            yield typed.read(type_, found)

    async def list(self, kind: str, limit: int | None = None, **filters: str) -> AsyncIterator[Object]:
        """Yield the objects of a kind, as ``Client.list`` does."""
        found = Client(self.config).list(kind, limit, **filters)
        with contextlib.closing(found):  # type: ignore[type-var]
            while (item := await asyncio.to_thread(next, found, None)) is not None:
                yield item
