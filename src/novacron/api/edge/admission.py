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
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie
from typing import Any

import structlog

from novacron.api.access.authentication import COOKIE
from novacron.api.access.client_address import ClientAddresses, ProxySettings, counted_as
from novacron.api.access.context import Services
from novacron.api.access.live_calls import GRACE_S, CallEnded
from novacron.api.access.recorder import UNSAFE, CompletedCall
from novacron.api.edge.in_progress import RequestsInProgress
from novacron.api.edge.rate_limits import Rates
from novacron.api.edge.refusals import (
    LATE_BODY,
    LEAVING,
    OVERLOADED,
    SECURITY,
    STARTING,
    TIMED_OUT,
    TOO_MANY,
    Header,
    Refusal,
    of_error,
    rate_exceeded,
    refuse,
)
from novacron.api.edge.request_body import (
    OF_CALLERS,
    OF_LOGINS,
    OF_STRANGERS,
    ClientGone,
    HeldBytes,
    LateBody,
    Message,
    NotKnownYet,
    Receive,
    RequestBody,
    Scope,
    Send,
    has_body,
)
from novacron.api.edge.slots import Full, SlotLimits, Slots
from novacron.api.read_model import response_cache
from novacron.api.read_model.principals import Caller
from novacron.model.access import Right
from novacron.model.errors import NovaError
from novacron.model.token import TokenKind, hash_secret
from novacron.store.database import YIELDS
from novacron.telemetry import logs, traces
from novacron.telemetry.declared import REQUESTS_S
from novacron.telemetry.values import counter, histogram

log = logs.get(__name__)

