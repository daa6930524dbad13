"""Routes for events: the log that people read, and every change as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, get
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, text
from novacron.api.read_model.indexes import Condition
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.api.read_model.principals import Caller
from novacron.api.read_model.watch_cache import PUBLIC, Cache, Delivery
from novacron.model.access import Access
from novacron.model.errors import InvalidInput, Unavailable
from novacron.model.event import Event

KEEPALIVE_S = 15.0
OF_STREAMS = ("kinds", "after")


@get("/", summary="List events, newest first; with Accept: text/event-stream, stream every change")
async def list_events(
    request: ApiRequest,
    paging: NamedDependency[Paging],
    object: FromQuery[str | None] = None,
    kinds: Annotated[str | None, QueryParameter(description="for the stream: vm, node, migration, event")] = None,
) -> Response[Page[Event]] | Stream:
    cache = services(request).cache
    if "text/event-stream" in request.headers.get("accept", ""):
        return _stream(request, cache, kinds)
    for name in OF_STREAMS:
        if name in request.query_params:
            raise InvalidInput("it applies to the stream only", field=name, hint="send Accept: text/event-stream")
    about: tuple[Condition, ...] = () if object is None else ((("object", object), ("name", object)),)
    return lists.answer(request, paging, Query("event", about, newest_first=True))


def kinds_of(named: str | None) -> frozenset[str]:
    """Return the kinds of objects that a stream follows. Raises InvalidInput."""
    kinds = frozenset(PUBLIC if named is None else named.split(","))
    if not kinds <= frozenset(PUBLIC):
        raise InvalidInput(f"unknown kind in {named!r}", field="kinds", hint="use " + ", ".join(PUBLIC))
    return kinds


def _stream(request: ApiRequest, cache: Cache, kinds: str | None) -> Stream:
    kinds_followed = kinds_of(kinds)
    resume = request.headers.get("last-event-id") or request.query_params.get("after")
    after = None if resume is None else text.natural(resume, "Last-Event-ID", hint="send the last id received")
    changes = cache.follow(after)
    return Stream(
        _encode(changes, kinds_followed, cache.revision, lambda: access_of(request, request.user)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def access_of(connection: ASGIConnection[Any, Any, Any, Any], session: Caller) -> Access:
    """Return the caller's access now: a revoked role or token also ends what a stream shows."""
    caller = services(connection).cache.callers.by_id(session.id)
    return Access() if caller is None or caller.expires_at_s <= time.time() else caller.access


async def _encode(
    changes: AsyncIterator[Delivery], kinds_followed: frozenset[str], revision: int, access: Callable[[], Access]
) -> AsyncIterator[bytes]:
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
            if delivery.kind in kinds_followed and authorization.sees_change(access(), delivery.kind, delivery.project):
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


router = Router("/events", route_handlers=[list_events], tags=["events"], opt=authorization.in_project())
