"""Forecasts over the API and from the command line: pages, filters, rights, words."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from lab.platform import until
from lab.replicas import Served, serving
from novacron.client import Client
from novacron.control.forecasts import AFTER_S
from novacron.model.capacity_forecast import (
    CapacityForecast,
    CapacityResource,
    GrowthRate,
    ResourceHistory,
    forecast_of,
)
from novacron.model.load_forecast import ForecastKind, ForecastModel
from novacron.model.load_hours import NodeHour, VmHour
from novacron.store import capacity, forecasts, load_history, unusual_loads
from novacron.store.database import connect
from novacron.store.forecasts import NewForecast, RoundSummary
from novacron.store.unusual_loads import NewUnusualLoad
from tests.integration.conftest import Api
from tests.support.stored_fleet import add_node, add_vm
from tests.waiting import eventually

TODAY = date(2026, 3, 1)
NODES, VMS = ("node-a", "node-b", "node-c"), ("vm-a", "vm-b", "vm-c")


@functools.cache
def hour() -> datetime:
    """Return the hour in which these tests began: a run as a whole takes longer than from one hour to the next."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def new(name: str, model: ForecastModel = ForecastModel.LEARNED) -> NewForecast:
    return NewForecast(name, model, 4.0, 3.0, 5.5, 2.0, 4.0, 2048, 600)


def site_full(name: str) -> CapacityForecast:
    known = ResourceHistory(CapacityResource.SITE_MEMORY, name, 4096, 8192, 30, usual_node=1024)
    return forecast_of(known, GrowthRate(100, 80, 128), TODAY)


async def _store(url: str) -> None:
    """Store three nodes and VMs, of which the first two have forecasts, a score, and the capacity of two sites."""
    connection = await connect(url)
    try:
        await _no_more_rounds(connection)
        for name, vm in zip(NODES, VMS, strict=True):
            await add_node(connection, name)
            await add_vm(connection, vm, at=name)
        await forecasts.store_nodes(connection, hour(), [new("node-a"), new("node-b", ForecastModel.LAST)])
        await forecasts.store_vms(connection, hour().date(), [new("vm-a"), new("vm-b")])
        now, before = (hour() - timedelta(hours=ago) for ago in (1, 2))
        await unusual_loads.replace(connection, [NewUnusualLoad("vm-b", before, now, 3.0, 1.0, 0.25)])
        await forecasts.store_nodes(connection, hour() - timedelta(hours=1), [new("node-c")])
        await connection.execute("UPDATE node_forecasts SET came = 5 WHERE node = 'node-c'")
        await forecasts.score_nodes(connection, hour())
        await connection.execute("DELETE FROM node_forecasts WHERE node = 'node-c'")
        await capacity.replace(connection, [site_full("west"), site_full("east")])
        hours = [int((hour() - timedelta(hours=ago)).timestamp()) for ago in (2, 26, 24 * 20)]
        for at_s in hours:
            await load_history.store_nodes(connection, [NodeHour("node-a", at_s, 3.0, 1.5, 1.0, 1.0, 2.0)])
            await load_history.store_vms(connection, [VmHour("vm-a", at_s, 250, 75)])
    finally:
        await connection.close()


async def _no_more_rounds(connection: asyncpg.Connection) -> None:
    """Let the server end the round that it makes at its start, and begin no other."""

    async def is_made() -> bool:
        return await forecasts.round_is_made(connection, hour())

    if datetime.now(UTC) > hour() + timedelta(seconds=AFTER_S):
        await eventually(is_made, "the round is made", 60)
    for hours in range(3):
        await forecasts.round_made(connection, hour() + timedelta(hours=hours), RoundSummary(1.0, 0, 0))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as running:
        asyncio.run(_store(running.postgres.url))
        until(lambda: len(list(running.client.list("vms"))) == len(VMS), "the server knows the VMs")
        yield running


@pytest.fixture
def ask(served: Served) -> Api:
    return Api(served.client)


