"""Responses: reads from the watch cache, writes in one transaction and only once."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec
from litestar import Response
from litestar.enums import MediaType

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, Services, services
from novacron.api.edge import text
from novacron.api.read_model import long_poll
from novacron.model import limits
from novacron.model.errors import InvalidInput, NotFound, Unavailable
from novacron.model.key import KeyName
from novacron.model.vm import Vm
from novacron.store import audit, create_groups, deferred_writes, events, idempotency
from novacron.store.database import Connection
from novacron.store.new_vms import QuickVm
from novacron.store.vms import OneStatement
from novacron.telemetry import logs

log = logs.get(__name__)

REF_PATTERN = re.compile(r"^[a-z0-9.-]{1,80}\Z")
OWN_WRITE_WAIT_S = 1.0

Quick: TypeAlias = OneStatement | QuickVm
"""A change that one statement can do."""


class Resource(Protocol):
    @property
    def revision(self) -> int: ...


T = TypeVar("T", bound=Resource, covariant=True)


class Work(Protocol[T]):
    """Does what a request asks for in a transaction, and returns the object that it made or changed."""

    def __call__(self, connection: Connection, /) -> Awaitable[T]: ...


class Done(NamedTuple):
    """The result of a write: the object, its JSON, its headers, and the revision of the write."""

    object: Any
    body: bytes
    headers: dict[str, str]
    revision: int


def etag(revision: int) -> str:
    return f'"{revision}"'


def check_ref(kind: str, ref: str) -> str:
    """Return an id or name from a path. Raises NotFound when no object can have it."""
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


async def single(
    request: ApiRequest, kind: str, ref: str, newer_than: int | None = None, timeout_s: float = 0
) -> Response[Any]:
    """Answer with one object from the cache; with ``newer_than``, wait for a later revision first."""
    cache = services(request).cache
    check_ref(kind, ref)
    owned = authorization.scope_of(request.route_handler) is authorization.RouteScope.PROJECT
    entry = authorization.find(request, kind, ref) if owned else cache.get(kind, ref)
    if entry is not None and newer_than is not None and entry.revision <= newer_than:
        entry = await cache.changed(kind, str(entry.body.get("id", ref)), newer_than, timeout_s)
        if not cache.answers():
            raise Unavailable("this server has lost its database connection", hint="try again")
    if entry is None:
        raise authorization.no_such(kind, ref)
    headers = {"ETag": etag(entry.revision), "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(None, status_code=304, headers=headers)
    return Response(entry.json, media_type=MediaType.JSON, headers=headers)


@contextlib.asynccontextmanager
async def change(request: ApiRequest, changed: object = None) -> AsyncIterator[Connection]:
    """Open a transaction for a change that answers with no object of its own, and add its audit record.

    This replica's cache has the change when the block ends.
    """
    context = services(request)
    async with context.database.transaction() as connection:
        yield connection
        await context.recorder.done(connection, request, 200, changed)
        revision = int(await connection.fetchval("SELECT pg_current_xact_id()::text"))
    await context.cache.reached(revision, OWN_WRITE_WAIT_S)


async def _claim(request: ApiRequest) -> idempotency.KeyClaim | None:
    """Return the idempotency key that the request carries, or None. Raises InvalidInput."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= limits.IDEMPOTENCY_KEY_LENGTH_MAX:
        raise InvalidInput(
            f"the key must have 1 to {limits.IDEMPOTENCY_KEY_LENGTH_MAX} characters", field="Idempotency-Key"
        )
    content = b"\0".join([request.method.encode(), request.url.path.encode(), await request.body()])
    # With a secret, because a body may hold a password.
    first, *others = (
        hashlib.blake2b(content, key=secret, digest_size=32).digest()
        for secret in services(request).keys.accepted(KeyName.IDEMPOTENCY, "idempotency keys")
    )
    return idempotency.KeyClaim(request.user.id, key, first, tuple(others))


