"""The part of a request's body that no route has read when the request is answered.

The HTTP server closes a connection on which such a part is still to come, and a client that does not know this loses
its next request. So the rest of a body is read first if it is short; otherwise the response says ``Connection: close``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = dict[str, Any]

TAKEN_BYTES_MAX = 64 * 1024
WAIT_S_MAX = 1.0
CLOSE = (b"connection", b"close")


def may_remain(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Say whether a request has a body whose unread rest would block the connection (RFC 9112, section 9.3)."""
    if scope["http_version"].startswith("2"):
        return False
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


class UnreadBody:
    """Wraps the HTTP server's ``receive`` and ``send``: reads what the route left of the body before it answers."""

    def __init__(self, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:
        self._receive, self._send = receive, send
        self._asks_first = b"expect" in headers  # reading would send 100 Continue
        self._whole = False

    async def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._receive()
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and not self._whole and not await self._taken():
            message["headers"] = [*message["headers"], CLOSE]
        await self._send(message)

    async def _taken(self) -> bool:
        """Read the rest, within limits, and say whether that was all."""
        if self._asks_first:
            return False
        taken = 0
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                while not self._whole and taken <= TAKEN_BYTES_MAX:
                    taken += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return False
        return self._whole
