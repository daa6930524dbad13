"""Migrations within the budgets of links and nodes, on real QEMU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.guest import shell
from lab.platform import Platform, until
from novacron.client import ApiError

NewVm = Callable[..., dict[str, Any]]
SLOW = 10_000_000
"""Bytes a second; a first move of the tiny guest is some ten megabytes."""
TOLERANCE = 1.3


@pytest.fixture
def link(site: Platform) -> Iterator[Platform]:
    for name in ("host-a", "host-b"):
        site.client.configure_node(name, migrations_at_once=2)
    yield site
    for listed in site.client.list("links"):
        site.client.unlimit_link(*listed["sites"])
    for name in ("host-a", "host-b"):
        site.client.configure_node(name, site="default", migration_rate_bytes_per_s=None, migrations_at_once=None)


def other(node: str) -> str:
    return {"host-a": "host-b", "host-b": "host-a"}[node]


def booted(site: Platform, vm: dict[str, Any]) -> str:
    node = str(site.wait_state(vm["id"], "running")["node"])
    until(lambda: "tiny guest: ready" in site.console_log(vm, node), "it has booted", 60)
    return node


def test_a_migration_keeps_to_its_own_limit(link: Platform, new_vm: NewVm) -> None:
    vm = new_vm()
    node = booted(link, vm)
    done = link.cli("vm", "migrate", vm["name"], "--to", other(node), "--max-rate", "80Mbit", "--output", "json")
    assert '"phase": "completed"' in done.stdout
    migration = next(iter(link.client.list("migrations", vm=vm["name"])))
    assert migration["rate_limit_bytes_per_s"] == migration["rate_bytes_per_s"] == SLOW
    progress = migration["progress"]
    assert progress["wire_bytes"] / progress["elapsed_s"] < SLOW * TOLERANCE, progress


def test_a_link_is_shared_by_weight_and_its_limit_counts_at_once(link: Platform, new_vm: NewVm) -> None:
    link.cli("node", "set", "host-a", "--site", "east")
    link.cli("node", "set", "host-b", "--site", "west", "--migration-rate", "1Gbit")
    link.cli(
        "link",
        "set",
        "west",
        "east",
        "--rate",
        "8Mbit",
        "--less",
        "00:00-23:59=5Mbit",
        "--less",
        "23:59-00:00=5Mbit",
    )
    machines = [new_vm(image="noisy", memory_mib=256) for _ in range(2)]  # they take a while
    nodes = [booted(link, vm) for vm in machines]
    begun = [
        link.client.act("vms", vm["id"], "migrate", {"target": other(node), "weight": weight})
        for vm, node, weight in zip(machines, nodes, (1, 3), strict=True)
    ]

    def rates() -> list[int | None]:
        return [link.client.get("migrations", m["id"])["rate_bytes_per_s"] for m in begun]

    # 5 Mbit/s are too little for two: the second one waits.
    until(
        lambda: "link east/west has no bandwidth" in str(link.client.get("migrations", begun[1]["id"])["waits_for"]),
        "it waits",
    )
    assert rates() == [625_000, None]
    link.client.limit_link("east", "west", 10_000_000)
    until(lambda: rates() == [2_500_000, 7_500_000], "both run, by weight")
    link.client.unlimit_link("west", "east")
    for m in begun:
        ended = link.client.wait("migrations", m["id"], lambda now: now is None or now["finished_at"], 60)
        assert ended is not None
        assert ended["phase"] == "completed", ended["error"]
    assert {link.client.get("vms", vm["id"])["node"] for vm in machines} <= {"host-a", "host-b"}


@pytest.mark.parametrize(
    ("rate", "window", "field"),
    [
        (1, None, "rate_bytes_per_s"),
        (10**6, {"start": "24:00", "end": "01:00", "rate_bytes_per_s": 10**6}, "schedule"),
        (10**6, {"start": "08:00", "end": "09:00", "rate_bytes_per_s": 10**6, "days": [8]}, "schedule"),
    ],
)
def test_an_impossible_limit_is_refused(link: Platform, rate: int, window: dict[str, Any] | None, field: str) -> None:
    with pytest.raises(ApiError) as refused:
        link.client.limit_link("east", "west", rate, [] if window is None else [window])
    assert refused.value.status in (400, 422) and field in str(refused.value.problem)
    assert not list(link.client.list("links"))


def test_a_path_is_measured(link: Platform) -> None:
    measurement = link.client.probe_link("host-a", "host-b", 0.5)
    assert (measurement["source"], measurement["target"]) == ("host-a", "host-b")
    assert (
        measurement["delivered_bytes"] > 0 and measurement["rate_bytes_per_s"] > 0 and 0 < measurement["rtt_ms"] < 1000
    )
    output = link.cli("link", "probe", "host-b", "host-a", "--seconds", "0.5").stdout
    assert "Mbit/s" in output and "ROUND TRIP" in output


@pytest.mark.parametrize(
    ("source", "target", "status", "field"),
    [("host-a", "host-a", 400, "target"), ("host-a", "host-z", 404, "target"), ("host-z", "host-a", 404, "source")],
)
def test_a_probe_of_an_invalid_path_is_refused(
    link: Platform, source: str, target: str, status: int, field: str
) -> None:
    with pytest.raises(ApiError) as refused:
        link.client.probe_link(source, target, 0.5)
    assert refused.value.status == status and refused.value.problem["field"] == field


def test_a_forecast_of_a_migration_moves_nothing(link: Platform, new_vm: NewVm) -> None:
    vm = new_vm()
    node = booted(link, vm)
    forecast = link.client.act("vms", vm["id"], "foresee-migration", {"target": other(node)})
    move = forecast["move"]
    assert (
        (forecast["source"], forecast["target"])
        == (node, other(node))
        == (move["path"]["source"], move["path"]["target"])
    )
    assert 8 << 20 < move["memory_bytes"] < 256 << 20, "the guest's kernel, and no page that it never touched"
    assert 0 < move["ratio"] < 0.8 and move["forecast"]["total_s"] > 0
    link.client.configure_node("host-a", migration_rate_bytes_per_s=1_000_000)
    limited = link.client.act("vms", vm["id"], "foresee-migration")["move"]
    assert limited["path"]["best_rate_bytes_per_s"] <= 1_000_000
    assert limited["forecast"]["total_s"] > move["memory_bytes"] * move["ratio"] / 2_000_000
    assert move["disk_bytes"] == 0
    output = link.cli("vm", "migrate", vm["name"], "--dry-run").stdout
    assert ("VERDICT" in output and "of downtime" in output) or "does not converge" in output
    assert not list(link.client.list("migrations", vm=vm["name"]))
    link.cli("vm", "stop", vm["name"], "--grace", "1", "--wait")
    with pytest.raises(ApiError) as refused:
        link.client.act("vms", vm["id"], "foresee-migration")
    assert refused.value.status == 409


def test_a_forecast_includes_disks_that_move_along(link: Platform, new_vm: NewVm) -> None:
    vm = new_vm(image="disk")
    booted(link, vm)
    shell(
        link.client, vm["id"], "dd if=/dev/urandom of=/dev/vda bs=1M count=8 seek=4 conv=fsync 2>/dev/null; echo done"
    )
    link.client.configure_node("host-a", migration_rate_bytes_per_s=1_000_000)
    move = link.client.act("vms", vm["id"], "foresee-migration")["move"]
    assert 8 << 20 <= move["disk_bytes"] < 16 << 20 and move["disk_ratio"] > 0.5, "random data hardly shrinks"
    assert move["forecast"]["total_s"] > (move["disk_bytes"] * move["disk_ratio"] + 4e6) / 1e6
