"""No request is a server's failure, whatever is in its fields."""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from lab.replicas import Served
from tests.chance import fixed_seed, new_seed
from tests.integration.conftest import Api
from tests.security import fuzz_objects
from tests.security.fuzz import Fuzz, Hostile

ANSWER_S_MAX = 60.0
AT_ONCE = 8
QUICK = 400
SLOW_MIN = 50_000
SAID_EVERY = 5000

NEEDS_A_NODE = {
    "PUT /api/v1/nodes/{name}/log-level": "the agent changes its own level",
    "GET /api/v1/nodes/{name}/metrics": "the agent has them",
    "POST /api/v1/vms/{ref}/commands": "the guest agent runs it",
    "GET /api/v1/vms/{ref}/commands/{pid}": "the guest agent knows how it ended",
    "GET /api/v1/vms/{ref}/console-log": "the log is on the node",
    "GET /api/v1/vms/{ref}/file": "the guest has it",
    "PUT /api/v1/vms/{ref}/file": "the guest takes it",
    "GET /api/v1/vms/{ref}/screenshot": "QEMU makes it",
    "GET /api/v1/exports/{id}/data": "the file is on the node",
    "GET /api/v1/exports/{id}/firmware-state": "the file is on the node",
    "GET /api/v1/backups/{id}/file-systems": "the node reads the repository",
    "GET /api/v1/backups/{id}/files": "the node reads the repository",
    "GET /api/v1/backups/{id}/file": "the node reads the repository",
    "PUT /api/v1/imports/{id}/data": "the file goes to the node",
    "POST /api/v1/vms/{ref}/actions/foresee-migration": "the nodes look at the guest and at the path between them",
    "POST /api/v1/images/{name}/actions/copy": "nodes copy it",
    "POST /api/v1/links/actions/probe": "nodes probe it",
}
"""Operations that may answer 503, with the reason: the nodes of these tests exist as rows only."""


async def _exchange(streams: Any, hostile: Hostile, token: str) -> int:
    """Send a request and return the status of its answer; the body is read."""
    reader, writer = streams
    headers = {"Host": "nova", "Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    headers |= hostile.headers
    body = hostile.body or b""
    lines = [f"{hostile.method} {hostile.target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    writer.write("\r\n".join(lines).encode("latin-1") + body)
    await writer.drain()
    status = int((await reader.readline()).split()[1])
    first = await reader.read(65536)
    if b"text/event-stream" not in first:
        while await reader.read(65536):
            pass
    return status


async def _ask(port: int, context: ssl.SSLContext, hostile: Hostile, token: str) -> str | None:
    """Return what is wrong with the answer; None: nothing."""
    said = f"{hostile.at}: {hostile.method} {hostile.target[:200]} {hostile.headers} {(hostile.body or b'')[:300]!r}"
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            streams = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            try:
                status = await _exchange(streams, hostile, token)
            finally:
                streams[1].transport.abort()
    except TimeoutError:
        return f"no answer in {ANSWER_S_MAX:.0f} s: {said}"
    except (OSError, IndexError, asyncio.IncompleteReadError):
        return None  # the HTTP server itself closed the connection
    if status == 503 and hostile.route in NEEDS_A_NODE:
        return None
    return f"{status}: {said}" if status >= 500 else None


async def attack(served: Served, requests: Iterable[Hostile]) -> tuple[int, list[str]]:
    """Send requests, a few at a time; return how many there were, and which went wrong."""
    queue, wrong, counts = iter(requests), list[str](), Counter[str]()
    config = served.client.config
    context = ssl.create_default_context(cadata=config.ca)

    async def worker() -> None:
        for hostile in queue:
            counts["sent"] += 1
            fault = await _ask(served.replicas[0].port, context, hostile, config.token)
            if fault is not None:
                wrong.append(fault)
            if counts["sent"] % SAID_EVERY == 0:
                print(f"{counts['sent']} requests, {len(wrong)} wrong", flush=True)

    async with fuzz_objects.kept(served.postgres.url):
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return counts["sent"], wrong


@pytest.fixture(scope="module")
def fuzz(served: Served, api: Api) -> Iterator[Fuzz]:
    """Afterwards the tokens that it got are revoked: they use up what a user may have."""

    def tokens() -> set[str]:
        return {token["id"] for token in api("GET", "/api/v1/tokens").body["items"]}

    before = tokens()
    yield Fuzz(api("GET", "/schema").body, fuzz_objects.make(served.client, served.postgres.url))
    for token in tokens() - before:
        api("DELETE", f"/api/v1/tokens/{token}")


def _sample(fuzz: Fuzz, seed: int) -> Iterator[Hostile]:
    every = list(fuzz.requests())
    yield from random.Random(seed).sample(every, QUICK)
    yield from fuzz.several(seed, QUICK // 4)


async def test_no_hostile_field_is_a_server_failure(served: Served, fuzz: Fuzz) -> None:
    """A part of what the slow matrix sends."""
    seed = fixed_seed()
    _, wrong = await attack(served, _sample(fuzz, seed))
    assert not wrong, f"seed {seed}: {len(wrong)} failed:\n" + "\n".join(wrong[:20])


@pytest.mark.slow
@pytest.mark.timeout(5400)
async def test_no_hostile_value_in_any_field_is_a_server_failure(served: Served, fuzz: Fuzz) -> None:
    seed = new_seed()
    every = list(fuzz.requests())
    more = fuzz.several(seed, max(5000, SLOW_MIN - len(every)))
    sent, wrong = await attack(served, itertools.chain(every, more))
    print(f"{sent} hostile requests to {len(fuzz.operations)} operations: {len(wrong)} went wrong")
    assert sent >= SLOW_MIN
    assert not wrong, f"seed {seed}: {len(wrong)} of {sent} failed:\n" + "\n".join(wrong[:20])
