"""Nodes that are called otherwise, and nodes whose place another host takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.hosts import run
from lab.platform import Platform, until
from novacron import pki
from novacron.agent import identity as identities
from novacron.model.token import decode_ticket
from tests.e2e.conftest import boot, delete, until_settled, watching


def is_ready(victim: Platform, name: str) -> bool:
    return any(node["name"] == name and node["status"]["ready"] for node in victim.client.list("nodes"))


@pytest.mark.slow
def test_a_node_is_renamed_while_its_vms_keep_running(victim: Platform) -> None:
    vm = boot(victim, "guest", 31, node="host-b", memory_mib=128)
    volume = victim.client.create_volume("of-b", size_mib=8, node="host-b")
    for name, says in (("host-a", "exists"), ("X", "name: "), ("vm-aaaaaaaaaaaaaaaa", "form of an id")):
        refused = victim.cli("node", "rename", "host-b", name, check=False)
        assert refused.returncode in (2, 4) and says in refused.stderr
    with watching(victim, 31) as client:
        victim.cli("node", "rename", "host-b", "east-1")
        until(lambda: is_ready(victim, "east-1"), "it is there under its new name")
        assert [node["name"] for node in victim.client.list("nodes")] == ["east-1", "host-a"]
        victim.agents["host-b"].kill()
        victim.agents["host-b"].start()  # under its old --name: what counts is its certificate
        until(lambda: victim.client.get("vms", vm["id"])["node"] == "east-1", "its VM is there")
        assert victim.client.get("volumes", volume["id"])["node"] == "east-1"
        until(lambda: victim.client.get("vms", vm["id"])["status"]["state"] == "running", "it runs")
        victim.cli("vm", "migrate", "guest", "--to", "host-a", "--wait")
        victim.cli("vm", "migrate", "guest", "--to", "east-1", "--wait")
        now = client.last
        until(lambda: client.last > now + 20, "the guest counts on")
        assert client.broken is None and client.missing_numbers() == 0
    victim.cli("node", "rename", "east-1", "host-b")
    until(lambda: is_ready(victim, "host-b"), "it has its name back")
    assert until_settled(victim, vm)["status"]["crashes"] == 0
    reasons = [event["reason"] for event in victim.client.list("events", object="host-b")]
    assert "Renamed" in reasons
    victim.client.delete("volumes", volume["id"])
    delete(victim, vm)


def test_a_node_whose_certificate_has_ended_rejoins_in_place_while_its_vms_keep_running(victim: Platform) -> None:
    vm = boot(victim, "kept", 33, node="host-b", memory_mib=128)
    pid = until_settled(victim, vm)["status"]["pid"]
    agent, before = victim.agents["host-b"], victim.client.get("nodes", "host-b")
    identity = identities.load(victim.directory / "host-b" / "agent" / "identity")
    assert identity is not None
    with watching(victim, 33) as client:
        agent.stop()
        month_ago = pki.Authority.open(victim.directory / "s" / "server", lambda: time.time() - 31 * 86_400)
        pki.write_secret(identity.certificate, month_ago.issue_node(identity.request("host-b"), "host-b"))
        agent.start()
        until(lambda: "this node's certificate ended on" in agent.log.read_text(), "its agent says why it is refused")
        victim.wait_node("host-b", ready=False)
        ticket = decode_ticket(victim.client.join_token("host-b"))
        identities.rejoin(identity.directory, ticket)
        until(lambda: is_ready(victim, "host-b"), "its agent, which runs, uses the new certificate", 60)
        now = client.last
        until(lambda: client.last > now + 20, "the guest counts on")
        assert client.broken is None and client.missing_numbers() == 0
    after, kept = victim.client.get("nodes", "host-b"), until_settled(victim, vm)
    assert after["created_at"] == before["created_at"] and after["spec"] == before["spec"]
    assert kept["node"] == "host-b" and kept["status"]["pid"] == pid > 0
    victim.wait_node("host-b")

    def moves() -> bool:
        return victim.cli("vm", "migrate", "kept", "--to", "host-a", "--wait", check=False).returncode == 0

    until(moves, "its peer, which looks now and then, accepts the certificate, too", 90)
    delete(victim, vm)


@pytest.mark.slow
def test_a_replacement_host_takes_over_a_node_and_invents_no_disks(victim: Platform) -> None:
    vm = boot(victim, "lost", 32, node="host-b", memory_mib=128, image="disk")
    state = victim.directory / "host-b" / "agent"
    agent = victim.agents["host-b"]
    agent.kill()
    victim.kill_qemu(vm)  # the other host has been switched off
    join = victim.join("host-b")
    away = Path(f"{state}-old")
    state.rename(away)
    agent.start(*join)
    until(lambda: not agent.running, "it is refused while the other one seems to be there", 40)
    assert "is connected" in agent.log.read_text()
    victim.wait_node("host-b", ready=False)
    agent.start(*victim.join("host-b"))
    victim.wait_node("host-b")
    reason = victim.wait_state(vm["id"], "failed")["status"]["reason"]
    assert "its disk is missing on its node" in reason and not (state / "vms" / vm["id"] / "disk.qcow2").exists()
    agent.stop()
    new = Path(f"{state}-new")
    state.rename(new)
    away.rename(state)
    since = len(victim.server.log.read_text())
    agent.start()
    until(lambda: "has taken its place" in agent.log.read_text(), "the old one is turned away", 60)
    assert "agent connected" not in victim.server.log.read_text()[since:]
    agent.stop()
    state.rename(away)
    new.rename(state)
    agent.start()
    victim.wait_node("host-b")
    delete(victim, vm)


FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
JUMPS_S = (3600, -300, 0)
"""How far a clock is ahead, one after the other; less than certificates are backdated."""


@pytest.mark.slow
def test_a_clock_jump_is_reported_keeps_vms_away_and_does_no_harm(victim: Platform, tmp_path: Path) -> None:
    vm = boot(victim, "timeless", 37, node="host-b", memory_mib=128)
    agent, shift = victim.agents["host-b"], tmp_path / "shift"
    shift.write_text("+0")
    before = dict(agent.env)
    agent.kill()
    agent.env |= {  # the monotonic clock goes on, as it does when somebody sets the other one
        "LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(shift), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    try:
        agent.start()
        victim.wait_node("host-b")
        with watching(victim, 37) as client:
            for jump_s in JUMPS_S:
                shift.write_text(f"{jump_s:+d}")

                def told(jump_s: int = jump_s) -> bool:
                    skew_s = victim.client.get("nodes", "host-b")["status"]["clock_skew_s"]
                    return bool(abs(skew_s - jump_s) < 5)

                until(told, f"the clock is said to be {jump_s} s ahead", 30)
                if jump_s == JUMPS_S[0]:
                    victim.cli("vm", "migrate", "timeless", "--to", "host-a", "--wait")
                if jump_s:
                    refused = victim.cli("vm", "migrate", "timeless", "--to", "host-b", "--wait", check=False)
                    assert refused.returncode and "ClockWrong" in refused.stderr, refused.stderr
                else:
                    victim.cli("vm", "migrate", "timeless", "--to", "host-b", "--wait")
                assert until_settled(victim, vm)["status"]["crashes"] == 0
            now = client.last
            until(lambda: client.last > now + 20, "the guest counts on")
            assert client.broken is None and client.missing_numbers() == 0
        assert all(node["status"]["ready"] for node in victim.client.list("nodes"))
    finally:
        agent.kill()
        agent.env = before
        agent.start()
        victim.wait_node("host-b")
    delete(victim, vm)


def test_a_removed_node_is_out_of_networks_and_migrations_within_seconds(
    victim: Platform, record_property: Callable[[str, object], None]
) -> None:
    """Though its agent runs on, as it would in the wrong hands. The last test here: the node does not come back."""
    client, host_a, host_b = victim.client, *victim.lab.hosts
    state = victim.directory / "host-a" / "agent"
    key = pki.authority_hash((victim.directory / "host-b" / "agent" / "identity" / "node.crt").read_bytes())
    client.act("nodes", "host-a", "cordon")
    client.create_network("shared", subnet="10.43.0.0/24")
    until(lambda: client.get("networks", "shared")["gateway"] == "host-b", "it has the network, too")
    client.act("nodes", "host-a", "uncordon")
    vm = client.create_vm(name="of-a", image="tiny", memory_mib=64, node="host-a", nics=[{"network": "shared"}],
                          power="stopped")  # fmt: skip

    def taken_from_b() -> bool:
        rules = run(*host_a.prefix, "nft", "list", "ruleset")
        return host_b.address in rules.partition("chain from_")[2].partition("}\n")[0]

    until(taken_from_b, "host-a takes its frames")
    client.delete("nodes", "host-b")
    removed_at = time.monotonic()
    until(lambda: not taken_from_b(), "host-a takes its frames no more")
    record_property("a removed node is out of its networks after", f"{time.monotonic() - removed_at:.2f} s")
    until(lambda: key in (state / "revoked.json").read_text(), "host-a refuses its key")
    record_property("... and has no key after", f"{time.monotonic() - removed_at:.2f} s")
    assert victim.agents["host-b"].running
    delete(victim, vm)
    client.delete("networks", "shared")
