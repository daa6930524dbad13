"""Refusals before any route runs, as problem documents (RFC 9457)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from novacron.api.edge.request_body import Send
from novacron.model.errors import NovaError

Header = tuple[bytes, bytes]
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
TOO_MANY = Refusal(
    429, "too-many-requests", "Too many requests", "this caller has too many requests in progress",
    "wait for some of them to end", 2,
)  # fmt: skip
TIMED_OUT = Refusal(503, "timeout", "Temporarily unavailable", "the request took too long", "try again")
LATE_BODY = Refusal(408, "request-timeout", "Request timeout", "the body did not arrive in time", "send it faster")
STARTING = Refusal(
    503, "unavailable", "Temporarily unavailable", "this server has not loaded its users yet", "try again"
)
LEAVING = Refusal(503, "unavailable", "Temporarily unavailable", "this server is shutting down")


def rate_exceeded(most: int, retry_s: int) -> Refusal:
    return Refusal(
        429, "too-many-requests", "Too many requests", f"more than {most} requests a second",
        f"try again in {retry_s} s", retry_s,
    )  # fmt: skip


def of_error(error: NovaError) -> Refusal:
    return Refusal(error.status, error.code, error.title, error.detail, error.hint or "")


async def refuse(send: Send, refusal: Refusal, headers: Sequence[Header] = ()) -> None:
    """Answer with a problem document."""
    body = msgspec.json.encode(
        {
            "type": f"https://novacron.dev/problems/{refusal.code}", "title": refusal.title, "status": refusal.status,
            "code": refusal.code, "detail": refusal.detail, "instance": "", "hint": refusal.hint,
        }
    )  # fmt: skip
    fields = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": [*fields, *headers, *SECURITY]})
    await send({"type": "http.response.body", "body": body})
