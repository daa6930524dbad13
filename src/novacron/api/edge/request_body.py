"""Request bodies: received before a request counts as work, within limits of size and time, so that senders that are
slow or silent hold up nobody else.

The HTTP server closes a connection on which a part of a body is still to come, and a client that does not know this
loses its next request. A response to such a request says ``Connection: close``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from novacron.api.access.recorder import UNSAFE
from novacron.api.edge.slots import Full
from novacron.model import limits

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = dict[str, Any]

HELD_BYTES_MAX = max(limits.UPLOAD_PIECE_BYTES_MAX, limits.REQUEST_BODY_BYTES_MAX)
HELD_IN_ALL_BYTES_MAX = 256 * HELD_BYTES_MAX
DRAINED_BYTES_MAX = 16 * limits.REQUEST_BODY_BYTES_MAX
"""Of a body that is too large, so that its sender reads the answer."""
DRAIN_S_MAX = 10.0
CLOSE = (b"connection", b"close")


class BodyTimes(NamedTuple):
    """How long a body may take in all, and how long nothing of it may arrive."""

    total_s: float
    silence_s: float


OF_CALLERS = BodyTimes(90.0, 15.0)
OF_LOGINS = BodyTimes(10.0, 5.0)
OF_STRANGERS = BodyTimes(1.0, 1.0)
"""Of callers without a valid token, whose body no route reads."""


class LateBody(Exception):
    """A body did not arrive in time."""


class NotKnownYet(Exception):
    """A body was received as a stranger's, and only in part, and its sender turned out to be none."""


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


def has_body(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Say whether a request has a body (RFC 9112, section 6.3; RFC 9113, section 8.1)."""
    if scope["http_version"].startswith("2") and b"content-length" not in headers:
        return scope["method"] in UNSAFE
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


class HeldBytes:
    """How much of bodies is held, of all requests together."""

    def __init__(self, most: int = HELD_IN_ALL_BYTES_MAX) -> None:
        self.bytes, self._most = 0, most

    def add(self, count: int) -> None:
        """Raise Full when that is too much."""
        if self.bytes + count > self._most:
            raise Full(own=False)
        self.bytes += count


class RequestBody:
    """The body of a request: ``hold`` receives it, ``receive`` gives it to the route, and ``send`` sends the response,
    with ``Connection: close`` if a part of the body is still to come."""

    def __init__(self, receive: Receive, send: Send, headers: dict[bytes, bytes], in_all: HeldBytes) -> None:
        self._receive, self._send, self._in_all, self._held = receive, send, in_all, 0
        self._pieces: list[Message] = []
        self._whole, self._over = False, False
        self.asks_first = b"expect" in headers
        """Receiving the body would send 100 Continue first."""
        length = headers.get(b"content-length", b"")
        self._too_large = length.isdigit() and int(length) > HELD_BYTES_MAX

    async def hold(self, times: BodyTimes) -> None:
        """Receive the body, if it is not too large. Raises LateBody, ClientGone, Full."""
        if self._too_large and self.asks_first:
            return
        times = BodyTimes(min(times.total_s, DRAIN_S_MAX), times.silence_s) if self._too_large else times
        try:
            async with asyncio.timeout(times.total_s):
                await self._hold(times.silence_s)
        except TimeoutError:
            self._over = True  # whose receiving was cut off may have lost a part: nothing more is read
            raise LateBody from None

    async def _hold(self, silence_s: float) -> None:
        drained = 0
        while not self._whole and drained <= DRAINED_BYTES_MAX:
            async with asyncio.timeout(silence_s):
                message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            self._whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            if self._too_large or self._held > HELD_BYTES_MAX:
                drained += size
                message = {**message, "body": b""}
            else:
                self._in_all.add(size)
                self._held += size
            if message.get("body") or self._whole:
                self._pieces.append(message)
        self._over = drained > DRAINED_BYTES_MAX

    async def receive(self) -> Message:
        if self._pieces:
            return self._pieces.pop(0)
        if self._over:  # too large, or late
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._whole = self._whole or message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def forget(self) -> None:
        """Let go of the body: the request has ended."""
        self._pieces.clear()
        self._in_all.bytes -= self._held
        self._held = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._whole:
            message["headers"] = [*message["headers"], CLOSE]
        await self._send(message)
