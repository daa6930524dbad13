"""Replicas: a VM's disk follows on another host, and the VM goes on from it when its own host is lost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from lab.platform import Platform, until
from novacron.model.lease import LEASE_S, MARGIN_S
from tests.e2e.conftest import Object, delete, kill, revive, until_settled
from tests.e2e.test_failover import lose, until_steady
from tests.support.vms import read_from_disk, shell, wait_until_booted, write_to_disk
from tests.waiting import pause

FOLLOWS_S_MAX = 60.0
FILLED_BYTES = 4 << 20
FILL = "dd if=/dev/urandom of=/dev/vda bs=64k seek=300 count=64 conv=notrunc,fsync 2>/dev/null; echo done"


@pytest.fixture(autouse=True)
def whole(victim: Platform) -> Iterator[None]:
    until_steady(victim)
    yield
    revive(victim)


def replicated(victim: Platform, name: str, **fields: Any) -> tuple[Object, Object]:
    """Return a VM on host-a that has written something, and its replica on host-b."""
    vm = victim.client.create_vm(**{"name": name, "image": "disk", "memory_mib": 128, "node": "host-a", **fields})
    wait_until_booted(victim, vm)
    vm = victim.client.get("vms", vm["id"])
    write_to_disk(victim, vm, "first")
    replica = victim.client.replicate_vm(vm["id"], node="host-b", rpo_s=5)
    return vm, until_follows(victim, replica)


def until_follows(victim: Platform, replica: Object) -> Object:
    """Wait until a replica has all that was written until now, and return it."""
    moment = datetime.now(UTC)

    def newer() -> Object | None:
        now = victim.client.get("replicas", replica["id"])
        return now if now["points"] and datetime.fromisoformat(now["points"][-1]["at"]) > moment else None

    try:
        return until(newer, "the replica has a newer point", FOLLOWS_S_MAX)
    except AssertionError as error:
        raise AssertionError(f"{error}: {victim.client.get('replicas', replica['id'])}\n{victim.tails()}") from None


def sent(replica: Object) -> int:
    """Return how much the newest round brought."""
    return int(replica["points"][-1]["sent_bytes"])


def test_a_vm_goes_on_from_its_replica_when_its_node_is_lost(victim: Platform) -> None:
    vm, replica = replicated(victim, "rep1")
    before = replica["points"][-1]["number"]
    shell(victim, vm, FILL)
    replica = until_follows(victim, replica)
    filled = replica["points"][-1]["number"]
    brought = sum(int(point["sent_bytes"]) for point in replica["points"] if point["number"] > before)
    assert (brought > FILLED_BYTES, replica["round_kind"]) == (True, "recorded"), replica  # a round may end in between
    victim.cli("vm", "set", "rep1", "--ha")
    victim.cli("vm", "stop", "rep1", "--wait")
    victim.cli("vm", "start", "rep1", "--wait")
    until(lambda: victim.console_log(vm).count("tiny guest: ready") == 2, "it has booted again", 60)
    vm = victim.client.get("vms", vm["id"])
    replica = until_follows(victim, replica)
    later = [point["sent_bytes"] for point in replica["points"] if point["number"] > filled]
    assert later and max(later) < FILLED_BYTES, f"the stop cost a whole copy: {replica}"
    write_to_disk(victim, vm, "second")
    replica = until_follows(victim, replica)
    zeros = "dd if=/dev/zero of=/dev/vda bs=64k seek=200 count=4 conv=notrunc,fsync 2>/dev/null; echo done"
    shell(victim, vm, zeros.replace("zero", "urandom", 1))
    until_follows(victim, replica)
    shell(victim, vm, zeros)
    replica = until_follows(victim, replica)
    assert replica["points"][-1]["sent_bytes"] < 1 << 20, "a round sends what was written"
    tried = victim.client.try_replica(replica["id"], "rep1-tried")
    wait_until_booted(victim, tried)
    assert read_from_disk(victim, victim.client.get("vms", tried["id"])) == "second"
    sum_ = "dd if=/dev/vda bs=64k skip=200 count=4 2>/dev/null | tr -d '\\000' | wc -c"
    tried = victim.client.get("vms", tried["id"])
    assert shell(victim, tried, sum_).strip() == "0", "zeros are written, too"
    assert read_from_disk(victim, vm) == "second", "nothing of it reaches the VM itself"
    delete(victim, tried)
    lose(victim, "host-a")
    wait_until_booted(victim, victim.wait_vm(vm["id"], lambda now: now["node"] == "host-b", "it is given away", 90))
    moved = victim.client.get("vms", vm["id"])
    assert (moved["epoch"], read_from_disk(victim, moved)) == (vm["epoch"] + 1, "second")
    victim.agents["host-a"].start()
    victim.wait_node("host-a")
    assert until_settled(victim, vm)["node"] == "host-b"
    [turned] = victim.client.list("replicas", node="host-a")
    write_to_disk(victim, moved, "third")
    turned = until_follows(victim, turned)
    assert all(point["sent_bytes"] < FILLED_BYTES for point in turned["points"]), "the way back brings what changed"
    until(lambda: victim.client.get("replicas", turned["id"])["round_kind"], "it is said how that was known")
    tried = victim.client.try_replica(turned["id"], "rep1-back")
    wait_until_booted(victim, tried)
    assert read_from_disk(victim, victim.client.get("vms", tried["id"])) == "third"
    delete(victim, tried)
    victim.cli("vm", "set", "rep1", "--no-ha")
    for each in (replica, turned):
        victim.client.delete("replicas", each["id"])
    until(lambda: not list(victim.client.list("replicas")), "the replicas are gone")
    assert read_from_disk(victim, victim.client.get("vms", vm["id"])) == "third", "the VM keeps its disk"
    delete(victim, vm)


@pytest.mark.slow
def test_a_plan_is_tested_and_then_lets_all_its_vms_go_on(victim: Platform) -> None:
    pairs = [replicated(victim, name) for name in ("plan-db", "plan-web")]
    victim.cli("plan", "create", "shop", "--vm", "plan-db", "--vm", "plan-web,delay=1s")
    for vm, replica in pairs:
        write_to_disk(victim, vm, f"of {vm['name']}")
        until_follows(victim, replica)
    said = victim.cli("plan", "test", "shop").stdout
    assert said.count("ready on host-b") == 2, said
    victim.until_clean()
    lose(victim, "host-a")
    pause(LEASE_S + MARGIN_S + 1)
    said = victim.cli("plan", "failover", "shop", "--confirm", "host-a").stdout
    assert said.count("ready on host-b, well after") == 2, said
    victim.agents["host-a"].start()
    victim.wait_node("host-a")
    for vm, _ in pairs:
        wait_until_booted(victim, until_settled(victim, vm))
        assert read_from_disk(victim, victim.client.get("vms", vm["id"])) == f"of {vm['name']}"
    for turned in list(victim.client.list("replicas", node="host-a")):
        until_follows(victim, turned)
    boots = {
        vm["id"]: victim.console_log(victim.client.get("vms", vm["id"])).count("tiny guest: up") for vm, _ in pairs
    }
    for action, node in (("failback", "host-a"), ("switch", "host-b"), ("failback", "host-a")):
        said = victim.cli("plan", action, "shop").stdout
        assert (said.count(f"ready on {node}, well after"), said.count("nothing lost")) == (2, 2), said
        for vm, _ in pairs:
            moved = until_settled(victim, vm)
            write_to_disk(victim, moved, f"{action} of {vm['name']}")
        for back in [replica for replica in victim.client.list("replicas") if replica["node"] != node]:
            until_follows(victim, back)
    for vm, _ in pairs:
        now = victim.client.get("vms", vm["id"])
        assert read_from_disk(victim, now) == f"failback of {vm['name']}"
        assert victim.console_log(now).count("tiny guest: up") <= boots[vm["id"]], "its guest never booted again"
        delete(victim, vm)
    victim.cli("plan", "delete", "shop")


@pytest.mark.slow
def test_replicas_catch_up_after_kills_at_any_moment(victim: Platform) -> None:
    """Of both agents, the server and the VM's QEMU, while the guest writes and rounds are on their way."""
    vm, replica = replicated(victim, "rep2")
    once = "dd if=/dev/urandom of=/dev/vda bs=64k seek=200 count=60 conv=notrunc,fsync"
    writes = f"touch /tmp/go; while [ -e /tmp/go ]; do {once}; done"
    for number, what in enumerate(("target agent", "source agent", "server", "target agent", "source agent")):
        shell(victim, vm, f"({writes}) >/dev/null 2>&1 & echo begun")
        pause(0.5 + number)
        kill(victim, what, vm, "host-a", "host-b")
        pause(1.0)
        revive(victim)
        shell(victim, vm, "rm /tmp/go; sleep 1; sync; echo done")
        write_to_disk(victim, vm, f"after-{number}")
        replica = until_follows(victim, replica)
        check_same(victim, vm, replica, f"tried-{number}", f"after-{number}")
    kill(victim, "source qemu", vm, "host-a", "host-b")
    until(lambda: victim.console_log(vm).count("tiny guest: ready") == 2, "it has booted again", 90)
    write_to_disk(victim, vm, "after-all")
    check_same(victim, vm, until_follows(victim, replica), "tried-all", "after-all")
    victim.client.delete("replicas", replica["id"])
    until(lambda: not list(victim.client.list("replicas")), "the replica is gone")
    delete(victim, vm)


def check_same(victim: Platform, vm: Object, replica: Object, name: str, text: str) -> None:
    """See that a VM that is made of the replica has what the VM has, in all of the disk's middle."""
    tried = victim.client.try_replica(replica["id"], name)
    wait_until_booted(victim, tried)
    digest = "dd if=/dev/vda bs=64k skip=100 count=300 2>/dev/null | sha256sum | cut -c1-64"
    tried = victim.client.get("vms", tried["id"])
    assert (read_from_disk(victim, tried), shell(victim, tried, digest)) == (text, shell(victim, vm, digest))
    delete(victim, tried)
