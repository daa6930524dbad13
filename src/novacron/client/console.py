"""A console of a VM: bytes to and from its guest, over the API's WebSocket.

The socket is used by one thread, which no one else sees: Python's TLS may lose what one thread sends while another one
waits for something to receive.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from novacron.client.errors import Unreachable

T = TypeVar("T")

OPEN_S, CLOSE_S = 10.0, 2.0
CLOSED = "closed"
"""The reason where there is none: one of the two ends wanted it so."""
GONE = "the server is gone"
"""The reason if nobody has said one: opened again, the console goes on."""


class ConsoleEnded(Exception):
    """It is closed: says why, nothing if one of the two ends wanted it so."""


class Console:
    """An open console. ``url`` has the ticket in it. Any thread may use it. Raises Unreachable."""

    def __init__(self, url: str, ca: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="console", daemon=True)
        self._thread.start()
        try:
            self._socket: ClientConnection = self._do(self._open(url, ssl.create_default_context(cadata=ca or None)))
        except (OSError, TimeoutError, WebSocketException) as error:
            self._end()
            raise Unreachable(f"can't open the console: {str(error) or type(error).__name__}") from error

    async def _open(self, url: str, context: ssl.SSLContext) -> ClientConnection:
        # No pings: a caller that does not read for a while would not see the answers. TCP notices who is gone.
        return await connect(
            url, ssl=context, compression=None, proxy=None, max_size=None, ping_interval=None,
            open_timeout=OPEN_S, close_timeout=CLOSE_S,
        )  # fmt: skip

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def send(self, data: bytes) -> None:
        """Send bytes to the guest. Raises ConsoleEnded."""
        try:
            self._do(self._socket.send(data))
        except ConnectionClosed as closed:
            raise ConsoleEnded(_reason(closed)) from closed

    def recv(self, timeout_s: float | None = None) -> bytes:
        """Return the next bytes of the guest's. Raises ConsoleEnded, TimeoutError."""
        try:
            return self._do(self._recv(timeout_s))
        except ConnectionClosed as closed:
            raise ConsoleEnded(_reason(closed)) from closed

    async def _recv(self, timeout_s: float | None) -> bytes:
        async with asyncio.timeout(timeout_s):
            data = await self._socket.recv()
        return data if isinstance(data, bytes) else data.encode()

    def close(self) -> None:
        """Close it. Whoever waits for something gets ConsoleEnded."""
        if self._thread.is_alive():
            self._do(self._socket.close(reason=CLOSED))

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._end()


def _reason(closed: ConnectionClosed) -> str:
    reason = closed.rcvd.reason if closed.rcvd else GONE
    return "" if reason == CLOSED else reason
