"""Live and cold migration between two hosts over a WAN."""

from __future__ import annotations

import json

import pytest

from lab.platform import Platform, until
from tests.e2e.conftest import boot, delete, typed, until_ended, until_settled, watching


def test_a_running_guest_moves_there_and_back_and_its_connections_go_on(victim: Platform) -> None:
    vm = boot(victim, "traveller", 20)
    with watching(victim, 20) as client:
        until(lambda: client.last > 20, "the guest counts")
        for target in ("host-b", "host-a"):
            done = victim.cli("vm", "migrate", "traveller", "--to", target)
            assert f"on {target} after" in done.stdout and "%" in done.stderr, "progress is shown"
            settled = until_settled(victim, vm)
            assert settled["node"] == target
            now = client.last
            until(lambda now=now: client.last > now + 50, "the guest counts on")  # type: ignore[misc]
        assert client.broken is None and client.missing_numbers() == 0
    migration = json.loads(victim.cli("migration", "list", "--vm", "traveller", "-o", "json").stdout)[0]
    assert migration["phase"] == "completed" and migration["kind"] == "live"
    assert 0 < migration["progress"]["wire_bytes"] < migration["progress"]["raw_bytes"]
    assert migration["progress"]["downtime_ms"] > 0
    assert victim.client.get("vms", vm["id"])["epoch"] == 3
    delete(victim, vm)


@pytest.mark.slow  # test_net.py tries the same with a tap
def test_the_bridge_keeps_its_address_when_a_vm_leaves(victim: Platform) -> None:
    """A bridge takes the lowest address of its ports; a host whose address changes loses its connections."""
    from lab.hosts import run

    def address() -> str:
        return run(*victim.lab.hosts[0].prefix, "cat", "/sys/class/net/br0/address")

    before = address()
    vm = boot(victim, "guest", 21)
    during = address()
    delete(victim, vm)
    assert before == during == address()


def test_a_stopped_vm_moves_and_starts_at_the_other_end(victim: Platform) -> None:
    vm = victim.client.create_vm(name="still", image="tiny", memory_mib=128, node="host-a", power="stopped")
    victim.wait_state(vm["id"], "stopped")
    migration = victim.client.act("vms", "still", "migrate", {"target": "host-b"})
    assert migration["kind"] == "cold"
    assert until_ended(victim, migration["id"])["phase"] == "completed"
    victim.cli("vm", "start", "still", "--wait")
    assert until_settled(victim, vm)["node"] == "host-b"
    delete(victim, vm)


@pytest.mark.slow
def test_a_paused_guest_arrives_paused(victim: Platform) -> None:
    vm = boot(victim, "frozen", 22)
    victim.cli("vm", "pause", "frozen", "--wait")
    victim.cli("vm", "migrate", "frozen", "--to", "host-b")
    arrived = victim.wait_vm(
        vm["id"], lambda v: v["node"] == "host-b" and v["status"]["state"] == "paused", "it is there"
    )
    assert arrived["spec"]["power"] == "paused"
    victim.cli("vm", "resume", "frozen", "--wait")
    with watching(victim, 22) as client:
        until(lambda: client.last > 5, "it goes on")
    delete(victim, vm)


def test_an_aborted_migration_leaves_the_guest_where_it_was(victim: Platform) -> None:
    vm = boot(victim, "stays", 23, image="noisy")
    with watching(victim, 23) as client:
        slowly = {"target": "host-b", "rate_limit_bytes_per_s": 2_000_000}
        migration = victim.client.act("vms", "stays", "migrate", slowly)
        until(lambda: victim.client.get("migrations", migration["id"])["progress"]["wire_bytes"] > 0, "it moves")
        refused = victim.cli("vm", "delete", "stays", "--yes", check=False)
        assert refused.returncode == 4 and "migration abort" in refused.stderr
        assert "stays on host-a" in victim.cli("migration", "abort", migration["id"]).stdout
        assert until_settled(victim, vm)["node"] == "host-a"
        now = client.last
        until(lambda: client.last > now + 30, "the guest counts on")
        assert client.broken is None and client.missing_numbers() == 0
    assert victim.cli("migration", "abort", migration["id"], check=False).returncode == 4
    delete(victim, vm)


def test_a_cut_link_fails_the_migration_and_says_why(victim: Platform) -> None:
    vm = boot(victim, "cut-off", 24, image="noisy")
    migration = victim.client.act("vms", "cut-off", "migrate", {"target": "host-b"})
    until(lambda: victim.client.get("migrations", migration["id"])["progress"]["wire_bytes"] > 0, "it moves")
    victim.agents["host-b"].kill()  # its connections are reset
    victim.agents["host-b"].start()
    failed = until_ended(victim, migration["id"])
    assert failed["phase"] == "failed" and failed["error"]
    assert until_settled(victim, vm)["node"] == "host-a"
    delete(victim, vm)


