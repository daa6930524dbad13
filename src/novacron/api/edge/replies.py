"""How answers are made: from the cache for reads, once only for writes."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from litestar import Response
from litestar.enums import MediaType

from novacron.api.access import authorization
from novacron.api.context import ApiRequest, services
from novacron.api.read_model import long_poll
from novacron.model import limits
from novacron.model.errors import InvalidInput, NotFound
from novacron.model.vm import Vm
from novacron.store import audit, events, idempotency
from novacron.store.database import Connection
from novacron.store.vms import Quick
from novacron.telemetry import logs

log = logs.get(__name__)

REF_PATTERN = re.compile(r"^[a-z0-9.-]{1,80}$")
OWN_WRITE_WAIT_S = 1.0


class Resource(Protocol):
    @property
    def revision(self) -> int: ...


T = TypeVar("T", bound=Resource)


class Done(NamedTuple):
    """What a write has made: the object, its JSON, the headers that go with it, and the write's own revision."""

    made: Any
    body: bytes
    headers: dict[str, str]
    revision: int


def etag(revision: int) -> str:
    return f'"{revision}"'


def check_ref(kind: str, ref: str) -> str:
    """Return a reference from a path, or raise NotFound for one that can't exist."""
    if not REF_PATTERN.match(ref):
        raise NotFound(f"there is no {kind} {ref!r}")
    return ref


def if_match(request: ApiRequest) -> int | None:
    """Return the revision in If-Match, or None. Raises InvalidInput."""
    header = request.headers.get("if-match")
    if header is None or header.strip() == "*":
        return None
    match = re.fullmatch(r'\s*"(\d{1,19})"\s*', header)
    if match is None:
        raise InvalidInput(
            f"{header!r} is not an ETag of this API",
            field="If-Match",
            hint='send the ETag as read, like "123"',
        )
    return int(match[1])


async def one(
    request: ApiRequest, kind: str, ref: str, newer_than: int | None = None, timeout_s: float = 0
) -> Response[Any]:
    """Answer with one object from the cache; with ``newer_than``, wait for a later revision first."""
    cache = services(request).cache
    check_ref(kind, ref)
    owned = authorization.scope_of(request.route_handler) is authorization.Scope.PROJECT
    entry = authorization.find(request, kind, ref) if owned else cache.get(kind, ref)
    if entry is not None and newer_than is not None and entry.revision <= newer_than:
        entry = await cache.changed(kind, str(entry.body.get("id", ref)), newer_than, timeout_s)
    if entry is None:
        raise authorization.no_such(kind, ref)
    headers = {"ETag": etag(entry.revision), "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(None, status_code=304, headers=headers)
    return Response(entry.json, media_type=MediaType.JSON, headers=headers)


@contextlib.asynccontextmanager
async def change(request: ApiRequest, object: Any = None) -> AsyncIterator[Connection]:
    """Lend a transaction for a change that answers with no object of its own; it is written down with it.

    This replica's cache has the change when the block is over.
    """
    context = services(request)
    async with context.database.transaction() as connection:
        yield connection
        await context.recorder.done(connection, request, 200, object)
        revision = int(await connection.fetchval("SELECT pg_current_xact_id()::text"))
    await context.cache.reached(revision, OWN_WRITE_WAIT_S)


async def _quickly(request: ApiRequest, quick: Quick, status: int) -> Vm | None:
    """Do a change in one statement, which is written down with it; None where it can't be done so."""
    context = services(request)
    rows = {
        events.EVENTS: events.rows_of([quick.event]),
        audit.AUDIT: audit.rows_of(context.recorder.records(request, status, [quick.of])),
    }
    row = await context.database.at_once(quick.statement, quick.arguments, rows)
    return None if row is None else msgspec.convert(dict(row), Vm)


async def write(
    request: ApiRequest,
    work: Callable[[Connection], Awaitable[T]],
    *,
    status: int = 200,
    location: Callable[[Any], str] | None = None,
    recorded: bool = False,
    quick: Quick | None = None,
) -> Response[Any]:
    """Do ``work`` in one transaction and answer with what it returns.

    ``work`` may be done again from the beginning, when another transaction came between. With an ``Idempotency-Key``
    the request is done once; repeated, it gets the first answer again. Returns when this replica's cache has the write,
    so that the caller reads it; with ``?wait=`` so many seconds, when what was asked for has come about, or the time is
    over. ``recorded``: ``work`` writes into the audit log itself. ``quick`` is tried before ``work``: the same in one
    statement, which does nothing where what the cache knows is not so any more.
    """
    context = services(request)
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= limits.IDEMPOTENCY_KEY_LENGTH_MAX:
        raise InvalidInput(
            f"the key must have 1 to {limits.IDEMPOTENCY_KEY_LENGTH_MAX} characters", field="Idempotency-Key"
        )
    said = b"\0".join([request.method.encode(), request.url.path.encode(), await request.body()])

    def done_with(result: Resource, revision: int) -> Done:
        headers = {"ETag": etag(result.revision)}
        if location is not None:
            headers["Location"] = location(result)
        return Done(result, msgspec.json.encode(result), headers, revision)

    async def once(connection: Connection) -> idempotency.Answer | Done:
        if key is not None:
            # Keyed, for a body may hold a password.
            secret = context.authority.derive("idempotency keys")
            digest = hashlib.blake2b(said, key=secret, digest_size=32).digest()
            answer = await idempotency.claim(connection, request.user.id, key, digest)
            if answer is not None:
                return answer
        result = await work(connection)
        if not recorded:
            await context.recorder.done(connection, request, status, result)
        revision = result.revision
        if request.method == "DELETE":  # what is gone has its last revision but one
            revision = int(await connection.fetchval("SELECT pg_current_xact_id()::text"))
        made = done_with(result, revision)
        if key is not None:
            answer = idempotency.Answer(status, made.body, made.headers)
            await idempotency.settle(connection, request.user.id, key, answer)
        return made

    done: idempotency.Answer | Done | None = None
    if quick is not None and key is None:
        vm = await _quickly(request, quick, status)
        done = None if vm is None else done_with(vm, vm.revision)
    if done is None:
        done = await context.database.transact(once)
    if isinstance(done, idempotency.Answer):
        return Response(
            done.body,
            status_code=done.status,
            media_type=MediaType.JSON,
            headers={**done.headers, "Idempotency-Replayed": "true"},
        )
    result, body, headers, revision = done
    if not await context.cache.reached(revision, OWN_WRITE_WAIT_S):
        log.warning("the feed lags behind a write", write=revision, feed=context.cache.revision)
    wait_s = long_poll.asked(request)
    if wait_s:
        body, headers["ETag"] = await long_poll.settled(context.cache, result, body, headers["ETag"], wait_s)
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=headers)
