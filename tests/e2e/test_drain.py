"""Nodes and sites that are emptied, and get back what they had."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from lab.platform import Platform, until
from tests.e2e.conftest import boot, delete, revive, typed, until_settled
from tests.waiting import pause


def latest(victim: Platform, node: str) -> dict[str, Any]:
    return next(iter(victim.client.list("drains", limit=1, node=node)))


def ended(victim: Platform, node: str, phase: str, timeout_s: float = 90) -> dict[str, Any]:
    ended_drain: dict[str, Any] = until(
        lambda: drain if (drain := latest(victim, node))["phase"] == phase else None, f"{node} is {phase}", timeout_s
    )
    return ended_drain


@pytest.mark.slow
def test_a_site_is_emptied_whatever_is_killed_and_gets_its_vms_back(victim: Platform) -> None:
    victim.client.configure_node("host-a", site="berlin")
    vms = [boot(victim, f"tenant-{n}", 30 + n, memory_mib=128) for n in range(2)]
    off = victim.client.create_vm(name="off", image="tiny", memory_mib=64, node="host-a", power="stopped")
    victim.wait_state(off["id"], "stopped")
    listed = victim.cli("site", "list").stdout
    assert "berlin" in listed and "default" in listed
    victim.cli("site", "drain", "berlin", "--no-wait")
    begun = latest(victim, "host-a")
    assert (begun["phase"], begun["total"], begun["policy"]) == ("draining", 3, "throttle")
    until(lambda: latest(victim, "host-a")["moving"], "something moves")
    for service in (victim.server, victim.agents["host-a"]):
        service.kill()
    revive(victim)
    done = ended(victim, "host-a", "drained")
    assert set(done["moved"]) == {vm["id"] for vm in (*vms, off)} and not done["stays"]
    assert "3 of 3" in victim.cli("node", "drains", "--node", "host-a").stdout
    for vm in vms:
        assert until_settled(victim, vm)["node"] == "host-b"
    moved = victim.client.get("vms", off["id"])
    assert (moved["node"], moved["status"]["state"]) == ("host-b", "stopped"), "it is not started for that"
    causes = {
        migration["cause"]
        for migration in victim.client.list("migrations", vm=vms[0]["id"])
        if migration["phase"] == "completed"
    }
    assert causes == {"drain"}
    victim.cli("vm", "migrate", "off", "--to", "host-b", check=False)
    victim.cli("site", "uncordon", "berlin", "--bring-back")
    assert ended(victim, "host-a", "returned")["moved"] == []
    for vm in vms:
        settled = until_settled(victim, vm)
        assert settled["node"] == "host-a" and settled["status"]["crashes"] == 0
    victim.client.configure_node("host-a", site="default")
    for vm in (*vms, off):
        delete(victim, vm)


@pytest.mark.slow
def test_a_guest_that_writes_too_fast_is_left_and_reported_and_never_stopped(victim: Platform) -> None:
    victim.client.configure_node("host-a", migration_rate_bytes_per_s=2_000_000)
    vm = boot(victim, "busy", 36, memory_mib=256)
    writes = "while :; do head -c 8388608 /dev/urandom >/a; done &"
    typed(victim, vm, f"{writes} echo it-writes", "it-writes")
    calm = boot(victim, "calm", 37, memory_mib=128)
    done = victim.cli("node", "drain", "host-a", "--policy", "leave", "--timeout", "240", check=False)
    assert done.returncode == 1 and "busy stays: it would not converge" in done.stderr, done
    drain = latest(victim, "host-a")
    assert drain["given_up"] == [vm["id"]] and drain["moved"] == [calm["id"]]
    assert until_settled(victim, vm)["node"] == "host-a"
    victim.client.configure_node("host-a", migration_rate_bytes_per_s=None)
    victim.cli("node", "drain", "host-a", "--policy", "throttle", "--timeout", "200")
    settled = until_settled(victim, vm, 120)
    assert settled["node"] == "host-b" and settled["status"]["crashes"] == 0
    victim.cli("node", "uncordon", "host-a")
    assert latest(victim, "host-a")["phase"] == "drained", "what is over stays as it was"
    for each in (vm, calm):
        delete(victim, each)


@pytest.mark.slow
def test_a_destination_that_goes_away_midway_costs_time_only(victim: Platform) -> None:
    vms = [boot(victim, f"wait-{n}", 40 + n, memory_mib=128) for n in range(2)]
    victim.client.act("nodes", "host-a", "drain")
    until(lambda: latest(victim, "host-a")["moving"], "something moves")
    victim.agents["host-b"].process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
    victim.wait_node("host-b", ready=False)
    until(lambda: latest(victim, "host-a")["stays"], "what can't go says why", 120)
    victim.agents["host-b"].process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
    victim.wait_node("host-b")
    ended(victim, "host-a", "drained", 180)
    victim.cli("node", "uncordon", "host-a")
    for vm in vms:
        assert until_settled(victim, vm)["node"] == "host-b"
        delete(victim, vm)


@pytest.mark.slow
def test_a_link_that_comes_and_goes_delays_a_drain_and_stops_nothing(victim: Platform) -> None:
    vms = [boot(victim, f"flaps-{n}", 40 + n, memory_mib=128) for n in range(2)]
    host, over = victim.lab.hosts[1], threading.Event()

    def flap() -> None:
        while not over.wait(3.5):
            host.cut()
            over.wait(1.5)
            host.mend()

    flapping = threading.Thread(target=flap)
    flapping.start()
    try:
        victim.client.act("nodes", "host-a", "drain")
        assert not ended(victim, "host-a", "drained", 110)["stays"]
    finally:
        over.set()
        flapping.join()
    victim.client.act("nodes", "host-a", "uncordon")
    for vm in vms:
        settled = until_settled(victim, vm)
        assert settled["node"] == "host-b" and settled["status"]["crashes"] == 0
        delete(victim, vm)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_site_that_is_cut_off_for_five_minutes_loses_nothing(victim: Platform) -> None:
    victim.client.configure_node("host-b", site="far")
    there = victim.client.create_vm(name="there", image="tiny", memory_mib=128, node="host-b")
    until(lambda: "tiny guest: ready" in victim.console_log(there, "host-b"), "it has booted", 60)
    here = boot(victim, "here", 45, memory_mib=128)
    host = victim.host("host-b")
    began = int(typed(victim, there, "cat /run/ticks | sed s/^/ticks-/", "ticks-").removeprefix("ticks-"))
    host.cut()
    victim.lab.cut_management(host)
    victim.wait_node("host-b", ready=False)
    refused = victim.cli("vm", "migrate", "here", "--to", "host-b", check=False)
    assert refused.returncode == 4 and "not ready" in refused.stderr
    pause(300)
    victim.lab.mend_management(host, victim.ports)
    host.mend()
    victim.wait_node("host-b")
    for vm in (there, here):
        assert until_settled(victim, vm)["status"]["crashes"] == 0
    ticks = int(typed(victim, there, "cat /run/ticks | sed s/^/later-/", "later-").removeprefix("later-"))
    assert ticks - began >= 290, "its guest went on all the while"
    victim.cli("vm", "migrate", "here", "--to", "host-b", "--wait")
    victim.client.configure_node("host-b", site="default")
    for vm in (there, here):
        delete(victim, vm)
