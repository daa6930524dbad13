"""One server with real PostgreSQL for all attacks of this folder, and objects to attack."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from lab.replicas import Served, serving
from novacron.store.database import Database
from tests.integration.conftest import Api
from tests.support.stored_fleet import add_node, add_vm

RATES = ("--reads-per-s", "100000", "--writes-per-s", "100000", "--strangers-per-s", "100000")


async def _fill(url: str) -> None:
    database = await Database.open(url, 2)
    async with database.transaction() as connection:
        await add_node(connection, "host-a")
        await add_vm(connection, "vm-a", "host-a")
        await connection.execute("UPDATE vms SET project = 'prey'")
    await database.close()


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """A server without rate limits; its node and VM exist as rows only."""
    with serving(*RATES) as platform:
        client = platform.client
        client.create_project("prey", host_network=True)
        asyncio.run(_fill(platform.postgres.url))
        client.request("POST", "/api/v1/networks?project=prey", {"name": "net-a"})
        client.request("POST", "/api/v1/security-groups?project=prey", {"name": "group-a"})
        client.request("POST", "/api/v1/floating-addresses?project=prey", {"address": "198.19.200.7"})
        yield platform


@pytest.fixture(scope="session")
def api(served: Served) -> Api:
    return Api(served.client)
