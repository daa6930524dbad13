"""The stream of changes over a WebSocket: ``/api/v1/watch``. Each message is JSON: ``kind``, and ``object`` or the key
of what was ``deleted``; the last change of a revision has its ``revision``, after which a stream can be resumed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import Router, WebSocket, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import FromQuery

from novacron.api.access import authorization
from novacron.api.access.context import services
from novacron.api.read_model.principals import Caller
from novacron.api.read_model.watch_cache import Delivery
from novacron.api.routes.events import access_of, kinds_of
from novacron.model.errors import NovaError

CLOSE_REFUSED, CLOSE_INTERRUPTED = 4409, 4503


@websocket("/watch", opt=authorization.in_project())
async def watch(
    socket: WebSocket[Caller, str, Any], kinds: FromQuery[str | None] = None, after: FromQuery[int | None] = None
) -> None:
    """Send every change after a revision, or from now on, that the caller may see."""
    context = services(socket)
    await socket.accept()
    try:
        kinds_followed = kinds_of(kinds)
        changes = context.cache.follow(after)
        await socket.send_json({"revision": context.cache.revision})
        sending = asyncio.create_task(_send(socket, changes, kinds_followed))
        gone = asyncio.create_task(_until_gone(socket))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
    except NovaError as error:
        code = CLOSE_INTERRUPTED if error.status == 503 else CLOSE_REFUSED
        await socket.close(code=code, reason=str(error)[:100])
    except WebSocketDisconnect:
        return


async def _send(
    socket: WebSocket[Caller, str, Any], changes: AsyncIterator[Delivery], kinds_followed: frozenset[str]
) -> None:
    async for delivery in changes:
        message: dict[str, Any] = {}
        if delivery.kind in kinds_followed and access_of(socket, socket.user).sees(delivery.project):
            message = {"kind": delivery.kind}
            if delivery.json is None:
                message["deleted"] = delivery.key
            else:
                message["object"] = msgspec.Raw(delivery.json)
        if delivery.last:
            message["revision"] = delivery.revision
        if message:
            await socket.send_text(msgspec.json.encode(message).decode())


async def _until_gone(socket: WebSocket[Caller, str, Any]) -> None:
    while True:
        await socket.receive_data(mode="text")


router = Router("/", route_handlers=[watch], tags=["events"])
