"""What others notice while one caller holds thousands of connections that do nothing (``script/bench api``)."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import ssl
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bench.api_load import Stand
from bench.report import Figure
from lab.held_connections import LASTING, SHORT, HeldConnections, ask, request

HELD_S_MAX = 180
ASK_S = 0.01
MORE_SHARE = 1.2
"""So many more are begun: those that the server has just closed are on their way again."""
P99_MS_MAX = 100.0


class Callers(NamedTuple):
    """The tokens of the viewer who holds connections, and of the member and the operator who work beside."""

    viewer: str
    member: str
    operator: str


def held_figures(stand: Stand, connections: int, seconds: float) -> list[Figure]:
    """Hold connections without a token and with a viewer's, as idle, slow and streaming as can be, and ask as others
    all the while, over a new connection each time."""
    client, tokens = stand.client, {}
    for name, role, project in (
        ("holder", "viewer", "default"), ("worker", "member", "default"), ("night", "operator", None),
    ):  # fmt: skip
        client.create_user(name, kind="service")
        client.grant(name, role, project)
        tokens[role] = client.create_token(name, user=name)["secret"]
    vm = str(next(iter(client.list("vms", limit=1)))["id"])
    callers = Callers(tokens["viewer"], tokens["member"], tokens["operator"])
    measured = asyncio.run(_measure(stand, vm, callers, connections, seconds))
    name = f"{connections:,} connections held by a stranger and a viewer"
    took_ms = measured.took_ms
    return [
        Figure(f"{name}: at least so many at once", measured.least, "", connections, at_least=True),
        Figure(f"  ... others' requests over new connections, p99 (of {len(took_ms)})",
               statistics.quantiles(took_ms, n=100)[98], "ms", P99_MS_MAX),
        Figure("  ... refused or not answered", measured.failed, "", 0),
    ]  # fmt: skip


class _Measured(NamedTuple):
    took_ms: list[float]
    failed: int
    least: int


async def _measure(stand: Stand, vm: str, callers: Callers, connections: int, seconds: float) -> _Measured:
    ca = stand.client.config.ca
    assert ca is not None
    holders, tls = HeldConnections(stand.ports[0], ca, callers.viewer, vm), ssl.create_default_context(cadata=ca)
    asked: Iterator[Callable[[], bytes]] = itertools.cycle(
        [
            lambda: request("GET", "/api/v1/vms?limit=20", callers.member),
            lambda: request("GET", "/api/v1/nodes", callers.operator),
            lambda: request("GET", "/healthz"),
            lambda: request("POST", "/api/v1/flavors?project=default", callers.member, _flavor()),
        ]
    )
    took_ms, statuses, least = list[float](), Counter[int](), connections * 2
    short = HeldConnections(stand.ports[0], ca, callers.viewer, vm)
    async with holders.hold(int(connections * MORE_SHARE), LASTING), short.hold(connections // 4, SHORT):
        await holders.until_held(connections, HELD_S_MAX)
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(took_ms) < 2:
            try:
                status, ms = await ask(stand.ports[0], tls, next(asked)())
                took_ms.append(ms)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                status = 0
            statuses[status] += 1
            least = min(least, holders.held.total())
            await asyncio.sleep(ASK_S)
    return _Measured(took_ms, sum(count for status, count in statuses.items() if status not in (200, 201)), least)


def _flavor() -> bytes:
    size = {"name": f"held-{secrets.token_hex(4)}", "spec": {"vcpus": 1, "memory_mib": 64}}
    return json.dumps(size).encode()
