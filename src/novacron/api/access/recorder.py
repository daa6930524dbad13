"""What is written down of requests: the audit log, in the transaction of each change, and soon after each refusal; and
the API's own log of calls, of which those that change nothing are written down as far as that is cheap."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from litestar import Request as HttpRequest
from litestar.connection import ASGIConnection

from novacron.api.read_model.principals import Caller
from novacron.model.audit import ApiCall, Outcome, Request
from novacron.model.errors import Unavailable
from novacron.store import audit, tokens
from novacron.store.database import Connection, Database
from novacron.telemetry import logs
from novacron.telemetry.values import counter, gauge

log = logs.get(__name__)

PENDING_MAX = 10_000
"""Of refusals and calls that wait to be written down."""
FLUSH_S, USES_S = 0.25, 30.0
READS_PER_S_MAX = 20.0
"""Calls that changed nothing, and were answered: so many a second are written down."""
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
DETAIL_MAX, PATH_MAX = 300, 300
NOBODY = "-"
ACTIVE = timedelta(minutes=15)


class Call(NamedTuple):
    """A request that was answered."""

    method: str
    route: str
    status: int
    duration_s: float
    user: str
    address: str
    id: str
    path: str


class Recorder:
    """Writes down what was asked. ``run`` must run for refusals and calls."""

    def __init__(self, database: Database) -> None:
        self.lost = 0
        """Refusals and calls that were not written down: too many waited."""
        self._database = database
        self._refused: deque[Request] = deque()
        self._calls: deque[ApiCall] = deque()
        self._used: dict[str, tuple[datetime, str]] = {}
        self._used_at = time.monotonic()
        self._lately: dict[str, datetime] = {}
        gauge("novacron_active_tokens").read = lambda: {(): len(self._lately.keys() | self._used.keys())}
        self._reads = READS_PER_S_MAX
        self._reads_at = time.monotonic()

    async def done(
        self, connection: Connection, request: HttpRequest[Any, Any, Any], status: int, changed: Any
    ) -> None:
        """Write down a change, in its transaction. ``changed`` is the object, as far as it has an id and a name."""
        await self.done_all(connection, request, status, [changed])

    async def done_all(
        self, connection: Connection, request: HttpRequest[Any, Any, Any], status: int, changed: Sequence[Any]
    ) -> None:
        """Write down several changes of one request, in their transaction."""
        records = self.records(request, status, changed)
        if records:
            await audit.add(connection, records)

    def records(self, request: HttpRequest[Any, Any, Any], status: int, changed: Sequence[Any]) -> list[Request]:
        """Return what is to be written down of changes."""
        records = []
        for one in changed:
            name = getattr(one, "name", None) or getattr(one, "vm_name", None)
            key = getattr(one, "id", None) or getattr(one, "address", None) or name
            project = getattr(one, "project", None)
            records.append(_record(request, Outcome.DONE, status, "", object=key, name=name, project=project))
        return records

    def refused(self, request: HttpRequest[Any, Any, Any], status: int, detail: str) -> None:
        """Write down, soon, what was refused or has failed."""
        outcome = Outcome.REFUSED if status in (401, 403, 429) else Outcome.FAILED
        if outcome is Outcome.FAILED and request.method not in UNSAFE:
            return
        if len(self._refused) >= PENDING_MAX:
            self.lost += 1
            counter("novacron_api_records_lost_total").add()
            return
        self._refused.append(_record(request, outcome, status, detail[:DETAIL_MAX]))

    def called(self, call: Call) -> None:
        """Write down a call, soon; a change and a failure is logged at once, too."""
        if call.method in UNSAFE or call.status >= 400:
            log.info(
                "request", method=call.method, route=call.route, status=call.status,
                took_ms=round(call.duration_s * 1e3, 2), user=call.user, client=call.address, request_id=call.id,
                path=call.path[:PATH_MAX],
            )  # fmt: skip
        else:
            now = time.monotonic()
            self._reads = min(READS_PER_S_MAX, self._reads + (now - self._reads_at) * READS_PER_S_MAX)
            self._reads_at = now
            if self._reads < 1:
                return
            self._reads -= 1
        if len(self._calls) >= PENDING_MAX:
            self.lost += 1
            counter("novacron_api_records_lost_total").add()
            return
        self._calls.append(
            ApiCall(
                datetime.now(UTC), call.id, call.method, call.route, call.status, call.duration_s * 1e3, call.user,
                call.address,
            )
        )  # fmt: skip

    def used(self, token: str, address: str) -> None:
        """Remember, and write down within a minute, that a token was used."""
        self._used[token] = (datetime.now(UTC), address)

    async def run(self) -> None:
        """Write down what waits, until cancelled; then what is left."""
        try:
            while True:
                await asyncio.sleep(FLUSH_S)
                await self._flush()
                if time.monotonic() - self._used_at > USES_S:
                    await self._flush_uses()
        finally:
            await asyncio.shield(self._flush())

    async def _flush_uses(self) -> None:
        used, self._used, self._used_at = self._used, {}, time.monotonic()
        since = datetime.now(UTC) - ACTIVE
        self._lately = {token: at for token, at in self._lately.items() if at > since}
        self._lately |= {token: at for token, (at, _) in used.items()}
        if used:
            with contextlib.suppress(Unavailable):
                async with self._database.connection() as connection:
                    await tokens.used(connection, used)

    async def _flush(self) -> None:
        refused, calls = list(self._refused), list(self._calls)
        if not refused and not calls:
            return
        try:
            async with self._database.transaction() as connection:
                if refused:
                    await audit.add(connection, refused)
                if calls:
                    await audit.add_calls(connection, calls)
        except Unavailable as error:  # what waits is kept, up to its limit
            log.warning("what was asked can't be written down now", error=str(error), waiting=len(refused))
            return
        except Exception:  # a defect met with one request must not take the server away
            log.exception("what was asked can't be written down", lost=len(refused) + len(calls))
            self.lost += len(refused) + len(calls)
        for waiting, written in ((self._refused, refused), (self._calls, calls)):
            for _ in written:
                waiting.popleft()


def address_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    client = connection.scope.get("client")
    return client[0] if client else NOBODY


def _text(text: str) -> str:
    """Return what callers have sent as the database takes it: no zero bytes, no halves of characters."""
    return text.replace("\0", "\\0").encode(errors="replace").decode()


def _record(
    request: HttpRequest[Any, Any, Any], outcome: Outcome, status: int, detail: str, *, object: str | None = None,
    name: str | None = None, project: str | None = None,
) -> Request:  # fmt: skip
    caller = request.scope.get("user")
    known = caller if isinstance(caller, Caller) else None
    handler = request.scope.get("route_handler")
    if object is None:
        ref = next(iter(request.scope.get("path_params", {}).values()), None)
        object = None if ref is None else str(ref)[:200]
    return Request(
        actor=known.name if known else NOBODY,
        user_id=known.user if known else None,
        token=known.id if known else None,
        address=address_of(request),
        method=request.method,
        path=_text(request.url.path[:500]),
        action=getattr(handler, "handler_name", NOBODY) if handler is not None else NOBODY,
        object=None if object is None else _text(object),
        name=name,
        project=_text((project or request.query_params.get("project") or "")[:100]) or None,
        outcome=outcome,
        status=status,
        detail=_text(detail),
        request_id=str(request.scope.get("state", {}).get("request_id", NOBODY)),
    )