@pytest.mark.slow
def test_a_node_is_drained_and_used_again(victim: Platform) -> None:
    vms = [boot(victim, f"tenant-{n}", 30 + n, memory_mib=128) for n in range(3)]
    assert "empty and cordoned" in victim.cli("node", "drain", "host-a").stdout
    for vm in vms:
        assert until_settled(victim, vm)["node"] == "host-b"
    assert "ready" in victim.cli("node", "uncordon", "host-a").stdout
    for vm in vms:
        delete(victim, vm)


def test_a_drain_that_cannot_go_on_says_why_and_stops_no_vm(victim: Platform) -> None:
    vm = boot(victim, "stuck", 26, memory_mib=128)
    victim.cli("node", "cordon", "host-b")
    waiting = victim.cli("node", "drain", "host-a", "--timeout", "3", check=False)
    assert waiting.returncode == 7 and "1 VMs are still on host-a" in waiting.stderr
    until(lambda: "DrainBlocked" in (said := victim.cli("events", "--object", vm["id"]).stdout)
          and "node host-b is cordoned" in said, "it is said why")  # fmt: skip
    assert victim.client.get("vms", vm["id"])["status"]["state"] == "running"
    victim.cli("node", "uncordon", "host-b")
    assert until_settled(victim, vm, 60)["name"] == "stuck"
    until(lambda: victim.client.get("vms", vm["id"])["node"] == "host-b", "it leaves as soon as it can", 60)
    victim.cli("node", "uncordon", "host-a")
    until_settled(victim, vm)
    delete(victim, vm)


@pytest.mark.slow
def test_vms_keep_running_while_their_host_is_cut_off_and_while_the_server_is_down(victim: Platform) -> None:
    vm = boot(victim, "alone", 25)
    with watching(victim, 25) as client:
        host = victim.host("host-a")
        victim.lab.cut_management(host)
        victim.wait_node("host-a", ready=False)
        victim.server.kill()
        now = client.last
        until(lambda: client.last > now + 100, "the guest counts on")
        victim.server.start()
        victim.lab.mend_management(host, victim.ports)
        victim.wait_ready()
        victim.wait_node("host-a")
        assert until_settled(victim, vm)["status"]["crashes"] == 0
        assert client.broken is None and client.missing_numbers() == 0
    delete(victim, vm)


@pytest.mark.slow
def test_guests_get_the_common_processor_or_move_only_to_nodes_that_have_theirs(victim: Platform) -> None:
    agent = victim.agents["host-b"]
    agent.stop()
    agent.start("--mask-cpu-flag", "avx2", "--mask-cpu-flag", "bmi2")
    until(lambda: "avx2" not in cpu_flags(victim, "host-b"), "host-b gives less")
    assert "avx2" in cpu_flags(victim, "host-a")
    common = boot(victim, "common", 26, memory_mib=128)
    all_ = victim.client.create_vm(name="all", image="tiny", memory_mib=64, node="host-a", cpu="host")
    more = victim.client.create_vm(name="more", image="tiny", memory_mib=64, cpu_flags=["avx2"])
    victim.wait_state(all_["id"], "running")
    assert victim.wait_state(more["id"], "running")["node"] == "host-a"
    has = {vm: victim.client.get("vms", vm)["status"]["cpu"]["flags"] for vm in ("common", "all", "more")}
    assert "avx2" not in has["common"] and "bmi2" not in has["common"] and "sse4-2" in has["common"]
    assert {"avx2", "bmi2"} <= set(has["all"]) and "avx2" in has["more"] and "bmi2" not in has["more"]
    assert typed(victim, common, "grep -c avx2 /proc/cpuinfo", "0").strip() == "0", "its guest sees none"
    for name, lacks in (("all", "avx2, bmi2"), ("more", "avx2")):
        refused = victim.cli("vm", "migrate", name, "--to", "host-b", check=False)
        assert refused.returncode == 4 and lacks in refused.stderr
        assert victim.client.get("vms", name)["migration"] is None
    verdicts = victim.cli("vm", "create", "x", "--image", "tiny", "--cpu-flag", "bmi2", "--dry-run").stdout
    assert "no processor with bmi2" in verdicts
    victim.cli("vm", "migrate", "common", "--to", "host-b", "--wait")
    agent.stop()
    agent.start()
    until(lambda: "avx2" in cpu_flags(victim, "host-b"), "host-b gives all again")
    victim.cli("vm", "migrate", "all", "--to", "host-b", "--wait")
    victim.cli("vm", "reset", "common")
    settled = until_settled(victim, common)
    assert settled["node"] == "host-b" and settled["status"]["cpu"]["flags"] == has["common"], "it keeps what it had"
    for vm in (common, all_, more):
        delete(victim, vm)


def cpu_flags(victim: Platform, node: str) -> list[str]:
    return list(victim.client.get("nodes", node)["status"]["inventory"]["cpu"]["flags"])
