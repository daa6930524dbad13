"""Many open pages, as the server sees them: a part of ``script/bench web``. Each is a watch stream; what comes is
counted and thrown away."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import time
from typing import NamedTuple

from bench.api_load import Stand
from bench.report import Figure

PER_USER = 50
"""The server lets a user have so many streams, and some more."""
OPENED_AT_ONCE = 20
OPEN_S_MAX = 120.0
SETTLE_S = 2.0
KINDS = "vm,node,migration,network,volume,event,drain,project,snapshot"
CORES_MAX = 1.0


class _Counted(asyncio.Protocol):
    """A stream whose bytes are counted."""

    def __init__(self, request: bytes, opened: asyncio.Event) -> None:
        self._request, self._opened = request, opened
        self.received_bytes = 0
        self.refused = ""
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.received_bytes == 0 and not data.startswith(b"HTTP/1.1 101"):
            self.refused = data[:200].decode(errors="replace")
        self.received_bytes += len(data)
        self._opened.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._opened.set()


class Costs(NamedTuple):
    """What the server used while something happened."""

    cores: float
    memory_mib: float
    received_bytes: int


def stream_figures(stand: Stand, pages: int, rates: tuple[float, ...], seconds: float) -> list[Figure]:
    """Measure the server with many open pages: while nothing changes, and at some rates of changes."""
    tokens = []
    for number in range(-(-pages // PER_USER)):
        user = stand.client.create_user(f"page-{number}", kind="service")
        stand.client.grant(user["id"], "viewer", "default")
        tokens.append(stand.client.create_token("page", user=user["id"])["secret"])
    return asyncio.run(_measure(stand, tokens, pages, rates, seconds))


async def _measure(
    stand: Stand, tokens: list[str], pages: int, rates: tuple[float, ...], seconds: float
) -> list[Figure]:
    figures = []
    alone = {rate: await _costs(stand, [], rate, seconds) for rate in (0.0, *rates)}
    streams = await _open(stand, tokens, pages)
    try:
        for rate in (0.0, *rates):
            costs = await _costs(stand, [stream for stream, _ in streams], rate, seconds)
            lost = sum(stream.lost for stream, _ in streams)
            changes = f"{rate:g} VMs change a second" if rate else "nothing changes"
            added = costs.cores - alone[rate].cores
            figures.append(Figure(f"{pages:,} open pages, {changes}: processor added", added, "cores", CORES_MAX))
            figures.append(Figure("  ... received by each page", costs.received_bytes / pages / 1e3 / seconds, "kB/s"))
            figures.append(Figure("  ... pages that were cut off", lost, "", 0))
        figures.append(Figure("  ... memory added", costs.memory_mib - alone[0.0].memory_mib, "MiB"))
    finally:
        for _, transport in streams:
            transport.abort()
    return figures


async def _costs(stand: Stand, streams: list[_Counted], rate: float, seconds: float) -> Costs:
    """Return what the server uses while so many VMs change a second."""
    with stand.changing(rate):
        await asyncio.sleep(SETTLE_S)
        began, used, received = time.monotonic(), stand.cpu_s(), sum(one.received_bytes for one in streams)
        await asyncio.sleep(seconds)
        cores = (stand.cpu_s() - used) / (time.monotonic() - began)
    return Costs(cores, stand.memory_mib(), sum(one.received_bytes for one in streams) - received)


async def _open(stand: Stand, tokens: list[str], pages: int) -> list[tuple[_Counted, asyncio.Transport]]:
    """Open streams. Raises RuntimeError if one is refused."""
    context = ssl.create_default_context(cadata=stand.client.config.ca)
    few = asyncio.Semaphore(OPENED_AT_ONCE)

    async def open_one(number: int) -> tuple[_Counted, asyncio.Transport]:
        opened = asyncio.Event()
        stream = _Counted(_request(tokens[number // PER_USER]), opened)
        async with few:
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: stream, "127.0.0.1", stand.ports[0], ssl=context
            )
            await opened.wait()
        if stream.refused or stream.lost:
            raise RuntimeError(f"a stream was refused: {stream.refused}")
        return stream, transport

    async with asyncio.timeout(OPEN_S_MAX):
        return await asyncio.gather(*(open_one(number) for number in range(pages)))


def _request(token: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /api/v1/watch?kinds={KINDS} HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {token}\r\n"
        f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