def novacron(*words: str) -> str:
    command = [sys.executable, "-m", "novacron", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_nodes_and_vms_are_listed_with_their_forecasts_page_by_page(ask: Api) -> None:
    first = ask("GET", "/api/v1/forecasts/nodes?limit=2").body
    assert [(node["name"], node["forecast"]["cpu_peak"]) for node in first["items"]] == [("node-a", 4), ("node-b", 4)]
    learned, last = (node["forecast"] for node in first["items"])
    assert (learned["cpu_peak_lower"], learned["cpu_peak_upper"], learned["memory_mib"]) == (3.0, 5.5, 2048)
    assert learned["why"].startswith("learned") and last["why"].startswith("as in the last hour: the learned model is")
    rest = ask("GET", f"/api/v1/forecasts/nodes?limit=2&cursor={first['next']}").body
    assert [(node["name"], node["forecast"]) for node in rest["items"]] == [("node-c", None)] and rest["next"] is None
    of_node = ask("GET", "/api/v1/forecasts/vms?node=node-b").body["items"]
    assert [(vm["id"], vm["forecast"]["cpu_max"], vm["forecast"]["day"]) for vm in of_node] == [
        ("vm-b", 4.0, hour().date().isoformat())
    ]
    assert [vm["unusual"] for vm in ask("GET", "/api/v1/forecasts/vms?node=node-a").body["items"]] == [None]
    (unusual,) = ask("GET", "/api/v1/forecasts/vms?unusual=true").body["items"]
    assert (unusual["id"], unusual["unusual"]["cpu"], unusual["unusual"]["noisy"]) == ("vm-b", 3.0, False)
    words = "used 3.00 CPUs in the last hour, usually 0.75 to 1.25 at this time of the day"
    assert unusual["unusual"]["words"] == words
    assert ask("GET", "/api/v1/forecasts/vms?unusual=true&node=node-a").body["items"] == []
    assert ask("GET", "/api/v1/forecasts/nodes?site=nowhere").body["items"] == []
    assert len(ask("GET", "/api/v1/forecasts/nodes?site=default").body["items"]) == len(NODES)


def test_accuracy_is_answered_for_each_kind(ask: Api) -> None:
    nodes, vms = ask("GET", "/api/v1/forecasts/accuracy").body["items"]
    assert (nodes["kind"], nodes["scored"], nodes["error"], nodes["last_error"]) == ("node-hour", 1, 0.2, 0.6)
    assert nodes["coverage"] == 1.0 and nodes["aside_since"] is None
    assert vms["kind"] == ForecastKind.VM_WEEK and vms["scored"] == 0 and vms["error"] is None
    assert ask("GET", "/api/v1/forecasts/accuracy?days=0").problem["field"] == "days"


def test_the_load_of_past_hours_is_listed(ask: Api) -> None:
    ago = [(hour() - timedelta(hours=hours)).isoformat().replace("+00:00", "Z") for hours in (24 * 20, 26, 2)]
    for path, peak, mean in (("vms/vm-a", 2.5, 0.75), ("nodes/node-a", 3.0, 1.5)):
        hours = [{"hour": at, "cpu_peak": peak, "cpu_mean": mean} for at in ago]
        assert ask("GET", f"/api/v1/{path}/load").body["items"] == hours[1:], "the last two weeks"
        assert ask("GET", f"/api/v1/{path}/load?days=60").body["items"] == hours
    assert ask("GET", "/api/v1/vms/vm-b/load").body["items"] == []
    assert ask("GET", "/api/v1/nodes/nowhere/load").status == 404
    assert ask("GET", "/api/v1/vms/vm-a/load?days=61").problem["field"] == "days"
    assert "2.50" in novacron("vm", "load", "vm-a", "--days", "2") and "1.50" in novacron("node", "load", "node-a")


def test_capacity_is_paged_filtered_and_said_in_words(ask: Api) -> None:
    first = ask("GET", "/api/v1/capacity?limit=1").body
    assert first["items"][0]["name"] == "east" and first["items"][0]["full_on"] == "2026-04-11"
    rest = ask("GET", f"/api/v1/capacity?cursor={first['next']}").body
    assert [item["name"] for item in rest["items"]] == ["west"] and rest["next"] is None
    assert ask("GET", "/api/v1/capacity?resource=pool").body["items"] == []
    assert [item["name"] for item in ask("GET", "/api/v1/capacity?name=west").body["items"]] == ["west"]


@pytest.mark.parametrize(
    ("query", "field"),
    [("cursor=x", "cursor"), ("cursor=eyJhIjoxfQ", "cursor"), ("cursor=%C3%A9", "cursor"),
     ("resource=moon", "resource"), ("limit=0", "limit")],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_named(ask: Api, query: str, field: str) -> None:
    answer = ask("GET", f"/api/v1/capacity?{query}")
    assert answer.status == 400 and answer.problem["field"] == field


def test_a_project_sees_forecasts_of_its_own_vms_alone(served: Served, ask: Api) -> None:
    client: Client = served.client
    client.create_project("shop")
    tokens = {}
    for project in ("shop", "default"):
        user = client.create_user(f"viewer-{project}", kind="service")
        client.grant(user["id"], "viewer", project)
        tokens[project] = client.create_token("t", user=user["id"])["secret"]
    seen = {
        project: len(ask("GET", "/api/v1/forecasts/vms", token=token).body["items"])
        for project, token in tokens.items()
    }
    assert seen == {"shop": 0, "default": len(VMS)}
    assert ask("GET", "/api/v1/forecasts/vms?project=default", token=tokens["shop"]).status == 404
    assert ask("GET", "/api/v1/vms/vm-a/load", token=tokens["default"]).status == 200
    assert ask("GET", "/api/v1/vms/vm-a/load", token=tokens["shop"]).status == 404
    for path in ("forecasts/nodes", "forecasts/accuracy", "capacity", "nodes/node-a/load"):
        assert ask("GET", f"/api/v1/{path}", token=tokens["default"]).status == 403


def test_the_command_says_it_in_tables_words_and_json(served: Served) -> None:
    nodes = novacron("forecast", "nodes", "--limit", "2")
    assert "3.0 to 5.5" in nodes and "learned from what the fleet used" in nodes and "2.0 GiB" in nodes
    vms = novacron("forecast", "vms", "--sort=cpu-maximum")
    assert vms.index("vm-b") < vms.index("vm-c") and "nothing is known of its load lately" in vms
    accuracy = novacron("forecast", "accuracy")
    assert "20.0 %" in accuracy and "vm-week: no forecast was compared with what came yet" in accuracy
    said = novacron("capacity")
    assert said.count("is full on 11 April 2026 at this growth of 100.0 MiB a day") == 2
    (west,) = json.loads(novacron("capacity", "--name", "west", "-o", "json"))
    assert west["with_more_nodes"][1] == {"nodes": 2, "until": "2026-05-02"}
