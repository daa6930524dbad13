"""What others notice while one caller holds thousands of connections that do nothing (``script/bench api``)."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import NamedTuple

from bench.api_load import Stand
from bench.report import Figure

OPEN_AT_ONCE = 50
HELD_S_MAX = 60
AGAIN_S = 0.5
"""A holder whose connection was closed opens the next one so much later."""
KINDS = ("idle", "slow header", "no body", "slow body", "stream", "wait")
ASK_S = 0.01
P99_MS_MAX = 100.0


class Callers(NamedTuple):
    """The tokens of the viewer who holds connections, and of the member who works beside."""

    viewer: str
    member: str


def held_figures(stand: Stand, connections: int, seconds: float) -> list[Figure]:
    """Hold connections without a token and with a viewer's, as idle, slow and streaming as can be, and ask as another
    user all the while."""
    client = stand.client
    secrets = {}
    for name, role in (("holder", "viewer"), ("worker", "member")):
        client.create_user(name, kind="service")
        client.grant(name, role, "default")
        secrets[role] = client.create_token(name, user=name)["secret"]
    vm = next(iter(client.list("vms", limit=1)))
    callers = Callers(secrets["viewer"], secrets["member"])
    took_ms, statuses = asyncio.run(_measure(stand, vm, callers, connections, seconds))
    refused = sum(count for status, count in statuses.items() if status != 200)
    name = f"{connections:,} connections held by a stranger and a viewer: another user's read, p99 (of {len(took_ms)})"
    return [
        Figure(name, statistics.quantiles(took_ms, n=100)[98], "ms", P99_MS_MAX),
        Figure("  ... refused", refused, "", 0),
    ]


async def _measure(
    stand: Stand, vm: dict[str, object], callers: Callers, connections: int, seconds: float
) -> tuple[list[float], Counter[int]]:
    context = ssl.create_default_context(cadata=stand.client.config.ca)
    starting, held = asyncio.Semaphore(OPEN_AT_ONCE), Counter[str]()
    tasks = [
        asyncio.create_task(_hold(stand, context, KINDS[number % len(KINDS)], vm, callers.viewer, starting, held))
        for number in range(connections)
    ]
    try:
        for _ in range(HELD_S_MAX * 10):  # those that the server closes are opened again
            if sum(held.values()) >= connections // 2:
                break
            await asyncio.sleep(0.1)
        return await _ask(stand, context, callers.member, seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _connected(
    stand: Stand, context: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.ports[0], ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def _opening(kind: str, vm: dict[str, object], viewer: str) -> str:
    """Return what a holder of this kind sends first."""
    token = f"Authorization: Bearer {viewer}\r\n"
    return {
        "idle": "",
        "slow header": "GET / HTTP/1.1\r\nX: ",
        "no body": "POST /api/v1/vms HTTP/1.1\r\nHost: n\r\nContent-Length: 100\r\n\r\n",
        "slow body": f"POST /api/v1/vms HTTP/1.1\r\nHost: n\r\n{token}Content-Length: 100\r\n\r\n",
        "stream": f"GET /api/v1/events HTTP/1.1\r\nHost: n\r\n{token}Accept: text/event-stream\r\n\r\n",
        "wait": f"GET /api/v1/vms/{vm['id']}?newer_than=9999999999&timeout_s=60 HTTP/1.1\r\nHost: n\r\n{token}\r\n",
    }[kind]


async def _hold(
    stand: Stand, context: ssl.SSLContext, kind: str, vm: dict[str, object], viewer: str,
    starting: asyncio.Semaphore, held: Counter[str],
) -> None:  # fmt: skip
    """Hold one connection, and another one when it is closed, until cancelled."""
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            async with contextlib.AsyncExitStack() as stack:
                async with starting:
                    reader, writer = await stack.enter_async_context(_connected(stand, context))
                    writer.write(_opening(kind, vm, viewer).encode())
                    await writer.drain()
                held[kind] += 1
                stack.callback(held.subtract, (kind,))
                await _dribble(reader, writer, slow=kind.startswith("slow"))
        await asyncio.sleep(AGAIN_S)


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


async def _ask(stand: Stand, context: ssl.SSLContext, member: str, seconds: float) -> tuple[list[float], Counter[int]]:
    """Ask over a connection of its own, many times a second; return how long each took in ms, and the statuses."""
    took_ms, statuses = list[float](), Counter[int]()
    until = time.monotonic() + seconds
    request = f"GET /api/v1/vms?limit=20 HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {member}\r\n\r\n".encode()
    async with _connected(stand, context) as (reader, writer):
        while time.monotonic() < until or len(took_ms) < 2:
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.partition(b":")[2])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
            took_ms.append(1e3 * (time.perf_counter() - started))
            statuses[int(head.split()[1])] += 1
            await asyncio.sleep(ASK_S)
    return took_ms, statuses
