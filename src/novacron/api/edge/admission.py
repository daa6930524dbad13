"""The door: what every request passes before and after the routes, whichever it is for.

It gives each request an id and each answer the headers that browsers need, answers hot reads by itself, limits how
often callers ask, turns away what would be too much, ends what takes too long, and writes the API's log.
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

import msgspec
import structlog

from novacron.api.access.authentication import COOKIE
from novacron.api.access.context import Services
from novacron.api.access.recorder import UNSAFE
from novacron.api.edge.rate_limits import Rates
from novacron.api.edge.unread_body import Remainder, may_remain
from novacron.api.read_model import response_cache
from novacron.api.read_model.principals import Caller
from novacron.model.access import Right
from novacron.model.token import TokenKind, hash_secret
from novacron.store.database import YIELDS
from novacron.telemetry import logs, traces
from novacron.telemetry.declared import REQUESTS_S
from novacron.telemetry.values import counter, histogram

log = logs.get(__name__)

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
Header = tuple[bytes, bytes]

IN_WORK_MAX = 400
"""Requests that are worked on at once; more are turned away, but for operators and for who asks how the server is."""
REQUEST_S_MAX = 100.0
"""Longer than the longest wait that a request may ask for."""
ALWAYS_SERVED = ("/healthz", "/readyz")
NEVER_SHED = (*ALWAYS_SERVED, "/metrics")
"""When too much is asked, somebody has to see it."""
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


class Door:
    """An ASGI application around another."""

    def __init__(self, app: App, services: Services, rates: Rates) -> None:
        self._app = app
        self._services = services
        self._rates = rates
        self._hot = response_cache.Hot(services.cache)
        self._digests: dict[bytes, str] = {}
        for reason in ("rate", "overload", "timeout"):
            REFUSED.cell(reason)  # an increase from nothing is not seen
        self.in_work = 0
        """Requests that routes work on now."""
        self._cells: dict[tuple[str, str, int], tuple[list[float], list[float]]] = {}
        self._cached = counter("novacron_api_cached_answers_total").cell()
        self._prefix, self._count = secrets.token_hex(4), 0
        self.leaving = False
        """The server is about to end: who asks whether it is ready hears that it is not."""

    def caller(self, headers: dict[bytes, bytes]) -> Caller | None:
        """Return who sends these headers, if that is anybody who may call."""
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
                return None  # what is wrong is not remembered
            if len(self._digests) >= SECRETS_KEPT:
                self._digests.clear()
            self._digests[authorization] = digest
        found = self._services.cache.callers.get(digest)
        if found is None or found.expires_at_s <= time.time() or (found.kind is TokenKind.SESSION) is not cookie:
            return None
        return found

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        if may_remain(scope, headers):
            remainder = Remainder(receive, send, headers)
            receive, send = remainder.receive, remainder.send
        method, path = scope["method"], scope["path"]
        caller = self.caller(headers)
        client = scope.get("client")
        address = client[0] if client else "-"
        limit = self._rates.take(caller, address, method)
        if limit.exceeded and path not in ALWAYS_SERVED:
            extra = [*limit.headers, (b"retry-after", str(limit.retry_s).encode())]
            detail, hint = f"more than {limit.most} requests a second", f"try again in {limit.retry_s} s"
            await _refuse(send, 429, "too-many-requests", "Too many requests", detail, hint, extra)
            REFUSED.add("rate")
            self._called(scope, method, 429, started, caller, address, "-")
            return
        if method == "GET" and caller is not None and self._services.cache.ready:
            answer = self._hot.answer(path, scope["query_string"], headers, caller)
            if answer is not None:
                status, fields, body, route = answer
                await send(
                    {"type": "http.response.start", "status": status, "headers": fields + limit.headers + SECURITY}
                )
                await send({"type": "http.response.body", "body": body})
                self._services.recorder.used(caller.id, address)
                self._cached[0] += 1
                self._called(scope, method, status, started, caller, address, route)
                if traces.drawn():
                    traces.happened(
                        f"{method} {route}", time.perf_counter() - started, kind=traces.SpanKind.SERVER,
                        http__request__method=method, http__route=route, http__response__status_code=status,
                        cached=True,
                    )  # fmt: skip
                return
        if self.leaving and path == "/readyz":
            await _refuse(send, 503, "unavailable", "Temporarily unavailable", "this server is about to end", "", [])
            return
        if self.in_work >= IN_WORK_MAX and path not in NEVER_SHED and not _operates(caller):
            await _refuse(send, 503, "overloaded", "Temporarily unavailable",
                          "too many requests are worked on", "try again in a few seconds",
                          [(b"retry-after", b"2")])  # fmt: skip
            REFUSED.add("overload")
            self._called(scope, method, 503, started, caller, address, "-")
            return
        await self._pass(scope, receive, send, headers, limit.headers, started, caller, address)

    async def _pass(
        self, scope: Any, receive: Receive, send: Send, headers: dict[bytes, bytes], limit: list[Header],
        started: float, caller: Caller | None, address: str,
    ) -> None:  # fmt: skip
        given = headers.get(b"x-request-id", b"")
        if REQUEST_ID.match(given):
            id = given.decode()
        else:
            self._count += 1
            id = f"{self._prefix}-{self._count:x}"
        scope.setdefault("state", {})["request_id"] = id
        method = scope["method"]
        told = b"" if caller is None else headers.get(b"traceparent", b"")  # strangers do not say what is recorded
        parent = told[:TRACEPARENT_BYTES].decode("latin-1")
        with (
            structlog.contextvars.bound_contextvars(request_id=id),
            traces.span(
                method, parent=parent, always=method in UNSAFE, kind=traces.SpanKind.SERVER,
                http__request__method=method, url__path=scope["path"], client__address=address, request_id=id,
            ) as span,
        ):  # fmt: skip
            await self._work(scope, receive, send, headers, limit, started, caller, address, id, span)

    async def _work(
        self, scope: Any, receive: Receive, send: Send, headers: dict[bytes, bytes], limit: list[Header],
        started: float, caller: Caller | None, address: str, id: str, span: traces.Span,
    ) -> None:  # fmt: skip
        status = 500
        capture = self._hot.capture(scope, headers, caller)

        async def out(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"], (b"x-request-id", id.encode()), *limit, *SECURITY
                ]  # fmt: skip
            if capture is not None:
                capture.take(message)
            await send(message)

        self.in_work += 1
        YIELDS.set(scope["path"] not in NEVER_SHED and not _operates(caller))  # of this request's task alone
        try:
            if ENDLESS in headers.get(b"accept", b""):
                await self._app(scope, receive, out)
            else:
                async with asyncio.timeout(REQUEST_S_MAX):
                    await self._app(scope, receive, out)
        except TimeoutError:
            REFUSED.add("timeout")
            log.warning("a request took too long", path=scope["path"], request_id=id)
            if status == 500:
                await _refuse(send, 503, "timeout", "Temporarily unavailable", "it took too long", "try again", [])
        finally:
            self.in_work -= 1
            route = str(scope.get("path_template") or "-")
            span.update_name(f"{scope['method']} {route}")
            span.set_attributes({"http.route": route, "http.response.status_code": status})
            if status >= 500 and span.is_recording():
                traces.failed(f"answered {status}")
            elif status >= 500 and traces.exporting():
                traces.happened(
                    f"{scope['method']} {route}", time.perf_counter() - started, parent=traces.carry(),
                    kind=traces.SpanKind.SERVER, error=f"answered {status}", request_id=id, http__route=route,
                    http__response__status_code=status,
                )  # fmt: skip
            self._called(scope, scope["method"], status, started, caller, address, route, id)

    def _called(
        self, scope: Any, method: str, status: int, started: float, caller: Caller | None, address: str, route: str,
        id: str = "-",
    ) -> None:  # fmt: skip
        who = scope.get("user") if caller is None else caller
        name = who.name if isinstance(who, Caller) else "-"
        took_s = time.perf_counter() - started
        count, durations = self._cells.get((method, route, status)) or self._counted(method, route, status)
        count[0] += 1
        bucket = bisect_left(REQUESTS_S, took_s)
        durations[bucket] += 1
        durations[-1] += took_s
        if id != "-" and (trace := traces.recorded_id()):
            DURATIONS.exemplify(durations, bucket, trace, took_s)
        self._services.recorder.called(method, route, status, took_s, name, address, id, scope["path"])

    def _counted(self, method: str, route: str, status: int) -> tuple[list[float], list[float]]:
        """Return where such requests are counted. A method that there is none is a client's word."""
        known = method if method in METHODS else "other"
        cells = (
            counter("novacron_api_requests_total").cell(known, route, str(status)),
            histogram("novacron_api_request_duration_seconds").cell(known, route),
        )
        if known == method:
            self._cells[method, route, status] = cells
        return cells


def _secret(text: str, *, cookie: bool) -> str | None:
    """Return the secret in an Authorization header, or in a cookie."""
    if cookie:
        found = SimpleCookie(text).get(COOKIE)
        return None if found is None else found.value
    scheme, _, secret = text.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def _operates(caller: Caller | None) -> bool:
    return caller is not None and caller.access.allows(Right.OPERATE, None)


async def _refuse(
    send: Send, status: int, code: str, title: str, detail: str, hint: str, headers: list[Header]
) -> None:  # fmt: skip
    """Answer with a problem document (RFC 9457)."""
    body = msgspec.json.encode(
        {
            "type": f"https://novacron.dev/problems/{code}", "title": title, "status": status, "code": code,
            "detail": detail, "instance": "", "hint": hint,
        }
    )  # fmt: skip
    fields = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fields + headers + SECURITY})
    await send({"type": "http.response.body", "body": body})
