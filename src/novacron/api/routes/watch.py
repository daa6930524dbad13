"""The stream of changes over a WebSocket: ``/api/v1/watch``. Each message is JSON: ``kind``, and ``object`` or the key
of what was ``deleted``; the last change of a revision has its ``revision``, after which a stream can be resumed. The
latest revision is repeated every few seconds: a client that hears nothing for longer is cut off."""

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
from novacron.api.access.live_calls import LiveCall
from novacron.api.edge import parameters
from novacron.api.read_model.principals import Caller
from novacron.api.read_model.watch_cache import Delivery
from novacron.api.routes.events import access_of, kinds_of
from novacron.model.errors import NovaError, Unavailable
from novacron.supervise import end_all

CLOSE_ENDED, CLOSE_REFUSED, CLOSE_INTERRUPTED = 4401, 4409, 4503
PARAMETERS = frozenset({"kinds", "after"})
REPEAT_S = 5.0


@websocket("/watch", opt=authorization.in_project())
async def watch(
    socket: WebSocket[Caller, str, Any], kinds: FromQuery[str | None] = None, after: FromQuery[int | None] = None
) -> None:
    """Send every change after a revision, or from now on, that the caller may see."""
    await socket.accept()
    call: LiveCall | None = None
    try:
        parameters.check(socket.query_params, PARAMETERS)
        async with asyncio.timeout(None) as limit:
            with services(socket).live.watched(socket.user, limit) as call:
                await _follow(socket, kinds_of(kinds), after)
    except TimeoutError:
        reason = "" if call is None or call.ended is None else str(call.ended)[:100]
        await socket.close(code=CLOSE_ENDED, reason=reason)
    except NovaError as error:
        code = CLOSE_INTERRUPTED if error.status == 503 else CLOSE_REFUSED
        await socket.close(code=code, reason=str(error)[:100])
    except WebSocketDisconnect:
        return


async def _follow(socket: WebSocket[Caller, str, Any], kinds_followed: frozenset[str], after: int | None) -> None:
    cache = services(socket).cache
    changes = cache.follow(after)
    sent = _Sent(cache.revision)
    await socket.send_json({"revision": sent.revision})
    if after is not None:
        sent.revision = after  # what has happened since is still to be sent
    works = (_send(socket, changes, kinds_followed, sent), _repeat(socket, sent), _until_gone(socket))
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[-1] not in done:
            done.pop().result()
    finally:
        await end_all(tasks)


class _Sent:
    """Up to which revision a client has all changes."""

    def __init__(self, revision: int) -> None:
        self.revision = revision


async def _repeat(socket: WebSocket[Caller, str, Any], sent: _Sent) -> None:
    """Repeat the latest revision now and then. Raises Unavailable when this server has no changes to send."""
    while True:
        await asyncio.sleep(REPEAT_S)
        if not services(socket).cache.ready:
            raise Unavailable("the feed was interrupted")
        await socket.send_json({"revision": sent.revision})


async def _send(
    socket: WebSocket[Caller, str, Any], changes: AsyncIterator[Delivery], kinds_followed: frozenset[str], sent: _Sent
) -> None:
    async for delivery in changes:
        message: dict[str, Any] = {}
        access = access_of(socket, socket.user)
        if delivery.kind in kinds_followed and authorization.sees_change(access, delivery.kind, delivery.project):
            message = {"kind": delivery.kind}
            if delivery.json is None:
                message["deleted"] = delivery.key
            else:
                message["object"] = msgspec.Raw(delivery.json)
        if delivery.last:
            message["revision"] = delivery.revision
        if message:
            sent.revision = message.get("revision", sent.revision)
            await socket.send_text(msgspec.json.encode(message).decode())


async def _until_gone(socket: WebSocket[Caller, str, Any]) -> None:
    while True:
        await socket.receive_data(mode="text")


router = Router("/", route_handlers=[watch], tags=["events"])
