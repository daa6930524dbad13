"""Records of requests: the audit log, written in the transaction of each change, and soon after each refusal; and the
API's own log of calls, of which so many a second of those that change nothing are kept."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from litestar import Request as HttpRequest
from litestar.connection import ASGIConnection

from novacron.api.read_model.principals import Caller
from novacron.model.audit import ApiCall, AuditedRequest, AuditOutcome
from novacron.model.errors import Unavailable
from novacron.store import audit, tokens
from novacron.store.database import Connection, Database
from novacron.telemetry import logs
from novacron.telemetry.values import counter, gauge

log = logs.get(__name__)

PENDING_MAX = 10_000
"""Of refusals and calls that wait to be written."""
FLUSH_S, USES_S = 0.25, 30.0
READS_PER_S_MAX = 20.0
"""How many successful reads a second are logged."""
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
DETAIL_MAX, PATH_MAX = 300, 300
NOBODY = "-"
ACTIVE = timedelta(minutes=15)
TRIED = "tried_name"
"""Where a login notes, in its request's state, the name that was tried."""


class CompletedCall(NamedTuple):
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
    """Records requests. ``run`` must run, or refusals and calls are never written."""

    def __init__(self, database: Database, in_progress: Callable[[], Collection[str]]) -> None:
        """``in_progress`` returns the tokens and sessions whose calls go on: they are used, too."""
        self.lost = 0
        self._in_progress = in_progress
        """Refusals and calls that were not recorded, because too many waited."""
        self._database = database
        self._refused: deque[AuditedRequest] = deque()
        self._calls: deque[ApiCall] = deque()
        self._used: dict[str, tuple[datetime, str]] = {}
        self._used_at = time.monotonic()
        self._lately: dict[str, datetime] = {}
        gauge("novacron_active_tokens").read = lambda: {(): len(self._lately.keys() | self._used.keys())}
        self._reads = READS_PER_S_MAX
        self._reads_at = time.monotonic()

    async def done(
        self, connection: Connection, request: HttpRequest[Any, Any, Any], status: int, changed: object
    ) -> None:
        """Record a change, in its transaction. ``changed`` is the object, as far as it has an id and a name."""
        await self.done_all(connection, request, status, [changed])

    async def done_all(
        self, connection: Connection, request: HttpRequest[Any, Any, Any], status: int, changed: Sequence[object]
    ) -> None:
        """Record several changes of one request, in their transaction."""
        records = self.records(request, status, changed)
        if records:
            await audit.add(connection, records)

    def records(
        self, request: HttpRequest[Any, Any, Any], status: int, changed: Sequence[object]
    ) -> list[AuditedRequest]:
        """Return the audit records of changes."""
        return [_record(request, AuditOutcome.DONE, status, "", _changed(object)) for object in changed]

    def refused(self, request: HttpRequest[Any, Any, Any], status: int, detail: str) -> None:
        """Record, soon, a request that was refused or failed."""
        outcome = AuditOutcome.REFUSED if status in (401, 403, 429) else AuditOutcome.FAILED
        if outcome is AuditOutcome.FAILED and request.method not in UNSAFE:
            return
        if len(self._refused) >= PENDING_MAX:
            self.lost += 1
            counter("novacron_api_records_lost_total").add()
            return
        self._refused.append(_record(request, outcome, status, detail[:DETAIL_MAX]))

    def called(self, call: CompletedCall) -> None:
        """Record a call, soon; changes and failures are logged at once, too."""
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
        """Note that a token was used; it is stored within a minute."""
        self._used[token] = (datetime.now(UTC), address)

    async def run(self) -> None:
        """Write what waits, until cancelled; then write the rest."""
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
        in_progress = self._in_progress()
        if not used and not in_progress:
            return
        try:
            async with self._database.connection() as connection:
                await tokens.used(connection, used)
                await tokens.still_used(connection, in_progress)
        except Unavailable:  # next time
            self._used = used | self._used

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
        except Unavailable as error:  # what waits is kept, up to the limit
            log.warning("requests can't be recorded now; they are queued", error=str(error), waiting=len(refused))
            return
        except Exception:  # one bad record must not stop the server
            log.exception("requests can't be recorded", lost=len(refused) + len(calls))
            self.lost += len(refused) + len(calls)
        for waiting, written in ((self._refused, refused), (self._calls, calls)):
            for _ in written:
                waiting.popleft()


def address_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    client = connection.scope.get("client")
    return client[0] if client else NOBODY


def _text(text: str) -> str:
    """Return text of a caller as the database accepts it: without zero bytes and lone surrogates."""
    return text.replace("\0", "\\0").encode(errors="replace").decode()


def _changed(changed: object) -> _Changed:
    name = getattr(changed, "name", None) or getattr(changed, "vm_name", None)
    key = getattr(changed, "id", None) or getattr(changed, "address", None) or name
    return _Changed(key, name, getattr(changed, "project", None))


class _Changed(NamedTuple):
    """What a request changed."""

    object: str | None = None
    name: str | None = None
    project: str | None = None


def _tried(request: HttpRequest[Any, Any, Any]) -> str | None:
    """Return the name that a login tried."""
    name = request.scope.get("state", {}).get(TRIED)
    return None if name is None else _text(str(name))


def _record(
    request: HttpRequest[Any, Any, Any],
    outcome: AuditOutcome,
    status: int,
    detail: str,
    changed: _Changed | None = None,
) -> AuditedRequest:
    user = request.scope.get("user")
    caller = user if isinstance(user, Caller) else None
    handler = request.scope.get("route_handler")
    changed = changed or _Changed()
    object = changed.object
    if object is None:
        ref = next(iter(request.scope.get("path_params", {}).values()), None)
        object = None if ref is None else str(ref)[:200]
    return AuditedRequest(
        actor=caller.name if caller else NOBODY,
        user_id=caller.user if caller else None,
        token=caller.id if caller else None,
        address=address_of(request),
        method=request.method,
        path=_text(request.url.path[:500]),
        action=getattr(handler, "handler_name", NOBODY) if handler is not None else NOBODY,
        object=None if object is None else _text(object),
        name=changed.name or _tried(request),
        project=_text((changed.project or request.query_params.get("project") or "")[:100]) or None,
        outcome=outcome,
        status=status,
        detail=_text(detail),
        request_id=str(request.scope.get("state", {}).get("request_id", NOBODY)),
    )
