"""Nodes that fail: their highly available VMs run elsewhere, once, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.platform import Platform, until
from novacron.client import ApiError
from novacron.model.lease import LEASE_S
from tests.e2e.conftest import Object, delete, revive, typed, until_settled
from tests.waiting import pause

BACK_S_MAX = 90.0


@pytest.fixture(autouse=True)
def whole(victim: Platform) -> Iterator[None]:
    """Both nodes are steady before a test, and are well again after it."""
    until_steady(victim)
    yield
    victim.lab.mend_management(victim.host("host-a"), victim.ports)
    revive(victim)


def until_steady(victim: Platform) -> None:
    """Wait until voters count: for a while after the server has begun nothing is started elsewhere."""
    pause(0.1)
    since = max(service.started_at for service in (victim.server, *victim.agents.values()))
    until(lambda: time.monotonic() > since + 12, "both nodes have heard from the server for long enough", 20)


def boot(victim: Platform, name: str, **fields: object) -> Object:
    vm = victim.client.create_vm(
        **{"name": name, "image": "tiny", "memory_mib": 128, "node": "host-a", "ha": True, **fields}
    )
    until(lambda: "tiny guest: ready" in victim.console_log(vm, "host-a"), f"{name} has booted", 60)
    return victim.client.get("vms", vm["id"])


def lose(victim: Platform, host: str) -> None:
    """Let a host end as a power cut would: its agent, what keeps VMs, and every QEMU."""
    victim.agents[host].kill()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and str(_cwd(entry)).startswith(f"{victim.directory}/{host}/"):
            try:
                os.kill(int(entry.name), signal.SIGKILL)
            except ProcessLookupError:
                continue


def _cwd(entry: Path) -> Path | None:
    try:
        return (entry / "cwd").readlink()
    except OSError:
        return None


def hosts_running(victim: Platform, vm: Object) -> list[str]:
    """Return on which hosts a QEMU of the VM is."""
    return [key.partition("/")[0] for key in victim.qemus() if vm["id"] in key]


def until_moved(victim: Platform, vm: Object) -> None:
    """Wait until the VM runs on host-b, never in two places."""

    def runs_there() -> bool:
        assert len(hosts_running(victim, vm)) <= 1, "it runs in two places"
        return "tiny guest: ready" in victim.console_log(vm, "host-b")

    try:
        until(runs_there, "the VM runs on host-b", BACK_S_MAX)
    except AssertionError as error:
        raise AssertionError(f"{error}: {victim.client.get('vms', vm['id'])}\n{victim.tails()}") from None


def event_reasons(victim: Platform, object_: str) -> set[str]:
    return {event["reason"] for event in victim.client.list("events", object=object_)}


def test_a_lost_nodes_vms_start_elsewhere_and_the_node_gives_them_up_on_its_return(victim: Platform) -> None:
    vm, other = boot(victim, "ha1", image="disk", own_disk=False), boot(victim, "plain", ha=False)
    volume = victim.client.create_volume("ha-data", size_mib=16, pool="nfs")
    until(lambda: victim.client.get("volumes", volume["id"])["phase"] == "ready", "the volume is made")
    victim.client.attach_volume(volume["id"], vm["id"])
    # Before the guest has it, /dev/sda would be a file.
    writes = "[ -b /dev/sda ] && echo kept | dd of=/dev/sda conv=fsync 2>/dev/null && echo it-is-written"
    typed(victim, vm, writes, "it-is-written")
    assert victim.client.get("vms", vm["id"])["status"]["kept"]
    lose(victim, "host-a")
    until_moved(victim, vm)
    assert "kept" in typed(victim, vm, "head -c 4 /dev/sda; echo", "kept")
    moved = victim.client.get("vms", vm["id"])
    assert (moved["node"], moved["epoch"]) == ("host-b", vm["epoch"] + 1)
    assert "RestartedElsewhere" in event_reasons(victim, vm["id"]) and "Failed" in event_reasons(victim, "host-a")
    assert victim.client.get("vms", other["id"])["node"] == "host-a", "it is not highly available"
    victim.agents["host-a"].start()
    victim.wait_node("host-a")
    assert until_settled(victim, vm)["node"] == "host-b"
    assert until_settled(victim, other)["node"] == "host-a"
    victim.cli("vm", "kill", "ha1", "--wait")
    victim.client.act("volumes", volume["id"], "detach")
    until(lambda: victim.client.get("volumes", volume["id"])["vm"] is None, "it is detached")
    victim.client.delete("volumes", volume["id"])
    for each in (vm, other):
        delete(victim, each)


def test_a_node_that_is_cut_off_ends_its_vms_before_they_start_elsewhere(victim: Platform) -> None:
    vm = boot(victim, "ha2")
    victim.lab.cut_management(victim.host("host-a"))
    until_moved(victim, vm)
    said = [event["message"] for event in victim.client.list("events", object="host-a") if event["reason"] == "Failed"]
    assert any("isolated" in message for message in said), said
    victim.lab.mend_management(victim.host("host-a"), victim.ports)
    victim.wait_node("host-a")
    assert until_settled(victim, vm)["node"] == "host-b"
    delete(victim, vm)


@pytest.mark.slow
def test_a_server_outage_stops_no_vm(victim: Platform) -> None:
    vm = boot(victim, "ha3")
    victim.server.kill()
    pause(LEASE_S * 2)
    assert hosts_running(victim, vm) == ["host-a"]
    revive(victim)
    settled = until_settled(victim, vm)
    assert (settled["node"], settled["status"]["pid"]) == ("host-a", vm["status"]["pid"])
    delete(victim, vm)


@pytest.mark.slow
def test_vms_do_not_outlive_the_lease_of_a_dead_agent(victim: Platform) -> None:
    vm = boot(victim, "ha4")
    victim.agents["host-a"].kill()
    until_moved(victim, vm)
    victim.agents["host-a"].start()
    victim.wait_node("host-a")
    assert until_settled(victim, vm)["node"] == "host-b"
    delete(victim, vm)


@pytest.mark.slow
def test_a_vm_ends_with_its_lease_guard_and_restarts_on_the_same_node(victim: Platform) -> None:
    vm = boot(victim, "ha5")
    pid = vm["status"]["pid"]
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"lease_guard.py" in Path(f"/proc/{parent}/cmdline").read_bytes()
    os.kill(parent, signal.SIGKILL)
    restarted = victim.wait_vm(
        vm["id"],
        lambda now: now["status"]["state"] == "running" and now["status"]["pid"] != pid,
        "it is started again",
    )
    assert restarted["node"] == "host-a" and restarted["status"]["kept"]
    victim.agents["host-a"].kill()
    victim.agents["host-a"].start()
    victim.wait_node("host-a")
    assert until_settled(victim, vm)["status"]["pid"] == restarted["status"]["pid"], "a new agent does not touch it"
    delete(victim, vm)


def test_a_vm_that_depends_on_one_node_cannot_be_highly_available(victim: Platform) -> None:
    with pytest.raises(ApiError, match="has its disk on its node only"):
        victim.client.create_vm(name="no", image="disk", ha=True)
    vm = victim.client.create_vm(name="ha6", image="tiny", memory_mib=128, node="host-a", power="stopped")
    volume = victim.client.create_volume("local-data", size_mib=16, node="host-a")
    until(lambda: victim.client.get("volumes", volume["id"])["phase"] == "ready", "the volume is made")
    victim.client.attach_volume(volume["id"], vm["id"])
    with pytest.raises(ApiError, match="local-data is on its node only"):
        victim.client.configure_vm(vm["id"], ha=True)
    victim.client.act("volumes", volume["id"], "detach")
    until(lambda: victim.client.get("volumes", volume["id"])["vm"] is None, "it is detached")
    assert victim.client.configure_vm(vm["id"], ha=True)["spec"]["ha"]
    with pytest.raises(ApiError, match="is highly available"):
        victim.client.attach_volume(volume["id"], vm["id"])
    victim.client.delete("volumes", volume["id"])
    delete(victim, vm)