async def _in_one_statement(
    request: ApiRequest, change: Quick, claim: idempotency.KeyClaim | None, status: int, headers: dict[str, str]
) -> Done | None:
    """Do a change in one statement, with its key, events and audit record; None where that is not possible."""
    context = services(request)
    audited = audit.rows_of(context.recorder.records(request, status, [change.of]))
    done: tuple[Vm, bytes] | None
    if isinstance(change, QuickVm):
        done = await context.creates.create(create_groups.QuickCreate(change, audited[0], claim, headers))
    else:
        rows: dict[deferred_writes.Table, Sequence[Sequence[object]]] = {
            events.EVENTS: events.rows_of([change.event]), audit.AUDIT: audited
        }  # fmt: skip
        if claim is None:
            row = await context.database.at_once(change.statement, change.arguments, rows)
            vm = None if row is None else msgspec.convert(dict(row), Vm)
            done = None if vm is None else (vm, msgspec.json.encode(vm))
        else:
            done = await idempotency.change_vm_at_once(context.database, change, rows, claim, status, headers)
    if done is None:
        return None
    vm, body = done
    return Done(vm, body, {"ETag": etag(vm.revision), **headers}, vm.revision)


def _wait_s(request: ApiRequest) -> float:
    """Return how many seconds the caller waits for the result (``?wait=``), 0 by default. Raises InvalidInput."""
    asked = request.query_params.get("wait")
    if asked is None:
        return 0.0
    most = limits.LONG_POLL_S_MAX
    return float(text.natural(asked, "wait", hint=f"wait for 0 to {most} seconds", most=most))


class Writing(NamedTuple):
    """How a write is answered."""

    status: int = 200
    location: Callable[[Any], str] | None = None
    """Makes the Location header from the object."""
    recorded: bool = False
    """The work writes into the audit log itself."""

    def headers(self, created: object) -> dict[str, str]:
        """Return the headers that go with an object, besides its ETag."""
        return {} if self.location is None else {"Location": self.location(created)}


async def _once(
    request: ApiRequest, connection: Connection, work: Work[T], writing: Writing, claim: idempotency.KeyClaim | None
) -> idempotency.StoredAnswer | Done:
    """Do ``work`` in a transaction unless its key was used; return what it made, or the first answer."""
    if claim is not None:
        answer = await idempotency.claim(connection, claim)
        if answer is not None:
            return answer
    result = await work(connection)
    if not writing.recorded:
        await services(request).recorder.done(connection, request, writing.status, result)
    revision = result.revision
    if request.method == "DELETE":  # a deleted object has the revision before its deletion
        revision = int(await connection.fetchval("SELECT pg_current_xact_id()::text"))
    headers = {"ETag": etag(result.revision), **writing.headers(result)}
    done = Done(result, msgspec.json.encode(result), headers, revision)
    if claim is not None:
        answer = idempotency.StoredAnswer(writing.status, done.body, done.headers)
        await idempotency.settle(connection, claim, answer)
    return done


async def _readable(context: Services, revision: int) -> None:
    """Wait until the caller can read its own write, but no longer than a write may take."""
    if not await context.cache.reached(revision, OWN_WRITE_WAIT_S):
        log.warning("the feed lags behind a write", write=revision, feed=context.cache.revision)


async def write(
    request: ApiRequest,
    work: Work[T],
    *,
    status: int = 200,
    location: Callable[[T], str] | None = None,
    recorded: bool = False,
    statement: Quick | None = None,
) -> Response[Any]:
    """Do ``work`` in one transaction and answer with what it returns.

    ``work`` may run again from the beginning, when another transaction came between. With an ``Idempotency-Key`` the
    request is done once; repeated, it gets the first answer again. Returns when this replica's cache has the write, so
    that the caller can read it; with ``?wait=`` so many seconds, when the VM or other object has settled, or the time
    is over. ``recorded``: ``work`` writes into the audit log itself. ``statement`` is tried before ``work``: the same
    change in one statement, which does nothing if what the cache knows is out of date.
    """
    context, writing, claim = services(request), Writing(status, location, recorded), await _claim(request)
    done: idempotency.StoredAnswer | Done | None = None
    if statement is not None:
        done = await _in_one_statement(request, statement, claim, status, writing.headers(statement.of))
    if done is None:
        done = await context.database.transact(
            lambda connection: _once(request, connection, work, writing, claim)
        )  # fmt: skip
    if isinstance(done, idempotency.StoredAnswer):
        await _readable(context, int(done.headers["ETag"].strip('"')))
        headers = {**done.headers, "Idempotency-Replayed": "true"}
        return Response(done.body, status_code=done.status, media_type=MediaType.JSON, headers=headers)
    result, body, headers, revision = done
    await _readable(context, revision)
    wait_s = _wait_s(request)
    if wait_s:
        body, headers["ETag"] = await long_poll.settled(context.cache, result, body, headers["ETag"], wait_s)
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=headers)
