"""Copies of images from node to node, while they are under way."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from novacron.model.errors import Conflict, InvalidInput, NotFound, Unavailable
from novacron.model.event import ImageCopy
from novacron.model.link_sharing import lowest
from novacron.model.node import ImageInfo, Node
from novacron.store import events, links, nodes
from novacron.store.database import Database
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

COPIES_MAX = 16
READY_S_MAX = 30.0
COPY_S_MAX = 12 * 3600.0

Send = Callable[[str, wire.Message], Awaitable[None]]
"""Sends a message to a node by name. Raises Unavailable."""


class _Copy:
    """A copy that is under way."""

    def __init__(self, copy: ImageCopy, image: ImageInfo) -> None:
        loop = asyncio.get_running_loop()
        self.copy, self.image = copy, image
        self.ready: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[str] = loop.create_future()
        """Why it failed, or nothing."""


class Copies:
    """Begins copies, follows them, and writes down how they ended."""

    def __init__(self, database: Database, send: Send) -> None:
        self._database = database
        self._send = send
        self._copies: dict[str, _Copy] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, name: str, source: str | None, target: str, actor: str) -> ImageCopy:
        """Begin to copy an image to a node, from ``source`` or whichever node is nearest.

        Raises NotFound, InvalidInput, Conflict, Unavailable.
        """
        async with self._database.connection() as connection:
            there = await nodes.get(connection, target, field="target")
            every = await nodes.all(connection)
            if source is not None:
                await nodes.get(connection, source, field="source")
            giver, image = _giver(name, source, there, every)
            rate = lowest(giver, there, await links.all(connection), datetime.now(UTC))
            endpoint = await nodes.dwcp_endpoint(connection, target)
        if endpoint is None:
            raise Unavailable(f"node {target} is not connected", hint="see: novacron node list")
        if any((c.copy.image, c.copy.target) == (name, target) for c in self._copies.values()):
            raise Conflict(f"image {name} is on its way to node {target} already", hint="see: novacron events")
        if len(self._copies) >= COPIES_MAX:
            raise Unavailable(f"{len(self._copies)} copies are under way", hint="try again when one has ended")
        copy = ImageCopy(f"copy-{secrets.token_hex(8)}", name, giver.name, target, image.size_bytes)
        self._copies[copy.id] = _Copy(copy, image)
        task = asyncio.create_task(self._carry_out(copy.id, endpoint, rate, actor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return copy

    def is_ready(self, node: str, id: str) -> None:
        found = self._copies.get(id)
        if found is not None and found.copy.target == node and not found.ready.done():
            found.ready.set_result(None)

    def is_over(self, node: str, id: str, error: str) -> None:
        """A node says how its part ended; the source's success is not the end."""
        found = self._copies.get(id)
        if found is None or found.over.done():
            return
        if node == found.copy.target or (error and node == found.copy.source):
            found.over.set_result(f"node {node}: {error}" if error else "")

    async def _carry_out(self, id: str, endpoint: str, rate: int | None, actor: str) -> None:
        found = self._copies[id]
        copy = found.copy
        try:
            why = await self._follow(found, endpoint, rate, actor)
        except (Unavailable, TimeoutError) as error:
            why = str(error) or "the nodes do not answer"
        finally:
            del self._copies[id]
        reason, message = "ImageCopied", f"image {copy.image} has arrived from node {copy.source}"
        if why:
            reason, message = "ImageCopyFailed", f"image {copy.image} did not arrive from node {copy.source}: {why}"
        log.info("a copy has ended", copy=id, image=copy.image, target=copy.target, error=why)
        try:
            async with self._database.transaction() as connection:
                await events.record(connection, "node", copy.target, copy.target, reason, f"{message} ({id})", actor)
        except Unavailable as error:
            log.warning("the end of a copy can't be written down", copy=id, error=str(error))

    async def _follow(self, found: _Copy, endpoint: str, rate: int | None, actor: str) -> str:
        """Return why the copy failed, or nothing."""
        copy = found.copy
        await self._send(copy.target, wire.CopyExpected(copy.id, copy.source, found.image, actor == events.SYSTEM))
        async with asyncio.timeout(READY_S_MAX):
            waiting: set[asyncio.Future[Any]] = {found.ready, found.over}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not found.over.done():
            await self._send(copy.source, wire.CopyWanted(copy.id, copy.target, endpoint, found.image, rate))
        async with asyncio.timeout(COPY_S_MAX):
            return await found.over


def _giver(name: str, source: str | None, target: Node, every: list[Node]) -> tuple[Node, ImageInfo]:
    """Return the node that gives an image, and the image."""
    if held(target, name) is not None:
        raise InvalidInput(f"node {target.name} holds image {name} already", field="target", hint="name another node")
    holders = [(node, image) for node in every if (image := held(node, name)) is not None]
    if source is not None:
        holders = [(node, image) for node, image in holders if node.name == source]
    if not holders:
        where = f"node {source}" if source is not None else "no node"
        raise NotFound(f"{where} holds an image {name!r}", hint="see: novacron image list")
    if source is None and len({image.digest for _, image in holders}) > 1:
        raise InvalidInput(
            f"nodes hold different images named {name}", field="source", hint="say from which node, with source"
        )
    ready = [(node, image) for node, image in holders if node.status.ready]
    if not ready:
        raise Unavailable(f"no node that holds image {name} is ready", hint="see: novacron node list")
    return min(ready, key=lambda found: (found[0].spec.site != target.spec.site, found[0].name))


def held(node: Node, name: str) -> ImageInfo | None:
    """Return an image by name if the node holds it."""
    inventory = node.status.inventory
    return next((image for image in inventory.images if image.name == name), None) if inventory else None
