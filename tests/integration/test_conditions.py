"""Conditions of nodes in the store: kept up to date, told once, and respected by placement."""

from __future__ import annotations

import time

from novacron.control import conditions as controller
from novacron.control.objects import Objects
from novacron.model.condition import (
    ConditionReason,
    ConditionStatus,
    ConditionType,
    PeersSeen,
    ReportedCondition,
    UnreachablePeer,
)
from novacron.model.node import Node
from novacron.server.reports import Reports
from novacron.store import fleet, nodes, vms
from novacron.store.database import Database
from novacron.wire import messages as wire
from tests.support.stored_fleet import add_node, add_vm

FINE = ReportedCondition(ConditionType.DISK, ConditionStatus.TRUE, ConditionReason.DISK_WRITABLE, "it has room")
FULL = ReportedCondition(ConditionType.DISK, ConditionStatus.FALSE, ConditionReason.DISK_FULL, "the disk is full; do")
B = UnreachablePeer("b", "no answer within 2 s")


async def report(database: Database, node: str, disk: ReportedCondition, peers: PeersSeen) -> None:
    await Reports(database).store(node, wire.ConditionsFound((disk,), peers))


async def told(database: Database) -> list[tuple[str, str]]:
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT object, reason FROM events WHERE kind = 'node' ORDER BY id")
    return [(row["object"], row["reason"]) for row in rows]


async def node_of(database: Database, name: str) -> Node:
    async with database.connection() as connection:
        return await nodes.get(connection, name)


async def reason_of(database: Database, name: str, type: str) -> str:
    conditions = {condition.type: condition for condition in (await node_of(database, name)).status.conditions}
    return str(conditions[ConditionType(type)].reason)


async def test_what_agents_find_is_stored_told_once_and_keeps_vms_away(database: Database) -> None:
    async with database.transaction() as connection:
        for name in ("a", "b"):
            await add_node(connection, name, certificate_ends_at_s=time.time() + 30 * 86_400)
        vm = await add_vm(connection, "web")
    await report(database, "a", FINE, PeersSeen(1))
    await report(database, "b", FULL, PeersSeen(1))
    full = await node_of(database, "b")
    await report(database, "b", FULL, PeersSeen(1))
    assert await node_of(database, "b") == full, "what does not change is not written"
    await report(database, "a", FINE, PeersSeen(0, (B,)))
    assert await told(database) == [("b", "DiskFull"), ("a", "Partitioned")]
    async with database.transaction() as connection:
        assert await fleet.place_waiting(connection, [vm]) == []
        reason = (await vms.get(connection, vm)).status.reason
    assert "node a takes nothing new (Partitioned): it can't reach b (no answer within 2 s)" in reason, reason
    assert "node b takes nothing new (DiskFull): the disk is full; do" in reason
    await report(database, "b", FINE, PeersSeen(1))
    async with database.transaction() as connection:
        assert await fleet.place_waiting(connection, [vm]) == [vm]
    assert (await told(database))[2:] == [("b", "DiskWritable")]


async def test_time_and_other_nodes_change_conditions_without_a_word_of_the_agent(database: Database) -> None:
    async with database.transaction() as connection:
        await add_node(connection, "a", certificate_ends_at_s=time.time() - 60)
        await add_node(connection, "b", certificate_ends_at_s=time.time() + 30 * 86_400)
        await add_node(connection, "bad", clock_skew_s="odd")
    await report(database, "a", FINE, PeersSeen(0, (B,)))
    await report(database, "b", FINE, PeersSeen(1))
    assert await reason_of(database, "a", "PeersReachable") == "Partitioned"
    assert await reason_of(database, "a", "CertificateValid") == "CertificateEnded"
    async with database.transaction() as connection:
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 min' WHERE node = 'b'")
        await nodes.mark_lost(connection, ["b"], 16.0)
    objects = Objects("conditions")
    await controller.step(database, objects)
    assert await reason_of(database, "a", "PeersReachable") == "PeersAnswer", "a node that is down is no partition"
    assert await reason_of(database, "b", "DiskUsable") == "NodeLost"
    assert await reason_of(database, "b", "DatabaseCurrent") == "HeartbeatsNotStored"
    assert objects.failure("bad") is None
    before = [await node_of(database, name) for name in "ab"]
    await controller.step(database, objects)
    assert [await node_of(database, name) for name in "ab"] == before, "what does not change is not written"
    assert [event for event in await told(database) if event[0] == "a"] == [("a", "Partitioned"), ("a", "PeersAnswer")]


async def test_a_vm_that_waits_for_a_node_that_is_lost_says_so_and_one_that_runs_does_not(database: Database) -> None:
    async with database.transaction() as connection:
        await add_node(connection, "a")
        waits, runs = await add_vm(connection, "waits", "a"), await add_vm(connection, "runs", "a")
        await connection.execute('UPDATE vms SET status = status || \'{"state": "starting"}\' WHERE id = $1', waits)
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 min'")
        await nodes.mark_lost(connection, ["a"], 16.0)
        status = (await vms.get(connection, waits)).status
        assert (status.reason_code, (await vms.get(connection, runs)).status.reason_code) == ("NodeLost", "")
        assert status.reason == "waits for node a, which is not connected; see: novacron node show a"