App = Callable[[Any, Any, Any], Awaitable[None]]

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
PUBLIC_WITH_BODY = ("/api/v1/login", "/api/v1/login/second-factor", "/api/v1/login/link", "/api/v1/join")
EVENTS = "/api/v1/events"
WAITS = re.compile(rb"(?:^|&)(?:newer_than|wait|min_revision)=")
"""Such requests wait for a change, which is no work."""
WORK = SlotLimits(IN_PROGRESS_MAX, IN_PROGRESS_MAX // 2, 40)
WAITING = SlotLimits(4000, 200, 100)
"""Streams, consoles, and requests that wait for a change."""
RECEIVING = SlotLimits(4000, 200, 64)
"""Requests whose body is on its way."""
CLOSE_REFUSED = 4429


class _Request:
    """A request on its way."""

    __slots__ = (
        "address",
        "caller",
        "counted_as",
        "headers",
        "id",
        "limit_headers",
        "method",
        "path",
        "scope",
        "started",
    )

    def __init__(self, scope: Scope, headers: dict[bytes, bytes], caller: Caller | None) -> None:
        self.started = time.perf_counter()
        self.scope, self.headers, self.caller = scope, headers, caller
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        client = scope.get("client")
        self.address: str = client[0] if client else "-"
        self.counted_as = counted_as(self.address)
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

    @property
    def user(self) -> str | None:
        return None if self.caller is None else self.caller.user

    @property
    def endless(self) -> bool:
        """Say whether this asks for a stream of events."""
        return self.path == EVENTS and ENDLESS in self.headers.get(b"accept", b"")

    @property
    def waits(self) -> bool:
        """Say whether most of the time that this takes is spent waiting for changes."""
        return self.caller is not None and (self.endless or WAITS.search(self.scope["query_string"]) is not None)


class Admission:
    """An ASGI application around another."""

    def __init__(self, app: App, services: Services, rates: Rates, proxies: ProxySettings | None = None) -> None:
        self._app = app
        self._addresses = ClientAddresses(proxies or ProxySettings())
        self._services = services
        self._rates = rates
        self._response_cache = response_cache.ResponseCache(services.cache)
        self._digests: dict[bytes, str] = {}
        for reason in ("rate", "overload", "slots", "body", "timeout"):
            REFUSED.cell(reason)  # an increase from nothing is not seen
        self.work, self.waiting, self.receiving = Slots(WORK), Slots(WAITING), Slots(RECEIVING)
        self._held = HeldBytes()
        self._cells: dict[tuple[str, str, int], tuple[list[float], list[float]]] = {}
        self._cached = counter("novacron_api_cached_answers_total").cell()
        self._prefix, self._count = secrets.token_hex(4), 0
        self._everywhere: list[Header] = []
        """Headers of every response."""
        self.certified()
        self.requests = RequestsInProgress()
        self.leaving = False
        """The server is about to end: ``/readyz`` says that it is not ready."""

    def certified(self) -> None:
        """Say from now on which authorities to trust: whoever knows others fetches these (``/api/v1/authority``)."""
        self._everywhere = [*SECURITY, (b"novacron-authorities", self._services.authority.trust_mark.encode())]

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

    @property
    def in_progress(self) -> int:
        """Return how many requests routes work on now."""
        return self.work.taken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if not scope["client"]:
            await self._pass(scope, receive, send)
            return
        peer = self.requests.begin(scope["client"])
        try:
            await self._pass(scope, receive, send)
        finally:
            self.requests.end(peer)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request or a WebSocket."""
        scope["headers"] = with_one_cookie(scope["headers"])
        if scope["client"]:  # from here on, everywhere: limits, failed logins, logs, the audit log
            peer, port = scope["client"]
            scope["client"] = (self._addresses.of(peer, scope["headers"]), port)
        if scope["type"] == "websocket":
            await self._open(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request = _Request(scope, headers, self.caller(headers))
        body = RequestBody(receive, send, headers, self._held) if has_body(scope, headers) else None
        if body is not None:
            receive, send = body.receive, body.send
        limit = self._rates.take(request.caller, request.counted_as, request.method)
        request.limit_headers = limit.headers
        if limit.exceeded and request.path not in ALWAYS_SERVED:
            await self._reject(request, send, rate_exceeded(limit.most, limit.retry_s), "rate")
        elif await self._answer_from_cache(request, send):
            return
        elif self.leaving and request.path == "/readyz":
            await refuse(send, LEAVING)
        else:
            await self._admit(request, body, receive, send)

    async def _admit(self, request: _Request, body: RequestBody | None, receive: Receive, send: Send) -> None:
        """Receive the body, if there is one, and pass the request on when there is a slot for it."""
        exempt = not request.may_be_shed
        try:
            if body is not None:
                with self.receiving.taken_for(request.user, request.counted_as, exempt=exempt):
                    await self._hold(request, body)
            stage = self.waiting if request.waits else self.work
            with stage.taken_for(request.user, request.counted_as, exempt=exempt):
                await self._trace(request, receive, send)
        except Full as full:
            await self._reject(request, send, TOO_MANY if full.own else OVERLOADED, "slots" if full.own else "overload")
        except LateBody:
            await self._reject(request, send, LATE_BODY, "body")
        except NotKnownYet:
            await self._reject(request, send, STARTING, "body")
        except CallEnded as ended:
            refusal = of_error(ended.reason)
            await refuse(send, refusal, request.limit_headers)
            self._completed(request, refusal.status, "-")
        except ClientGone:
            return
        finally:
            if body is not None:
                body.forget()

    async def _hold(self, request: _Request, body: RequestBody) -> None:
        """Receive a body. Raises LateBody, NotKnownYet, CallEnded, ClientGone, Full."""
        if request.caller is not None:
            await self._hold_of_caller(request.caller, body)
        elif request.path in PUBLIC_WITH_BODY:
            await body.hold(OF_LOGINS)
        elif not body.asks_first:  # the answer, a refusal, does not depend on it
            try:
                await body.hold(OF_STRANGERS)
            except LateBody:
                if self.caller(request.headers) is not None:  # known since: a route would read what is not whole
                    raise NotKnownYet from None

    async def _hold_of_caller(self, caller: Caller, body: RequestBody) -> None:
        """Receive a body as long as its caller has their rights. Raises LateBody, CallEnded, ClientGone, Full."""
        call = None
        try:
            async with asyncio.timeout(None) as limit:
                with self._services.live.watched(caller, limit) as call:
                    await body.hold(OF_CALLERS)
        except TimeoutError:
            if call is None or call.ended is None:
                raise
            raise CallEnded(call.ended) from None

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a WebSocket on, within the limits of rate and number."""
        headers = dict(scope["headers"])
        request = _Request({**scope, "method": "GET"}, headers, self.caller(headers))
        try:
            if self._rates.take(request.caller, request.counted_as, request.method).exceeded:
                raise Full(own=True)
            with self.waiting.taken_for(request.user, request.counted_as, exempt=not request.may_be_shed):
                await self._app(scope, receive, send)
        except Full:
            REFUSED.add("slots")
            await receive()  # its first message: it asks to be opened
            await send({"type": "websocket.close", "code": CLOSE_REFUSED, "reason": TOO_MANY.detail})

    async def _reject(self, request: _Request, send: Send, refusal: Refusal, reason: str) -> None:
        retry_s = refusal.retry_s or 2
        headers = [*(request.limit_headers if reason == "rate" else ()), (b"retry-after", b"%d" % retry_s)]
        await refuse(send, refusal, headers)
        REFUSED.add(reason)
        self._completed(request, refusal.status, "-")

    async def _answer_from_cache(self, request: _Request, send: Send) -> bool:
        """Answer if the response cache can, and say whether it could."""
        caller = request.caller
        cache = self._services.cache
        if request.method != "GET" or caller is None or not (cache.ready or cache.answers()):
            return False
        answer = self._response_cache.answer(request.path, request.scope["query_string"], request.headers, caller)
        if answer is None:
            return False
        status, fields, body, route = answer
        headers = fields + request.limit_headers + self._everywhere
        if (lag_s := cache.lag_s()) >= 1:
            headers.append(_age(lag_s))
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
            response = _Response(request, send, capture, self._everywhere)
            if request.method in ("GET", "HEAD"):
                response.lag_s = self._services.cache.lag_s
            try:
                await self._run(request, receive, response)
            finally:
                route = str(request.scope.get("path_template") or "-")
                _end_span(span, request, response.status, route)
                self._completed(request, response.status, route)

    async def _run(self, request: _Request, receive: Receive, response: _Response) -> None:
        """Run the route, within the time limit."""
        YIELDS.set(request.may_be_shed)  # of this request's task alone
        endless, call = request.endless, None
        try:
            async with asyncio.timeout(None if endless else REQUEST_S_MAX) as limit:
                if request.caller is None:
                    await self._app(request.scope, receive, response.send)
                else:
                    grace_s = 0 if endless else GRACE_S
                    with self._services.live.watched(request.caller, limit, grace_s=grace_s) as call:
                        await self._app(request.scope, receive, response.send)
        except TimeoutError:
            await self._cut_short(request, response, None if call is None else call.ended)

    async def _cut_short(self, request: _Request, response: _Response, ended: NovaError | None) -> None:
        """Answer a request that took too long, or whose caller's rights ended; end an answer that has begun."""
        if ended is None:
            REFUSED.add("timeout")
            log.warning("a request took too long", path=request.path, request_id=request.id)
        refusal = TIMED_OUT if ended is None else of_error(ended)
        if not response.started:
            await refuse(response.send_raw, refusal)
        elif ended is not None:
            await response.send_raw({"type": "http.response.body", "body": b"", "more_body": False})

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

    def __init__(
        self, request: _Request, send: Send, capture: response_cache.Capture | None, everywhere: list[Header]
    ) -> None:
        self.status = 500
        self.started = False
        self.send_raw = send
        self.lag_s: Callable[[], float] = lambda: 0.0
        """Returns how old the answer may be, in seconds."""
        self._capture = capture
        self._headers = [(b"x-request-id", request.id.encode()), *request.limit_headers, *everywhere]

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            own = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(header for header in self._headers if header[0] not in own)]
            if (lag_s := self.lag_s()) >= 1:
                message["headers"].append(_age(lag_s))
        if self._capture is not None:
            self._capture.take(message)
        await self.send_raw(message)


def _age(lag_s: float) -> Header:
    """Return the header that says how old an answer from memory may be (RFC 9111, 5.1)."""
    return b"age", b"%d" % lag_s


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


def with_one_cookie(headers: list[Header]) -> list[Header]:
    """Return headers with all cookies in one. Over HTTP/2, browsers send each cookie as a header of its own, and the
    rest of the server expects one header (RFC 9113, 8.2.3)."""
    cookies = [value for name, value in headers if name == b"cookie"]
    if len(cookies) < 2:
        return headers
    return [header for header in headers if header[0] != b"cookie"] + [(b"cookie", b"; ".join(cookies))]


def _secret(text: str, *, cookie: bool) -> str | None:
    """Return the secret in an Authorization header, or in a cookie."""
    if cookie:
        morsel = SimpleCookie(text).get(COOKIE)
        return None if morsel is None else morsel.value
    scheme, _, secret = text.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None
