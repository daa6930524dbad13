"""DWCP between two hosts with real guests: what the target has, bad links, and what is left in memory."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab.platform import Platform, until
from tests.e2e.conftest import (
    boot,
    delete,
    has_text,
    until_counts_on,
    until_ended,
    until_settled,
    watching,
)
from tests.support.e2e_guest import checksum
from tests.waiting import pause


def metrics(victim: Platform) -> Counter[tuple[str, str]]:
    """Return what the server counts, summed by name and the last of its labels, if it has any."""
    values = Counter[tuple[str, str]]()
    for family in text_string_to_metric_families(victim.client.metrics()):
        for sample in family.samples:
            values[sample.name, list(sample.labels.values())[-1] if sample.labels else ""] += int(sample.value)
    return values


def test_moving_back_costs_almost_nothing_and_preserves_memory(victim: Platform) -> None:
    vm = boot(victim, "returns", 40, image="noisy")
    before = checksum(victim, vm)
    for target in ("host-b", "host-a", "host-b"):
        migration = victim.client.act("vms", "returns", "migrate", {"target": target})
        assert until_ended(victim, migration["id"])["phase"] == "completed"
        until_settled(victim, vm)
        progress = victim.client.get("migrations", migration["id"])["progress"]
        if migration["source"] == "host-a" and target == "host-b" and not progress["savings"]["checkpoint"]:
            assert progress["wire_bytes"] > 40_000_000, "the first time, random data has to be sent"
        else:
            assert progress["wire_bytes"] < 4_000_000 and progress["savings"]["checkpoint"] > 40_000_000
        log = victim.agents[migration["source"]].log
        until(functools.partial(has_text, log, "kept a checkpoint"), "it is kept", 20)
        assert has_text(victim.agents[target].log, "a guest's memory was placed"), "past QEMU"
        ahead = victim.directory / target / "agent" / "pages" / "default" / f"left-{vm['id']}" / "index"
        until(ahead.exists, "the node that it is on knows what the other keeps", 20)
        pause(1.5)
    assert checksum(victim, vm) == before
    delete(victim, vm)
    assert not ahead.exists()


def test_a_vm_of_the_same_image_at_the_target_spares_pages(victim: Platform) -> None:
    sibling, other = boot(victim, "sibling", 41, node="host-b"), boot(victim, "comes", 42)
    victim.cli("vm", "migrate", "comes", "--to", "host-b")
    until_settled(victim, other)
    newest = next(iter(victim.client.list("migrations", limit=1)))
    assert newest["progress"]["savings"]["sibling"] > 10_000_000
    assert newest["progress"]["savings"]["image"] > 0
    shown = victim.cli("migration", "show", newest["id"]).stdout
    assert "SAVED: SIBLING" in shown and "ROUND TRIP" in shown
    happened = next(event["message"] for event in victim.client.list("events") if event["reason"] == "Completed")
    assert "spared by zero" in happened and "sibling" in happened
    until(lambda: metrics(victim)["novacron_migration_downtime_seconds_count", ""] >= 1, "downtime is counted")
    counted = metrics(victim)
    assert counted["novacron_migrations_total", "completed"] >= 1
    assert counted["novacron_dwcp_saved_bytes_total", "sibling"] >= newest["progress"]["savings"]["sibling"]
    for vm in (sibling, other):
        delete(victim, vm)


@pytest.mark.slow
def test_damaged_page_stores_are_detected_and_repaired(victim: Platform) -> None:
    vm = boot(victim, "damaged", 43, image="noisy")
    before = checksum(victim, vm)
    victim.cli("vm", "migrate", "damaged", "--to", "host-b")
    until_settled(victim, vm)
    store = victim.directory / "host-a" / "agent" / "pages" / "default" / f"checkpoint-{vm['id']}" / "pages"
    until(store.exists, "what it left behind is kept", 20)
    with store.open("r+b") as file:
        for offset in range(0, store.stat().st_size, 1 << 20):
            file.seek(offset)
            file.write(b"damage")
    victim.cli("vm", "migrate", "damaged", "--to", "host-a")
    until_settled(victim, vm)
    newest = next(iter(victim.client.list("migrations", limit=1)))
    assert newest["progress"]["repaired_pages"] > 20
    assert checksum(victim, vm) == before
    delete(victim, vm)


@pytest.mark.parametrize(
    ("moment", "outage_s"),
    [
        ("early", 0.0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("late", 10.0), ("early", 10.0), ("early", 45.0), ("late", 45.0))
        ),
    ],
)
def test_a_dead_link_costs_the_outage_and_not_the_migration(victim: Platform, moment: str, outage_s: float) -> None:
    number = {"early": 44, "late": 45}[moment]
    vm = boot(victim, f"patient-{number}", number, image="noisy")
    before = checksum(victim, vm)
    with watching(victim, number) as client:
        migration = victim.client.act("vms", vm["id"], "migrate", {"target": "host-b"})
        bytes_before_outage = 5_000_000 if moment == "early" else 38_000_000
        until(
            lambda: victim.client.get("migrations", migration["id"])["progress"]["wire_bytes"] > bytes_before_outage,
            "it is on its way",
        )
        host = victim.host("host-a")
        host.cut()
        pause(outage_s)
        host.mend()
        ended = until_ended(victim, migration["id"], 120)
        assert ended["phase"] == "completed", ended["error"]
        assert until_settled(victim, vm)["node"] == "host-b"
        until_counts_on(victim, client, vm)
    assert checksum(victim, vm) == before
    delete(victim, vm)
