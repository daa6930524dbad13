"""Copies of images from node to node, while they are under way."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from novacron.model.errors import Conflict, InvalidInput, NotFound, Unavailable
from novacron.model.event import ImageCopy
from novacron.model.link_sharing import lowest
from novacron.model.node import ImageInfo, Node
from novacron.server.questions import Questions
from novacron.store import events, links, nodes
from novacron.store.database import Database
from novacron.supervise import FewTasks
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

COPIES_MAX = 16
READY_S_MAX = 30.0
COPY_S_MAX = 12 * 3600.0

Send = Callable[[str, wire.Message], Awaitable[None]]
"""Sends a message to a node by name. Raises Unavailable."""


class Copies:
    """Begins copies, follows them, and writes down how they ended."""

    def __init__(self, database: Database, questions: Questions, send: Send) -> None:
        self._database = database
        self._questions = questions
        self._send = send
        self._copies: dict[str, ImageCopy] = {}
        self._tasks = FewTasks("image-copy", COPIES_MAX)

    async def begin(self, name: str, source: str | None, target: str, actor: str) -> ImageCopy:
        """Begin to copy an image to a node, from ``source`` or whichever node is nearest.

        Raises NotFound, InvalidInput, Conflict, Unavailable.
        """
        async with self._database.connection() as connection:
            there = await nodes.get(connection, target, field="target")
            every = await nodes.all(connection)
            if not there.spec.accepted:
                raise Conflict(
                    f"node {target} has not been accepted", field="target", hint="see: novacron node accept --help"
                )
            if source is not None:
                await nodes.get(connection, source, field="source")
            giver, image = _source_of(name, source, there, every)
            rate = lowest(giver, there, await links.all(connection), datetime.now(UTC))
            endpoint = await nodes.dwcp_endpoint(connection, target)
        if endpoint is None:
            raise Unavailable(f"node {target} is not connected", hint="see: novacron node list")
        if any((c.image, c.target) == (name, target) for c in self._copies.values()):
            raise Conflict(f"image {name} is already being copied to node {target}", hint="see: novacron events")
        if self._tasks.full:
            raise Unavailable(
                f"{len(self._copies)} copies are in progress", hint="try again when one of them has ended"
            )
        copy = ImageCopy(f"copy-{secrets.token_hex(8)}", name, giver.name, target, image.size_bytes)
        self._copies[copy.id] = copy
        expected = wire.CopyExpected(copy.id, copy.source, image, actor == events.SYSTEM)
        order = wire.CopyWanted(copy.id, target, endpoint, image, rate)
        self._tasks.start(self._carry_out(copy, expected, order, actor))
        return copy

    async def end(self) -> None:
        """Follow no copy any more."""
        await self._tasks.end()

    async def _carry_out(
        self, copy: ImageCopy, expected: wire.CopyExpected, order: wire.CopyWanted, actor: str
    ) -> None:
        try:
            why = await self._follow(copy, expected, order)
        except (Unavailable, TimeoutError) as error:
            why = str(error) or "the nodes do not answer"
        finally:
            del self._copies[copy.id]
        reason, message = "ImageCopied", f"image {copy.image} was copied from node {copy.source}"
        if why:
            reason, message = (
                "ImageCopyFailed",
                f"image {copy.image} could not be copied from node {copy.source}: {why}",
            )
        log.info("a copy has ended", copy=copy.id, image=copy.image, target=copy.target, error=why)
        try:
            async with self._database.transaction() as connection:
                await events.record(
                    connection,
                    events.NewEvent("node", copy.target, copy.target, reason, f"{message} ({copy.id})", actor),
                )
        except Unavailable as error:
            log.warning("the end of a copy can't be stored", copy=copy.id, error=str(error))

    async def _follow(self, copy: ImageCopy, expected: wire.CopyExpected, order: wire.CopyWanted) -> str:
        """Return why the copy failed, or nothing. Raises Unavailable, TimeoutError."""
        # It goes on between the nodes, whether or not they are connected here meanwhile.
        of_any = self._questions.expect_over_any_connection
        with of_any(copy.target, order.reply_key) as arrived, of_any(copy.source, order.reply_key) as sent:
            async with asyncio.timeout(READY_S_MAX):
                ready = await self._questions.request(copy.target, expected)
            if ready.error:
                return f"node {copy.target}: {ready.error}"
            await self._send(copy.source, order)
            async with asyncio.timeout(COPY_S_MAX):
                await asyncio.wait({arrived, sent}, return_when=asyncio.FIRST_COMPLETED)
                if sent.done() and sent.result().error:
                    return f"node {copy.source}: {sent.result().error}"
                error = (await arrived).error  # the source's success is not the end
            return f"node {copy.target}: {error}" if error else ""


def _source_of(name: str, source: str | None, target: Node, every: list[Node]) -> tuple[Node, ImageInfo]:
    """Return the node that gives an image, and the image."""
    if held(target, name) is not None:
        raise InvalidInput(f"node {target.name} already holds image {name}", field="target", hint="choose another node")
    holders = [(node, image) for node in every if (image := held(node, name)) is not None]
    if source is not None:
        holders = [(node, image) for node, image in holders if node.name == source]
    if not holders:
        where = f"node {source}" if source is not None else "no node"
        raise NotFound(f"{where} holds an image {name!r}", hint="see: novacron image list")
    if source is None and len({image.digest for _, image in holders}) > 1:
        raise InvalidInput(
            f"nodes hold different images named {name}", field="source", hint="name the source node in `source`"
        )
    ready = [(node, image) for node, image in holders if node.status.ready]
    if not ready:
        raise Unavailable(f"no node that holds image {name} is ready", hint="see: novacron node list")
    return min(ready, key=lambda holder: (holder[0].spec.site != target.spec.site, holder[0].name))


def held(node: Node, name: str) -> ImageInfo | None:
    """Return an image by name if the node holds it."""
    inventory = node.status.inventory
    return next((image for image in inventory.images if image.name == name), None) if inventory else None
