"""Several processes that answer people, as one server does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from lab.platform import Service, until
from lab.replicas import serving
from novacron.client import ApiError, AsyncClient, Client
from novacron.model.project import Project, Quota
from novacron.telemetry.shared import WRITE_S
from tests.waiting import pause


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Client, Service]]:
    """A server with two workers beside its own process."""
    with serving("--workers", "3", "--leave-after", "5") as platform:
        yield platform.client, platform.server


def workers_of(server: Service) -> list[int]:
    assert server.process is not None
    pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [int(pid) for pid in pids if b"server.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def listeners(port: int) -> int:
    """Return how many sockets listen on a port: one for each process."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines)


def ask(client: Client) -> tuple[int, int]:
    """Ask over a new connection, in a process that is left to chance: what each answers itself, and what the one with
    the agents' links has to be asked for."""
    fresh = Client(client.config)
    try:
        fresh.request("POST", "/api/v1/links/actions/probe", {"source": "none", "target": "none2", "seconds": 0.5})
    except ApiError as error:
        return len(list(fresh.list("projects"))), error.status
    raise AssertionError("there are no such nodes")


def test_each_process_answers_everything_and_is_replaced(served: tuple[Client, Service]) -> None:
    client, server = served
    port = int(client.config.url.rpartition(":")[2])
    until(lambda: listeners(port) == 3, "all processes listen", 30)
    assert {ask(client) for _ in range(30)} == {(1, 404)}
    for number in range(10):
        name = f"made-{number}"
        created = Client(client.config).create_project(name)
        seen = Client(client.config).request("GET", f"/api/v1/projects/{name}?min_revision={created['revision']}")
        assert seen["name"] == name, "whichever process is asked"
    killed = workers_of(server)
    assert len(killed) == 2
    os.kill(killed[0], signal.SIGKILL)
    until(lambda: len(workers_of(server)) == 2 and killed[0] not in workers_of(server), "another one is started", 30)
    until(lambda: listeners(port) == 3, "it listens", 30)
    assert {ask(client) for _ in range(30)} == {(11, 404)}


def counted(client: Client) -> dict[str, float]:
    """Return the exposed metrics by name and label values."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(client.metrics())
        for sample in family.samples
    }


def test_every_worker_process_reports_the_counts_of_all(served: tuple[Client, Service]) -> None:
    client, server = served
    until(lambda: counted(client)["novacron_processes"] == 3, "all have written what they counted", 90)
    requests = "novacron_api_requests_total GET /api/v1/projects 200"
    seen: list[float] = []

    def all_were_counted() -> bool:
        seen.append(counted(client)[requests])
        pause(2 * WRITE_S)
        return counted(client)[requests] == seen[-1]

    until(all_were_counted, "what was asked before is counted")
    before = seen[-1]
    for _ in range(30):
        ask(client)
    durations = "novacron_api_request_duration_seconds_count GET /api/v1/projects"

    def all_are_counted() -> bool:
        said = counted(Client(client.config))
        assert said[requests] <= before + 30, "each is counted once"
        return said[requests] == before + 30 and said[durations] >= before + 30

    until(all_are_counted, "all are counted")
    said = counted(client)
    for counts in ("database_query_duration_seconds_count insert", "database_transactions_total committed",
                   "feed_changes_total project", "controller_steps_total placement done"):  # fmt: skip
        assert said[f"novacron_{counts}"] > 0
    os.kill(workers_of(server)[0], signal.SIGKILL)
    until(lambda: len(workers_of(server)) == 2, "another one is started", 30)
    until(lambda: counted(Client(client.config))["novacron_processes"] == 3, "it counts", 30)
    assert counted(client)[requests] == before + 30, "what the one that was killed counted stays"


async def test_worker_processes_answer_many_concurrent_calls(served: tuple[Client, Service]) -> None:
    config = served[0].config
    names = {f"many-{number}" for number in range(20)}
    async with AsyncClient(config) as client:
        projects = await asyncio.gather(*(client.create_project(name) for name in names))
        # Each process answers: one of them may not have seen the newest project yet.
        newest = str(max(project["revision"] for project in projects))
        assert names <= {project["name"] async for project in client.list("projects", min_revision=newest)}
        assert (await client.me())["user"] == "administrator"
        assert names <= {project.name async for project in client.every(Project, min_revision=newest)}
        assert (await client.one(Project, "many-0")).quota == Quota()
        assert await client.do(lambda blocking: blocking.me()["user"]) == "administrator"
        assert "novacron_" in await client.metrics()
        with pytest.raises(ApiError):
            await client.get("projects", "none")
        changes = client.stream(after=int(newest), kinds="project")
        await asyncio.gather(*(client.delete("projects", name) for name in names))
        deleted: set[str] = set()
        async with asyncio.timeout(10):
            async for kind, project in changes:
                assert kind == "project"
                deleted.add(project.get("name") or project["id"])
                if len(deleted) == len(names):
                    break


def test_a_stopping_server_announces_it_first_and_stops_its_workers(
    served: tuple[Client, Service],
) -> None:
    client, server = served
    pids = workers_of(server)
    assert server.process is not None
    server.process.terminate()

    def leaving() -> bool:
        context = ssl.create_default_context(cadata=client.config.ca)
        with urllib3.PoolManager(ssl_context=context) as pool, contextlib.suppress(urllib3.exceptions.HTTPError):
            return bool(pool.request("GET", f"{client.config.url}/readyz", retries=False).status == 503)
        return False

    until(leaving, "it says that it is not ready")
    assert server.process.wait(30) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
