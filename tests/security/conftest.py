"""One server with real PostgreSQL for all attacks of this folder, and objects to attack."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator

import pytest

from lab.replicas import Served, serving
from novacron import private_file
from novacron.store.database import Database
from tests.integration.conftest import Api
from tests.support.stored_fleet import add_node, add_vm

RATES = ("--reads-per-s", "100000", "--writes-per-s", "100000", "--strangers-per-s", "100000")


async def _fill(url: str) -> None:
    database = await Database.open(url, 2)
    async with database.transaction() as connection:
        for name, project in (("a", "prey"), ("fuzzed", "fuzzed")):
            await add_node(connection, f"host-{name}")
            await add_vm(connection, f"vm-{name}", f"host-{name}")
            await connection.execute("UPDATE vms SET project = $2 WHERE id = $1", f"vm-{name}", project)
    await database.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server without rate limits; its node and VM exist as rows only."""
    key = tmp_path_factory.mktemp("key") / "platform.key"
    private_file.write(key, base64.b64encode(os.urandom(32)))
    with serving(*RATES, "--platform-key", f"file:{key}") as platform:
        client = platform.client
        for name, project, address in (("a", "prey", "198.19.200.7"), ("fuzzed", "fuzzed", "198.19.200.8")):
            client.create_project(project, host_network=True)
            client.request("POST", f"/api/v1/networks?project={project}", {"name": f"net-{name}"})
            client.request("POST", f"/api/v1/security-groups?project={project}", {"name": f"group-{name}"})
            size = {"name": f"flavor-{name}", "spec": {"vcpus": 1, "memory_mib": 64}}
            client.request("POST", f"/api/v1/flavors?project={project}", size)
            client.request("POST", f"/api/v1/templates?project={project}", {"name": f"template-{name}", "spec": {}})
            client.request("POST", f"/api/v1/floating-addresses?project={project}", {"address": address})
        client.create_user("fuzzed", password=None)
        asyncio.run(_fill(platform.postgres.url))
        yield platform


@pytest.fixture(scope="session")
def api(served: Served) -> Api:
    return Api(served.client)
