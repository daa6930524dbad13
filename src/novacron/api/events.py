"""Routes for events: the log that people read, and every change as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from litestar import Response, Router, get
from litestar.params import Parameter
from litestar.response import Stream

from novacron.api import reply
from novacron.api.cache import PUBLIC, Cache, Delivery
from novacron.api.context import ApiRequest, services
from novacron.model import limits
from novacron.model.errors import InvalidInput, Unavailable
from novacron.model.event import Event

Limit = Annotated[int, Parameter(ge=1, le=limits.PAGE_SIZE_MAX)]
KEEPALIVE_S = 15.0


class EventList(msgspec.Struct):
    items: list[Event]
    next: str | None
    revision: int


@get("/", summary="List what happened, newest first; with Accept: text/event-stream, follow every change")
async def list_events(
    request: ApiRequest,
    limit: Limit = limits.PAGE_SIZE_DEFAULT,
    cursor: str | None = None,
    object: str | None = None,
    kinds: Annotated[str | None, Parameter(description="for the stream: vm, node, migration, event")] = None,
) -> Response[EventList] | Stream:
    cache = services(request).cache
    if "text/event-stream" in request.headers.get("accept", ""):
        return _stream(request, cache, kinds)
    entries = (
        (f"{entry.body['id']:020d}", entry)
        for entry in cache.all("event").values()
        if object is None or object in (entry.body["object"], entry.body["name"])
    )
    return reply.page(request, entries, limit, cursor, newest_first=True)


def _stream(request: ApiRequest, cache: Cache, kinds: str | None) -> Stream:
    wanted = frozenset(PUBLIC if kinds is None else kinds.split(","))
    if not wanted <= frozenset(PUBLIC):
        raise InvalidInput(f"unknown kind in {kinds!r}", field="kinds", hint="use " + ", ".join(PUBLIC))
    resume = request.headers.get("last-event-id") or request.query_params.get("after")
    if resume is not None and not resume.isdecimal():
        raise InvalidInput(f"{resume!r} is not a revision", field="Last-Event-ID", hint="send the last id received")
    changes = cache.follow(None if resume is None else int(resume))
    return Stream(
        _encode(changes, wanted, cache.revision),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _encode(changes: AsyncIterator[Delivery], wanted: frozenset[str], revision: int) -> AsyncIterator[bytes]:
    yield f": revision {revision}\n\n".encode()
    waiting: asyncio.Future[Delivery] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(changes))
            done, _ = await asyncio.wait({waiting}, timeout=KEEPALIVE_S)
            if not done:
                yield b": still here\n\n"
                continue
            delivery = waiting.result()
            waiting = None
            lines = b""
            if delivery.kind in wanted:
                data = delivery.json or msgspec.json.encode({"id": delivery.key, "deleted": True})
                lines = b"event: %s\ndata: %s\n" % (delivery.kind.encode(), data)
            if delivery.last:
                # Only a whole revision can be resumed after.
                lines += b"id: %d\n" % delivery.revision
            if lines:
                yield lines + b"\n"
    except Unavailable as error:
        yield b"event: interrupted\ndata: %s\n\n" % msgspec.json.encode({"detail": error.detail})
    finally:
        if waiting is not None:
            waiting.cancel()


router = Router("/events", route_handlers=[list_events], tags=["events"])
