"""Admission: what every request passes before and after its route.

It gives each request an id and each response the headers that browsers need, answers from the response cache, enforces
rate limits, rejects requests while the server is overloaded, ends those that take too long, and counts and logs each.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from http.cookies import SimpleCookie
from typing import Any, NamedTuple

import msgspec
import structlog

from novacron.api.access.authentication import COOKIE
from novacron.api.access.context import Services
from novacron.api.access.recorder import UNSAFE, CompletedCall
from novacron.api.edge.rate_limits import Limit, Rates
from novacron.api.edge.unread_body import Message, Receive, Scope, Send, UnreadBody, may_remain
from novacron.api.read_model import response_cache
from novacron.api.read_model.principals import Caller
from novacron.model.access import Right
from novacron.model.token import TokenKind, hash_secret
from novacron.store.database import YIELDS
from novacron.telemetry import logs, traces
from novacron.telemetry.declared import REQUESTS_S
from novacron.telemetry.values import counter, histogram

log = logs.get(__name__)

App = Callable[[Any, Any, Any], Awaitable[None]]
Header = tuple[bytes, bytes]

IN_PROGRESS_MAX = 400
"""Requests in progress at once; more are rejected, except operators' and health checks."""
REQUEST_S_MAX = 100.0
"""Time limit of a request; longer than the longest wait that a request may ask for."""
ALWAYS_SERVED = ("/healthz", "/readyz")
NEVER_SHED = (*ALWAYS_SERVED, "/metrics")
"""An overload must be visible."""
ENDLESS = b"text/event-stream"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REFUSED = counter("novacron_api_refused_total")
DURATIONS = histogram("novacron_api_request_duration_seconds")
TRACEPARENT_BYTES = 64
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
SECRETS_KEPT = 10_000
SECURITY: list[Header] = [
    (b"x-content-type-options", b"nosniff"),
    (b"strict-transport-security", b"max-age=31536000"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]


class Refusal(NamedTuple):
    """A refused request, as its caller sees it."""

    status: int
    code: str
    title: str
    detail: str
    hint: str = ""
    retry_s: int = 0


OVERLOADED = Refusal(
    503, "overloaded", "Temporarily unavailable", "too many requests are in progress", "try again in a few seconds"
)
TIMED_OUT = Refusal(503, "timeout", "Temporarily unavailable", "the request took too long", "try again")
LEAVING = Refusal(503, "unavailable", "Temporarily unavailable", "this server is shutting down")


class _Request:
    """A request on its way."""

    __slots__ = ("address", "caller", "headers", "id", "limit_headers", "method", "path", "scope", "started")

    def __init__(self, scope: Scope, headers: dict[bytes, bytes], caller: Caller | None) -> None:
        self.started = time.perf_counter()
        self.scope, self.headers, self.caller = scope, headers, caller
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        client = scope.get("client")
        self.address: str = client[0] if client else "-"
        self.id = "-"
        self.limit_headers: list[Header] = []

    @property
    def parent_trace(self) -> str:
        """Return the caller's trace; unauthenticated callers can't choose what is recorded."""
        header = b"" if self.caller is None else self.headers.get(b"traceparent", b"")
        return header[:TRACEPARENT_BYTES].decode("latin-1")

    @property
    def may_be_shed(self) -> bool:
        """Say whether this is one of the requests that are rejected while the server is overloaded."""
        operates = self.caller is not None and self.caller.access.allows(Right.OPERATE, None)
        return self.path not in NEVER_SHED and not operates


class Admission:
    """An ASGI application around another."""

    def __init__(self, app: App, services: Services, rates: Rates) -> None:
        self._app = app
        self._services = services
        self._rates = rates
        self._response_cache = response_cache.ResponseCache(services.cache)
        self._digests: dict[bytes, str] = {}
        for reason in ("rate", "overload", "timeout"):
            REFUSED.cell(reason)  # an increase from nothing is not seen
        self.in_progress = 0
        """Requests that routes work on now."""
        self._cells: dict[tuple[str, str, int], tuple[list[float], list[float]]] = {}
        self._cached = counter("novacron_api_cached_answers_total").cell()
        self._prefix, self._count = secrets.token_hex(4), 0
        self.leaving = False
        """The server is about to end: ``/readyz`` says that it is not ready."""

    def caller(self, headers: dict[bytes, bytes]) -> Caller | None:
        """Return the caller whose token or session is in these headers; None: there is no valid one."""
        authorization = headers.get(b"authorization") or headers.get(b"cookie")
        if authorization is None:
            return None
        cookie = b"authorization" not in headers
        digest = self._digests.get(authorization)
        if digest is None:
            secret = _secret(authorization.decode("latin-1"), cookie=cookie)
            if secret is None:
                return None
            digest = hash_secret(secret).hex()
            if self._services.cache.callers.get(digest) is None:
                return None  # an unknown secret is not remembered
            if len(self._digests) >= SECRETS_KEPT:
                self._digests.clear()
            self._digests[authorization] = digest
        caller = self._services.cache.callers.get(digest)
        if caller is None or caller.expires_at_s <= time.time() or (caller.kind is TokenKind.SESSION) is not cookie:
            return None
        return caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request = _Request(scope, headers, self.caller(headers))
        if may_remain(scope, headers):
            unread = UnreadBody(receive, send, headers)
            receive, send = unread.receive, unread.send
        limit = self._rates.take(request.caller, request.address, request.method)
        request.limit_headers = limit.headers
        if limit.exceeded and request.path not in ALWAYS_SERVED:
            await self._reject(request, send, _rate_exceeded(limit), "rate")
        elif await self._answer_from_cache(request, send):
            return
        elif self.leaving and request.path == "/readyz":
            await _refuse(send, LEAVING)
        elif self.in_progress >= IN_PROGRESS_MAX and request.may_be_shed:
            await self._reject(request, send, OVERLOADED, "overload")
        else:
            await self._trace(request, receive, send)

    async def _reject(self, request: _Request, send: Send, refusal: Refusal, reason: str) -> None:
        retry_s = refusal.retry_s or 2
        headers = [*(request.limit_headers if reason == "rate" else ()), (b"retry-after", b"%d" % retry_s)]
        await _refuse(send, refusal, headers)
        REFUSED.add(reason)
        self._completed(request, refusal.status, "-")

    async def _answer_from_cache(self, request: _Request, send: Send) -> bool:
        """Answer if the response cache can, and say whether it could."""
        caller = request.caller
        if request.method != "GET" or caller is None or not self._services.cache.ready:
            return False
        answer = self._response_cache.answer(request.path, request.scope["query_string"], request.headers, caller)
        if answer is None:
            return False
        status, fields, body, route = answer
        headers = fields + request.limit_headers + SECURITY
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._services.recorder.used(caller.id, request.address)
        self._cached[0] += 1
        self._completed(request, status, route)
        if traces.drawn():
            traces.happened(
                f"GET {route}", time.perf_counter() - request.started, kind=traces.SpanKind.SERVER,
                http__request__method="GET", http__route=route, http__response__status_code=status, cached=True,
            )  # fmt: skip
        return True

    async def _trace(self, request: _Request, receive: Receive, send: Send) -> None:
        """Pass a request to its route, with an id, in a trace."""
        sent_id = request.headers.get(b"x-request-id", b"")
        if REQUEST_ID.match(sent_id):
            request.id = sent_id.decode()
        else:
            self._count += 1
            request.id = f"{self._prefix}-{self._count:x}"
        request.scope.setdefault("state", {})["request_id"] = request.id
        with (
            structlog.contextvars.bound_contextvars(request_id=request.id),
            traces.span(
                request.method, parent=request.parent_trace, always=request.method in UNSAFE,
                kind=traces.SpanKind.SERVER, http__request__method=request.method, url__path=request.path,
                client__address=request.address, request_id=request.id,
            ) as span,
        ):  # fmt: skip
            capture = self._response_cache.capture(request.scope, request.headers, request.caller)
            response = _Response(request, send, capture)
            try:
                await self._run(request, receive, response)
            finally:
                route = str(request.scope.get("path_template") or "-")
                _end_span(span, request, response.status, route)
                self._completed(request, response.status, route)

    async def _run(self, request: _Request, receive: Receive, response: _Response) -> None:
        """Run the route, within the time limit."""
        self.in_progress += 1
        YIELDS.set(request.may_be_shed)  # of this request's task alone
        try:
            if ENDLESS in request.headers.get(b"accept", b""):
                await self._app(request.scope, receive, response.send)
            else:
                async with asyncio.timeout(REQUEST_S_MAX):
                    await self._app(request.scope, receive, response.send)
        except TimeoutError:
            REFUSED.add("timeout")
            log.warning("a request took too long", path=request.path, request_id=request.id)
            if not response.started:
                await _refuse(response.send_raw, TIMED_OUT)
        finally:
            self.in_progress -= 1

    def _completed(self, request: _Request, status: int, route: str) -> None:
        """Count and log a request that was answered."""
        caller = request.scope.get("user") if request.caller is None else request.caller
        took_s = time.perf_counter() - request.started
        key = (request.method, route, status)
        count, durations = self._cells.get(key) or self._cells_of(*key)
        count[0] += 1
        bucket = bisect_left(REQUESTS_S, took_s)
        durations[bucket] += 1
        durations[-1] += took_s
        if request.id != "-" and (trace := traces.recorded_id()):
            DURATIONS.exemplify(durations, bucket, trace, took_s)
        name = caller.name if isinstance(caller, Caller) else "-"
        self._services.recorder.called(
            CompletedCall(request.method, route, status, took_s, name, request.address, request.id, request.path)
        )

    def _cells_of(self, method: str, route: str, status: int) -> tuple[list[float], list[float]]:
        """Return where such requests are counted. An unknown method is a client's word: all of them count as one."""
        label = method if method in METHODS else "other"
        cells = (
            counter("novacron_api_requests_total").cell(label, route, str(status)),
            histogram("novacron_api_request_duration_seconds").cell(label, route),
        )
        if label == method:
            self._cells[method, route, status] = cells
        return cells


class _Response:
    """A response on its way out, with the headers that all have."""

    def __init__(self, request: _Request, send: Send, capture: response_cache.Capture | None) -> None:
        self.status = 500
        self.started = False
        self.send_raw = send
        self._capture = capture
        self._headers = [(b"x-request-id", request.id.encode()), *request.limit_headers, *SECURITY]

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            message["headers"] = [*message["headers"], *self._headers]
        if self._capture is not None:
            self._capture.take(message)
        await self.send_raw(message)


def _end_span(span: traces.Span, request: _Request, status: int, route: str) -> None:
    span.update_name(f"{request.method} {route}")
    span.set_attributes({"http.route": route, "http.response.status_code": status})
    if status >= 500 and span.is_recording():
        traces.failed(f"answered {status}")
    elif status >= 500 and traces.exporting():
        traces.happened(
            f"{request.method} {route}", time.perf_counter() - request.started, parent=traces.carry(),
            kind=traces.SpanKind.SERVER, error=f"answered {status}", request_id=request.id, http__route=route,
            http__response__status_code=status,
        )  # fmt: skip


def _secret(text: str, *, cookie: bool) -> str | None:
    """Return the secret in an Authorization header, or in a cookie."""
    if cookie:
        morsel = SimpleCookie(text).get(COOKIE)
        return None if morsel is None else morsel.value
    scheme, _, secret = text.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def _rate_exceeded(limit: Limit) -> Refusal:
    return Refusal(
        429, "too-many-requests", "Too many requests", f"more than {limit.most} requests a second",
        f"try again in {limit.retry_s} s", limit.retry_s,
    )  # fmt: skip


async def _refuse(send: Send, refusal: Refusal, headers: Sequence[Header] = ()) -> None:
    """Answer with a problem document (RFC 9457)."""
    body = msgspec.json.encode(
        {
            "type": f"https://novacron.dev/problems/{refusal.code}", "title": refusal.title, "status": refusal.status,
            "code": refusal.code, "detail": refusal.detail, "instance": "", "hint": refusal.hint,
        }
    )  # fmt: skip
    fields = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": [*fields, *headers, *SECURITY]})
    await send({"type": "http.response.body", "body": body})
