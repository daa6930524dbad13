"""Nodes that are gone for good: what becomes of their VMs and volumes, and that nothing runs twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import websockets
from cryptography import x509
from websockets.asyncio.client import connect

from lab.ports import free_ports
from novacron import pki
from novacron.agent.identity import Identity
from novacron.control.objects import Objects
from novacron.control.placement import PlacementController
from novacron.key_ring import KeyRing
from novacron.model.errors import Conflict, IllegalState, InvalidInput
from novacron.model.lease import LEASE_S, MARGIN_S
from novacron.model.migration import Side
from novacron.model.ownership import Claim, OrderKind, OwnershipRecord
from novacron.model.vm import VmAction, VmState
from novacron.server.dismissal import REASON
from novacron.server.link import LinkServer
from novacron.store import identities, leases, lost_nodes, migrations, nodes, owned, vms, volumes
from novacron.store.database import Database
from novacron.wire import codec
from novacron.wire import messages as wire
from novacron.wire.base import REFUSED
from tests.integration.test_link import INVENTORY
from tests.support.stored_fleet import add_node, add_vm, nodes_of_vms

SHARED, LOCAL = {"image": "tiny", "own_disk": False}, {"image": "disk"}
DISK = {"name": "disk", "digest": "d", "size_bytes": 1, "kind": "disk", "disk_bytes": 1 << 30}


@pytest.fixture
async def fleet(database: Database) -> Database:
    """Nodes a and b; a, which is silent for longer than its lease, has VMs of every kind."""
    async with database.transaction() as connection:
        for name in "ab":
            await add_node(connection, name)
        await connection.execute(
            "UPDATE nodes SET status = jsonb_set(status, '{inventory,images}',"
            " (status -> 'inventory' -> 'images') || jsonb_build_array($1::jsonb))",
            DISK,
        )
        await add_vm(connection, "shared", "a", **SHARED)
        await add_vm(connection, "off", "a", **SHARED, power="stopped")
        await add_vm(connection, "local", "a", **LOCAL)
        await add_vm(connection, "going", "a", **LOCAL)
        await connection.execute("UPDATE vms SET deleting = true WHERE id = 'going'")
    await silence(database, "a")
    return database


async def silence(database: Database, node: str, seconds: float = LEASE_S + MARGIN_S + 1) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE node_leases SET renewed_at = clock_timestamp() - make_interval(secs => $2) WHERE node = $1",
            node, seconds,
        )  # fmt: skip
        await connection.execute(
            'UPDATE nodes SET status = status || \'{"ready": false, "reason": "no heartbeat"}\' WHERE name = $1', node
        )


async def remove(database: Database, node: str = "a", confirm: str | None = "a") -> None:
    async with database.transaction() as connection:
        await lost_nodes.remove_node(connection, node, confirm, "me")


async def place(database: Database) -> None:
    await PlacementController().step(database, Objects("placement"))


async def epoch_of(database: Database, vm: str) -> int:
    async with database.connection() as connection:
        return (await owned.epochs(connection, [vm]))[vm][0]


async def add_volume(database: Database, name: str, kind: str, vm: str | None = None, phase: str = "ready") -> None:
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO volumes (id, name, pool, kind, node, size_mib, phase, vm, vm_name, lun, project)"
            " VALUES ($1, $1, $2, $2, 'a', 10, $3, $4, $4, CASE WHEN $4::text IS NULL THEN NULL ELSE 0 END, 'default')",
            name, kind, phase, vm,
        )  # fmt: skip


async def test_a_node_that_is_heard_is_not_removed_by_force(fleet: Database) -> None:
    with pytest.raises(Conflict, match="was heard 0 s ago"):
        await remove(fleet, "b", "b")
    await silence(fleet, "b", LEASE_S)
    with pytest.raises(Conflict, match="may still run"):
        await remove(fleet, "b", "b")


async def test_a_silent_node_is_removed_by_force_only_with_its_name_or_when_it_was_cut_off(fleet: Database) -> None:
    for confirm in (None, "b"):
        with pytest.raises(InvalidInput, match="it has not been fenced") as refused:
            await remove(fleet, confirm=confirm)
        assert refused.value.field == "confirm" and "--confirm a" in str(refused.value.hint)
    async with fleet.transaction() as connection:
        await leases.fenced(connection, "a", cut_off=False)
    with pytest.raises(InvalidInput):
        await remove(fleet, confirm=None)
    async with fleet.transaction() as connection:
        await leases.fenced(connection, "a", cut_off=True)
    await remove(fleet, confirm=None)
    async with fleet.connection() as connection:
        assert [node.name for node in await nodes.all(connection)] == ["b"]


async def test_vms_of_a_removed_node_start_elsewhere_where_they_can_and_at_a_later_epoch(fleet: Database) -> None:
    await remove(fleet)
    await place(fleet)
    assert await nodes_of_vms(fleet) == {"shared": "b", "off": "b", "local": None}
    for vm in ("shared", "off"):
        assert await epoch_of(fleet, vm) > 1
    async with fleet.connection() as connection:
        assert (await owned.epochs(connection, ["going"]))["going"] == (2, True)
        local = await vms.get(connection, "local")
    assert (local.lost_on, local.status.state, local.epoch) == ("a", VmState.FAILED, 2)
    assert "its only disk was there" in local.status.reason and "vm recover local" in local.status.reason


async def test_a_vm_whose_disk_is_lost_refuses_actions_says_why_and_can_be_deleted(fleet: Database) -> None:
    await remove(fleet)
    async with fleet.transaction() as connection:
        with pytest.raises(IllegalState, match="disk is on node a, which was removed") as refused:
            await vms.act(connection, "local", VmAction.START, None, "me")
        assert "vm recover local" in str(refused.value.hint)
        await vms.act(connection, "local", VmAction.DELETE, None, "me")
        assert (await owned.epochs(connection, ["local"]))["local"] == (3, True)


async def test_a_vm_whose_disk_is_lost_is_recovered_where_the_disk_is_or_with_a_new_one(fleet: Database) -> None:
    await remove(fleet)
    async with fleet.transaction() as connection:
        with pytest.raises(Conflict, match="the disk of VM local is on node a"):
            await lost_nodes.recover_vm(connection, "local", None, "me", discard_disk=False)
        await add_node(connection, "a")
        back = await lost_nodes.recover_vm(connection, "local", None, "me", discard_disk=False)
    assert (back.node, back.epoch, back.lost_on) == ("a", 3, None)
    await silence(fleet, "a")
    await remove(fleet)
    async with fleet.transaction() as connection:
        await lost_nodes.recover_vm(connection, "local", None, "me", discard_disk=True)
    await place(fleet)
    async with fleet.connection() as connection:
        anew = await vms.get(connection, "local")
    assert (anew.node, anew.status.machine, anew.epoch) == ("b", "", 6)


async def test_a_vm_of_a_silent_node_is_recovered_without_removing_the_node(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        for confirm in (None, "b"):
            with pytest.raises(InvalidInput, match="it has not been fenced"):
                await lost_nodes.recover_vm(connection, "shared", confirm, "me", discard_disk=False)
        with pytest.raises(Conflict, match="its only disk was there"):
            await lost_nodes.recover_vm(connection, "local", "a", "me", discard_disk=False)
        generation = await leases.begin(connection, "a")
        await lost_nodes.recover_vm(connection, "shared", "a", "me", discard_disk=False)
        assert not await leases.renew(connection, [leases.Beat("a", generation)], 0.0), "a has to begin anew"
    await place(fleet)
    assert (await nodes_of_vms(fleet))["shared"] == "b"


async def test_a_vm_whose_disk_is_not_on_its_connected_node_is_not_said_to_wait_for_anything(fleet: Database) -> None:
    """Its host was replaced, and has joined again: the advice must not be to wait, or to drain it."""
    async with fleet.transaction() as connection:
        await leases.begin(connection, "a")
        await connection.execute("UPDATE node_leases SET renewed_at = clock_timestamp() WHERE node = 'a'")
        await connection.execute("""UPDATE nodes SET status = status || '{"ready": true}' WHERE name = 'a'""")
        await connection.execute(
            """UPDATE vms SET status = status || '{"state": "failed", "reason_code": "DiskLost"}' WHERE id = 'local'"""
        )
        with pytest.raises(Conflict, match="is missing on node a, whose agent is connected") as refused:
            await lost_nodes.recover_vm(connection, "local", "a", "me", discard_disk=True)
        assert "novacron vm delete local" in str(refused.value.hint) and "drain" not in str(refused.value.hint)
    await silence(fleet, "a")
    async with fleet.transaction() as connection:
        await lost_nodes.recover_vm(connection, "local", "a", "me", discard_disk=True)
    await place(fleet)
    assert (await nodes_of_vms(fleet))["local"] == "b"


async def test_another_host_takes_a_nodes_place_only_once_that_is_silent(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        assert not await leases.another_host(connection, "a", "first"), "nobody knows from where it was heard"
        await leases.begin(connection, "a", boot="first")
        await connection.execute("UPDATE node_leases SET renewed_at = now()")
        found = [await leases.another_host(connection, node, boot) for node in "ab" for boot in ("first", "second", "")]
        assert found == [False, True, False, False, False, False]
        await connection.execute(
            "UPDATE node_leases SET renewed_at = now() - make_interval(secs => $1)", leases.ANOTHER_HOST_S + 1
        )
        assert not await leases.another_host(connection, "a", "second"), "the host was booted again"
        await leases.begin(connection, "a", boot="second")
        await connection.execute("UPDATE node_leases SET renewed_at = now()")
        assert await leases.another_host(connection, "a", "first")


async def test_a_recovered_vm_waits_for_a_node_that_has_its_shared_volume_and_says_so(fleet: Database) -> None:
    await add_volume(fleet, "shared-1", "shared", "shared")
    await remove(fleet)
    await place(fleet)
    async with fleet.connection() as connection:
        vm = await vms.get(connection, "shared")
    assert vm.node is None and vm.status.state is VmState.PENDING
    assert "node b does not have the shared pool shared of volume shared-1" in vm.status.reason


async def test_a_vm_of_a_silent_node_is_deleted_by_force(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        with pytest.raises(InvalidInput, match="it has not been fenced"):
            await lost_nodes.delete_vm(connection, "local", None, None, "me")
        await lost_nodes.delete_vm(connection, "local", None, "a", "me")
        assert (await owned.epochs(connection, ["local"]))["local"] == (2, True)
        await add_vm(connection, "alive", "b", **LOCAL)
        with pytest.raises(Conflict, match="was heard"):
            await lost_nodes.delete_vm(connection, "alive", None, "b", "me")


async def test_volumes_of_a_removed_node_are_said_to_be_lost_and_can_be_deleted(fleet: Database) -> None:
    await add_volume(fleet, "kept", "local")
    await add_volume(fleet, "going-away", "local", phase="deleting")
    await remove(fleet)
    async with fleet.transaction() as connection:
        assert (await volumes.get(connection, "kept")).error == "node a, which has it, was removed"
        await volumes.delete(connection, "kept", "me")
        assert await connection.fetchval("SELECT count(*) FROM volumes") == 0


async def test_a_node_with_local_volumes_is_not_removed_without_force(fleet: Database) -> None:
    await add_volume(fleet, "kept", "local")
    async with fleet.transaction() as connection:
        await connection.execute("DELETE FROM vms")
        with pytest.raises(Conflict, match="node a holds volumes: kept"):
            await nodes.remove(connection, "a", "me")


async def test_a_host_that_was_removed_must_end_its_vms_and_is_refused_when_it_comes_back(
    fleet: Database, tmp_path: Path
) -> None:
    authority = pki.Authority.open(tmp_path / "server")
    ca, key = tmp_path / "server" / "ca.crt", pki.new_key()
    context = pki.mutual_tls(ca, *authority.issue_server(tmp_path / "server", ["127.0.0.1"]), server=True)
    request = pki.certificate_request(key, "a")
    pki.write_secret(tmp_path / "node" / "node.key", pki.key_pem(key))
    pki.write_secret(tmp_path / "node" / "ca.crt", authority.pem)
    pki.write_secret(tmp_path / "node" / "node.crt", authority.issue_node(request, "a"))
    await remove(fleet)
    await place(fleet)
    (port,) = free_ports(1)
    identity = Identity(tmp_path / "node", f"https://127.0.0.1:{port}", "a")
    links = LinkServer(fleet, authority, KeyRing.first(authority.root()))
    url = f"wss://127.0.0.1:{port}"
    async with asyncio.timeout(30), links.listen("127.0.0.1", port, context):
        async with connect(url, ssl=identity.tls(server=False), compression=None, proxy=None) as link:
            held = tuple(
                wire.HeldVm(vm, OwnershipRecord(1, Claim.OWNER)) for vm in ("shared", "going", "local", "vm-x")
            )
            await link.send(codec.encode(wire.Hello(wire.PROTOCOL, INVENTORY, held)))
            told, _ = codec.decode_from_server(await link.recv(decode=False))
            assert isinstance(told, wire.Desired) and not told.whole
            orders: dict[str, Any] = {statement.vm: statement.order for statement in told.statements}
            assert set(orders) == {"shared", "going"}, "the lost disk is left alone, and what nobody knows"
            assert all(order.kind is OrderKind.GONE and order.epoch > 1 for order in orders.values())
            for vm in orders:
                await link.send(codec.encode(wire.Removed(vm)))
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await link.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (REFUSED, REASON)
    async with fleet.connection() as connection:
        assert await identities.node_of(connection, "a", pki.key_hash(x509.load_pem_x509_csr(request))) is None
        said = await connection.fetchval("SELECT message FROM events WHERE reason = 'Dismissed'")
        unknown = await connection.fetchval("SELECT message FROM events WHERE reason = 'UnknownHost'")
    assert "has ended 2 VMs" in said
    assert "has 1 VMs" in unknown and "vm-x" in unknown and "novacron agent --rejoin" in unknown, (
        "it may have joined after a backup was made"
    )


async def test_a_host_whose_place_another_has_taken_is_told_to_end_what_that_can_start(fleet: Database) -> None:
    before = {vm: await epoch_of(fleet, vm) for vm in ("shared", "off", "local")}
    async with fleet.transaction() as connection:
        await identities.join(connection, "a", "the key of another host")
        await lost_nodes.take_place(connection, "a")
    after = {vm: await epoch_of(fleet, vm) for vm in before}
    assert after == {"shared": before["shared"] + 1, "off": before["off"] + 1, "local": before["local"]}, (
        "a disk that only the other host has stays there"
    )


async def test_a_migration_ends_if_another_host_takes_the_place_of_its_target(fleet: Database) -> None:
    """The one that had loaded the guest is gone, and its source waits for a vote that never comes."""
    async with fleet.transaction() as connection:
        moved = (await vms.get(connection, "shared")).node
        target = "b" if moved == "a" else "a"
        await connection.execute(
            "INSERT INTO migrations (id, vm, vm_name, kind, source, target, epoch, phase, progress, source_vote)"
            " SELECT 'mig-1', id, name, 'live', node, $1, epoch, 'transferring', '{}', true FROM vms"
            " WHERE id = 'shared'",
            target,
        )
        await connection.execute("UPDATE vms SET migration = 'mig-1' WHERE id = 'shared'")
        before = (await vms.get(connection, "shared")).epoch
        stood = await connection.fetchval("SELECT moved_at FROM migrations")
        await migrations.vote(connection, "mig-1", str(moved), Side.SOURCE, before)
        assert await connection.fetchval("SELECT moved_at FROM migrations") == stood, "to say it again is no progress"
        await lost_nodes.take_place(connection, target)
        vm = await vms.get(connection, "shared")
        row = await connection.fetchrow("SELECT phase, error FROM migrations")
    assert (vm.node, vm.epoch, vm.migration) == (moved, before + 1, None)
    assert row is not None and row["phase"] == "failed" and "has taken the place of node" in row["error"]
