"""Clients who hold connections to a server and do nothing, or hardly anything, with them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence

OPEN_AT_ONCE = 50
SOURCE = "127.0.0.9"
"""The address of those who hold connections: nobody else has it."""
AGAIN_S = 0.5
"""A connection that the server closed is opened again so much later."""
POLL_S = 0.1
CONNECT_S_MAX = 30.0
FIRST_ANSWER_S_MAX = 30.0
H2_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
H2_GET = bytes((0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x87, 0x84, 0x41, 1)) + b"n"
"""HEADERS of stream 1, all that it has: GET, https, / and the host n (RFC 7541, appendix A)."""
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + H2_SETTINGS + H2_GET
"""What a client says first over HTTP/2 (RFC 9113, 3.4)."""
LASTING = ("keep-alive", "http/2", "stream", "keep-alive", "http/2", "silent")
"""Kinds that stay for a while; silent ones for less, so that a slow machine opens them as fast as they end."""
SHORT = ("slow header", "no body", "slow body", "wait")
"""Kinds that the server ends within seconds, and that come again."""
ANSWERED = ("keep-alive", "http/2", "stream")
"""Kinds that count as held once the server has said something."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HeldConnections:
    """Holds connections to a server's port. ``token`` is a viewer's, ``vm`` the id of a VM that he sees."""

    def __init__(self, port: int, ca: str, token: str = "", vm: str = "") -> None:
        self._port, self._token, self._vm = port, token, vm
        self._tls, self._tls_h2 = (ssl.create_default_context(cadata=ca) for _ in range(2))
        self._tls_h2.set_alpn_protocols(["h2"])
        self._opening = asyncio.Semaphore(OPEN_AT_ONCE)
        self.held = Counter[str]()
        """How many there are now, by kind."""

    @contextlib.asynccontextmanager
    async def hold(self, count: int, kinds: Sequence[str]) -> AsyncIterator[None]:
        """Hold so many connections, in turn of each kind, for as long as the block runs: those that the server closes
        are opened again."""
        tasks = [asyncio.create_task(self._hold(kinds[number % len(kinds)])) for number in range(count)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until_held(self, count: int, limit_s: float) -> None:
        """Wait until so many are held at once. Raises TimeoutError."""
        async with asyncio.timeout(limit_s):
            while self.held.total() < count:  # noqa: ASYNC110 (the server's other end tells nobody)
                await asyncio.sleep(POLL_S)

    def _opening_words(self, kind: str) -> bytes:
        """Return what a holder of this kind sends first."""
        token = f"Authorization: Bearer {self._token}\r\n"
        words = {
            "keep-alive": "GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n",
            "slow header": "GET / HTTP/1.1\r\nX: ",
            "no body": "POST /api/v1/vms HTTP/1.1\r\nHost: n\r\nContent-Length: 100\r\n\r\n",
            "slow body": f"POST /api/v1/vms HTTP/1.1\r\nHost: n\r\n{token}Content-Length: 100\r\n\r\n",
            "stream": f"GET /api/v1/events HTTP/1.1\r\nHost: n\r\n{token}Accept: text/event-stream\r\n\r\n",
            "wait": f"GET /api/v1/vms/{self._vm}?newer_than=9999999999&timeout_s=60 HTTP/1.1\r\nHost: n\r\n{token}\r\n",
        }
        return H2_PREFACE if kind == "http/2" else words.get(kind, "").encode()

    async def _hold(self, kind: str) -> None:
        """Hold one connection, and another one when it is closed, until cancelled."""
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                async with contextlib.AsyncExitStack() as stack:
                    async with self._opening:
                        tls = self._tls_h2 if kind == "http/2" else self._tls
                        reader, writer = await stack.enter_async_context(connected(self._port, tls, SOURCE))
                        writer.write(self._opening_words(kind))
                        await writer.drain()
                        if kind in ANSWERED:
                            async with asyncio.timeout(FIRST_ANSWER_S_MAX):
                                await reader.read(65536)
                    self.held[kind] += 1
                    stack.callback(self.held.subtract, (kind,))
                    await _dribble(reader, writer, slow=kind.startswith("slow"))
            await asyncio.sleep(AGAIN_S)


@contextlib.asynccontextmanager
async def connected(port: int, tls: ssl.SSLContext, source: str = "127.0.0.1") -> AsyncIterator[Streams]:
    """A connection of its own. Raises OSError, TimeoutError."""
    async with asyncio.timeout(CONNECT_S_MAX):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
    """Keep a connection until the server ends it; slow ones send a byte now and then."""
    while True:
        try:
            async with asyncio.timeout(3 if slow else None):
                if not await reader.read(65536):
                    return
        except TimeoutError:
            writer.write(b"x")
            await writer.drain()


def request(method: str, path: str, token: str = "", body: bytes = b"") -> bytes:
    """Return a request as it is sent."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: n\r\n{authorization}{length}\r\n".encode() + body


async def ask(port: int, tls: ssl.SSLContext, what: bytes) -> tuple[int, float]:
    """Ask over a connection that is opened for it; return the status, and how long all of it took in ms.

    Raises OSError, TimeoutError, IncompleteReadError.
    """
    started = time.perf_counter()
    async with connected(port, tls) as (reader, writer):
        writer.write(what)
        async with asyncio.timeout(CONNECT_S_MAX):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length")]
            await reader.readexactly(lengths[0] if lengths else 0)
    return int(head.split()[1]), 1e3 * (time.perf_counter() - started)
