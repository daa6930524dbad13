"""A stranger and a viewer who hold all the connections that they can get: everybody else gets in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from lab.held_connections import LASTING, HeldConnections, Streams, ask, connected, request
from lab.replicas import Served, serving
from novacron.server.connections import FIRST_REQUEST_S_MAX, FULL_SHARE
from tests.security.conftest import RATES
from tests.waiting import pause_async

FEW, MANY = 256, 2000
HELD_S_MAX = 300.0
ROUNDS = 5


class Callers(NamedTuple):
    """A platform, and the tokens of its users."""

    served: Served
    viewer: str
    member: str
    operator: str

    @property
    def port(self) -> int:
        return self.served.replicas[0].port

    @property
    def ca(self) -> str:
        ca = self.served.client.config.ca
        assert ca is not None
        return ca

    def requests(self, round: int) -> dict[str, tuple[bytes, int]]:
        """What is asked, of whom, and the status that is right."""
        flavor = json.dumps({"name": f"flavor-{round}", "spec": {"vcpus": 1, "memory_mib": 64}}).encode()
        return {
            "a member's read": (request("GET", "/api/v1/vms", self.member), 200),
            "a member's write": (request("POST", "/api/v1/flavors?project=default", self.member, flavor), 201),
            "an operator's read": (request("GET", "/api/v1/nodes", self.operator), 200),
            "a stranger's check": (request("GET", "/healthz"), 200),
            "a stranger's read": (request("GET", "/api/v1/vms"), 401),
        }  # fmt: skip


def callers(served: Served) -> Callers:
    tokens = []
    for name, role, project in (
        ("holder", "viewer", "default"), ("worker", "member", "default"), ("night", "operator", None),
    ):  # fmt: skip
        served.client.create_user(name, kind="service")
        served.client.grant(name, role, project)
        tokens.append(served.client.create_token(name, user=name)["secret"])
    return Callers(served, *tokens)


@pytest.fixture(scope="module")
def small() -> Iterator[Callers]:
    """A server that keeps few connections."""
    with serving(*RATES, "--connections-max", str(FEW)) as platform:
        yield callers(platform)


async def others_are_served(to: Callers, count: int, kinds: Sequence[str], enough: int) -> None:
    """Hold connections, and ask as everybody else, over a new connection each time."""
    holders, tls = HeldConnections(to.port, to.ca, to.viewer), ssl.create_default_context(cadata=to.ca)
    async with holders.hold(count, kinds):
        await holders.until_held(enough, HELD_S_MAX)
        for round in range(ROUNDS):
            for what, (sent, right) in to.requests(round).items():
                status, _ = await ask(to.port, tls, sent)
                assert status == right, (what, holders.held)


async def test_connections_that_do_nothing_keep_nobody_out(small: Callers) -> None:
    """More are tried than the server keeps, again and again."""
    await others_are_served(small, FEW + 100, LASTING, int(FEW * FULL_SHARE))
    closed = re.search(
        r'^novacron_api_connections_closed_total{reason="full"} (\S+)$', small.served.client.metrics(), re.MULTILINE
    )
    assert closed is not None and float(closed[1]) > 0


async def ended(streams: Streams) -> None:
    """Read until the server closes the connection."""
    with contextlib.suppress(OSError):
        while await streams[0].read(65536):
            pass


async def test_connections_with_requests_stay_for_longer_than_those_without(small: Callers) -> None:
    """One with a stream, and one with a request now and then."""
    tls, stream = ssl.create_default_context(cadata=small.ca), request("GET", "/api/v1/events", small.viewer)
    async with connected(small.port, tls) as streaming, connected(small.port, tls) as used:
        streaming[1].write(stream[:-2] + b"Accept: text/event-stream\r\n\r\n")
        assert (await streaming[0].readline()).split()[1] == b"200"
        stream_ended = asyncio.create_task(ended(streaming))
        over_at = time.monotonic() + FIRST_REQUEST_S_MAX + 3
        while time.monotonic() < over_at:
            used[1].write(request("GET", "/healthz"))
            head = await used[0].readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None, head
            await used[0].readexactly(int(length[1]))
            await pause_async(1)
        assert not stream_ended.done(), "the stream was closed while it was followed"
        stream_ended.cancel()


@pytest.mark.slow
async def test_two_thousand_connections_are_held_and_keep_nobody_out() -> None:
    with serving(*RATES) as platform:
        # Silent ones are closed after a while, and are on their way again.
        await others_are_served(callers(platform), MANY * 6 // 5, LASTING, MANY)
