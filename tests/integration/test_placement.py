"""Where VMs are placed, on real nodes, and how that is explained."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import pytest

from lab.platform import Platform, until
from novacron.client import ApiError
from tests.integration.conftest import Api
from tests.waiting import pause

NewVm = Callable[..., dict[str, Any]]
WATCHED_S = 3.0
TRIES_MAX = 6
"""In a minute, which this test never takes."""


@pytest.fixture(autouse=True)
def as_they_were(site: Platform) -> Iterator[None]:
    """Nodes are afterwards what they were before."""
    specs = {node["name"]: node["spec"] for node in site.client.list("nodes")}
    yield
    for name, spec in specs.items():
        fields = ("site", "zone", "labels", "taints", "vcpu_overcommit", "memory_overcommit")
        site.client.configure_node(name, **{field: spec[field] for field in fields})


def placed(site: Platform, vm: dict[str, Any]) -> str:
    node_name: str = until(lambda: site.client.get("vms", vm["id"])["node"], "it is placed")
    return node_name


def test_labels_taints_and_groups_decide_placement_and_a_dry_run_gives_reasons(site: Platform, new_vm: NewVm) -> None:
    site.cli("node", "set", "host-a", "--label", "disk=ssd", "--label", "gone=1", "--zone", "rack-1")
    shown = site.cli("node", "set", "host-a", "--label", "gone-", "--taint", "gpu").stdout
    assert "disk=ssd" in shown and "gone" not in shown and "gpu=no-schedule" in shown and "rack-1" in shown
    said = site.cli("vm", "create", "dry", "--image", "tiny", "--require-label", "disk=ssd", "--dry-run").stdout
    assert "node host-a has the taint gpu" in said and "node host-b does not have the label disk=ssd" in said
    assert all(vm["name"] != "dry" for vm in site.client.list("vms"))
    off = {"power": "stopped", "memory_mib": 64}
    assert placed(site, new_vm(**off, placement={"labels": {"disk": "ssd"}, "tolerations": ["gpu"]})) == "host-a"
    assert {placed(site, new_vm(**off)) for _ in range(3)} == {"host-b"}
    site.cli("node", "set", "host-a", "--taint", "gpu-")
    assert {placed(site, new_vm(**off, placement={"spread": "web"})) for _ in range(2)} == {"host-a", "host-b"}
    together = {placed(site, new_vm(**off, placement={"affinity": "pair"})) for _ in range(3)}
    assert len(together) == 1
    apart = [new_vm(**off, placement={"anti_affinity": "db"}) for _ in range(3)]
    until(lambda: sum(site.client.get("vms", vm["id"])["node"] is not None for vm in apart) == 2, "two are placed")
    unplaced = next(vm for vm in apart if site.client.get("vms", vm["id"])["node"] is None)
    until(
        lambda: "anti-affinity group db" in site.client.get("vms", unplaced["id"])["status"]["reason"], "it is said why"
    )
    moved = next(vm for vm in apart if vm is not unplaced)
    verdicts = {
        v["node"]: v["refusal"] for v in json.loads(site.cli("vm", "placement", moved["name"], "-o", "json").stdout)
    }
    here = site.client.get("vms", moved["id"])["node"]
    assert verdicts[here] == f"it is on node {here} already"
    with pytest.raises(ApiError, match="anti-affinity"):
        site.client.act("vms", moved["id"], "migrate", {})


def test_many_creates_at_once_fill_nodes_and_overfill_none(site: Platform, api: Api, new_vm: NewVm) -> None:
    before = Counter(vm["node"] for vm in site.client.list("vms"))
    assert not before, "nobody else is here"
    for name in ("host-a", "host-b"):
        inventory = site.client.get("nodes", name)["status"]["inventory"]
        fits = 64 * 30.5 / (inventory["memory_mib"] - 512)
        site.client.configure_node(name, memory_overcommit=max(fits, 0.1), vcpu_overcommit=1000)
    size = 64
    room = int((inventory["memory_mib"] - 512) * max(fits, 0.1)) // 30
    size = max(size, room)
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda _: new_vm(power="stopped", memory_mib=size), range(100)))

    def counts() -> Counter[str | None]:
        mine = {vm["id"] for vm in created}
        return Counter(vm["node"] for vm in site.client.list("vms") if vm["id"] in mine)

    until(lambda: counts()[None] == 40, "60 are placed", 30)
    assert counts() == {"host-a": 30, "host-b": 30, None: 40}
    waiting = next(vm for vm in site.client.list("vms") if vm["node"] is None)
    until(lambda: "is full" in site.client.get("vms", waiting["id"])["status"]["reason"], "it is said why")
    refused = api("POST", "/api/v1/vms", {"name": "one-more", "image": "tiny", "memory_mib": size, "node": "host-a"})
    assert refused.status == 409 and refused.problem["code"] == "no-capacity"
    gone = next(vm for vm in site.client.list("vms") if vm["node"] == "host-b")
    site.client.delete("vms", gone["id"])
    until(lambda: counts() == {"host-a": 30, "host-b": 30, None: 39}, "the next one takes its place", 30)


def test_waiting_vms_cause_no_writes(site: Platform, new_vm: NewVm) -> None:
    site.cli("node", "set", "host-a", "--label", "only=here")
    stays = site.wait_state(new_vm(node="host-a", placement={"labels": {"only": "here"}})["id"], "running")
    waits = new_vm(placement={"labels": {"only": "nowhere"}})
    until(lambda: "only=nowhere" in site.client.get("vms", waits["id"])["status"]["reason"], "it is said why it waits")
    site.client.act("nodes", "host-a", "drain")
    drain = next(iter(site.client.list("drains", limit=1, node="host-a")))
    until(lambda: site.client.get("drains", drain["id"])["stays"], "it is said what can't leave")

    def written() -> tuple[int, ...]:
        objects = [site.client.get("vms", vm["id"]) for vm in (stays, waits)]
        events = [len(list(site.client.list("events", object=vm["id"]))) for vm in (stays, waits)]
        return (*(item["revision"] for item in objects), *events)

    def same_for_a_second() -> bool:
        before = written()
        pause(1)
        return written() == before

    try:
        until(same_for_a_second, "what the drain changes is written")
        before = written()
        pause(WATCHED_S)
        assert written() == before, "each would wake the controller that wrote it, without an end"
        tried = [stay["tries"] for stay in site.client.get("drains", drain["id"])["stays"]]
        assert max(tried) <= TRIES_MAX, "a drain tries again after 2 s, and each time after twice as long"
    finally:
        site.client.act("nodes", "host-a", "uncordon")
        site.cli("node", "set", "host-a", "--label", "only-")


def test_a_vm_with_devices_waits_for_a_node_that_has_them_and_stays_there_while_it_runs(
    site: Platform, api: Api, new_vm: NewVm
) -> None:
    address = "0000:01:00.0"
    assert api("PATCH", "/api/v1/nodes/host-a", {"passthrough": ["01:00.0"]}).problem["field"] == "passthrough"
    site.cli("node", "set", "host-a", "--passthrough", address)
    assert site.client.get("nodes", "host-a")["spec"]["passthrough"] == [address]
    site.cli("node", "set", "host-a", "--passthrough", f"{address}-")
    assert site.client.get("nodes", "host-a")["spec"]["passthrough"] == []
    vm = new_vm(devices=["8086:10fb"], memory_mib=64)
    until(
        lambda: "no devices 8086:10fb" in site.client.get("vms", vm["id"])["status"]["reason"], "it says what it lacks"
    )
    vm = site.wait_state(new_vm(image="disk", memory_mib=128)["id"], "running")
    # There is no such device here: let the database say that it has one.
    asyncio.run(store_devices(site, vm["id"], '["8086:10fb"]'))
    for path, body, words in (
        ("actions/migrate", {}, "has devices of "),
        ("actions/migrate", {"warm": True}, "has devices of "),
        ("snapshots", {"name": "whole", "memory": True}, "has host devices"),
    ):
        refused = api("POST", f"/api/v1/vms/{vm['id']}/{path}", body)
        assert refused.status == 409 and words in refused.problem["detail"]
    asyncio.run(store_devices(site, vm["id"], "[]"))


async def store_devices(site: Platform, vm: str, devices: str) -> None:
    connection = await asyncpg.connect(site.postgres.url)
    try:
        await connection.execute(
            "UPDATE vms SET spec = jsonb_set(spec, '{devices}', $2::jsonb) WHERE id = $1", vm, devices
        )
    finally:
        await connection.close()
