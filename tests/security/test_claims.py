"""A node that claims to know more than the database: it keeps nobody from anything, unless a server has said so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect

from lab.ports import free_ports
from novacron import pki
from novacron.agent.identity import Identity
from novacron.key_ring import KeyRing
from novacron.model.database_mark import NUMBER_MAX, DatabaseMark
from novacron.model.errors import Conflict, InvalidInput
from novacron.model.network import NetworkSpec, NicSpec
from novacron.model.ownership import EPOCH_MAX, Claim, Order, OrderKind, OwnershipRecord
from novacron.model.vm import VmAction, VmSpec
from novacron.ownership_proofs import WEEK_S, WEEKS_MAX, OwnershipProofs
from novacron.server.link import LinkServer
from novacron.store import (
    adoption,
    database_marks,
    identities,
    networks,
    new_vms,
    nodes,
    projects,
    reconciling,
    unreconciled,
    vms,
)
from novacron.store.database import Connection, Database
from novacron.wire import codec
from novacron.wire import messages as wire
from tests.integration.test_link import INVENTORY
from tests.support.stored_fleet import add_node, add_vm
from tests.waiting import eventually

FORGED = DatabaseMark("5e17", NUMBER_MAX)
OWNER = OwnershipRecord(2, Claim.OWNER)


class Hostile:
    """A host with a node's key, that says what it wants."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.authority = pki.Authority.open(directory / "server")
        self.proofs = OwnershipProofs(lambda: self.authority.roots)
        self.links = LinkServer(database, self.authority, KeyRing.first(self.authority.root()))
        self._database, self._directory, self.port = database, directory, free_ports(1)[0]

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = self._directory / "server"
        certificate, key = self.authority.issue_server(server, ["127.0.0.1"])
        context = pki.mutual_tls(server / "ca.crt", certificate, key, server=True)
        async with self.links.listen("127.0.0.1", self.port, context):
            yield

    async def join(self, name: str, *, accepted: bool = True) -> Identity:
        key, directory = pki.new_key(), self._directory / name
        certificate = self.authority.issue_node(pki.certificate_request(key, name), name)
        for file, content in (("key", pki.key_pem(key)), ("crt", certificate)):
            pki.write_secret(directory / f"node.{file}", content)
        pki.write_secret(directory / "ca.crt", self.authority.pem)
        async with self._database.transaction() as connection:
            await identities.join(connection, name, pki.authority_hash(certificate), accepted=accepted)
        return Identity(directory, f"https://127.0.0.1:{self.port}", name)

    @contextlib.asynccontextmanager
    async def connected(
        self, who: Identity, held: Sequence[wire.HeldVm], mark: DatabaseMark | None = None
    ) -> AsyncIterator[ClientConnection]:
        """The link of a node that has said what it holds, once that was heard."""
        url, tls = f"wss://127.0.0.1:{self.port}", who.tls(server=False)
        async with connect(url, ssl=tls, compression=None, proxy=None) as link:
            await link.send(codec.encode(wire.Hello(wire.PROTOCOL, INVENTORY, tuple(held), mark)))
            await eventually(lambda: who.name in self.links._sessions, "the node is connected")
            yield link

    async def says(self, who: Identity, *held: wire.HeldVm, mark: DatabaseMark | None = None) -> None:
        """The node connects, says what it holds, and disconnects."""
        async with self.connected(who, held, mark):
            pass
        await eventually(lambda: who.name not in self.links._sessions, "the node has disconnected")


@pytest.fixture
async def hostile(database: Database, tmp_path: Path) -> AsyncIterator[Hostile]:
    """A fleet of nodes a and b, VM web on b, network lan, and a server for nodes."""
    async with database.transaction() as connection:
        for name in "ab":
            await add_node(connection, name)
        await networks.create(connection, "default", "lan", NetworkSpec(subnet="10.9.0.0/24"), None, "me")
        await add_vm(connection, "web", "b", own_disk=False)
    hostile = Hostile(database, tmp_path)
    async with asyncio.timeout(60), hostile.listening():
        yield hostile


async def held_up(database: Database) -> dict[str, str]:
    """Return which VMs of node b must wait for others, and why."""
    async with database.connection() as connection:
        return await unreconciled.withheld(connection, {"web": "b"})


async def web(database: Database) -> Any:
    async with database.connection() as connection:
        return await vms.get(connection, "web")


async def claims(database: Database, node: str) -> dict[str, str]:
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT vm, contradiction, proven FROM unreconciled_vms WHERE node = $1", node)
    return {row["vm"]: row["contradiction"] if row["proven"] else "unproven" for row in rows}


async def test_a_node_that_claims_more_than_the_database_knows_and_goes_away_holds_up_nobody(
    hostile: Hostile, database: Database
) -> None:
    invented, damaged = wire.HeldVm("vm-x", OWNER), wire.HeldVm("vm-x", None)
    for name, held, mark in (("forged", (), FORGED), ("invents", (invented,), None), ("damaged", (damaged,), None)):
        evil = await hostile.join(name)
        await hostile.says(evil, *held, mark=mark)
        assert await held_up(database) == {}, name
        async with database.transaction() as connection:
            assert await unreconciled.hold(connection) is None, name
            alarms = await connection.fetch(
                "SELECT message FROM events WHERE reason = 'UnprovenClaims' AND object = $1", name
            )
        assert await claims(database, name) == {vm.vm: "unproven" for vm in held}
        assert len(alarms) == len(held)


async def test_a_node_that_claims_a_later_epoch_of_another_nodes_vm_changes_nothing_for_it(
    hostile: Hostile, database: Database
) -> None:
    evil = await hostile.join("evil")
    told = hostile.proofs.of_order("web", Order(OrderKind.GONE, 1))  # it had the VM once
    for held in (*(OwnershipRecord(EPOCH_MAX, claim) for claim in Claim), OwnershipRecord(1, Claim.OWNER)):
        await hostile.says(evil, wire.HeldVm("web", held, told))
        vm = await web(database)
        assert (vm.unreconciled, vm.status.state, vm.node) == (None, "running", "b")
        assert await claims(database, "evil") == {"web": "unproven"} and await held_up(database) == {}
    async with database.transaction() as connection:
        await vms.act(connection, "web", VmAction.STOP, None, "me")
    async with database.transaction() as connection:
        await adoption.forget(connection, "web", "web", "me")
    vm = await web(database)
    assert (vm.unreconciled, vm.node) == (None, "b") and vm.epoch <= reconciling.UNPROVEN_EPOCH_MAX + 1


async def test_what_a_node_says_of_invented_vms_reserves_nothing_and_has_a_limit(
    hostile: Hostile, database: Database
) -> None:
    evil = await hostile.join("evil")
    spec = msgspec.to_builtins(VmSpec(image="tiny", memory_mib=64)) | {
        "nics": [{"network": "lan", "address": "10.9.0.7"}]
    }
    described = {"name": "new", "project": "default", "spec": spec, "volumes": [{"id": "vol-1"}]}
    many = [wire.HeldVm(f"vm-{number}", OWNER) for number in range(reconciling.UNPROVEN_MAX + 10)]
    async with hostile.connected(evil, many) as link:
        await link.send(codec.encode(wire.Contradicted("vm-0", OWNER, described)))

        async def is_described() -> bool:
            async with database.connection() as connection:
                found: bool = await connection.fetchval(
                    "SELECT EXISTS (SELECT FROM unreconciled_vms WHERE vm = 'vm-0' AND description IS NOT NULL)"
                )
                return found

        await eventually(is_described, "the description was stored")
        assert len(await claims(database, "evil")) == reconciling.UNPROVEN_MAX
        async with database.transaction() as connection:
            nic = NicSpec("lan", address="10.9.0.7")
            new = new_vms.NewVm("new", VmSpec(image="tiny", memory_mib=64, nics=(nic,)), 0)
            await new_vms.create(connection, await projects.making(connection, "default"), new, "me")
            await unreconciled.check_volumes(connection, ["vol-1"])
        async with database.transaction() as connection:
            with pytest.raises(InvalidInput, match="it can't prove that a server told it so"):
                await adoption.adopt(connection, "vm-0", adoption.Adoption(), "me")


async def test_what_a_server_has_said_counts_against_an_older_database_and_nothing_else_of_a_host_that_is_no_node(
    hostile: Hostile, database: Database
) -> None:
    """The proof outlives the database that was put back, in which a node may not have been accepted yet."""
    late = await hostile.join("late", accepted=False)
    await hostile.says(late, wire.HeldVm("vm-x", OWNER), wire.HeldVm("web", None), mark=FORGED)
    assert await claims(database, "late") == {} and await held_up(database) == {}
    proof = hostile.proofs.of_order("web", Order(OrderKind.OWN, 2))
    await hostile.says(late, wire.HeldVm("web", OWNER, proof))
    assert "node late has it, at epoch 2" in str((await web(database)).unreconciled)
    async with database.transaction() as connection:
        assert await unreconciled.hold(connection) is not None


async def test_a_node_that_is_removed_takes_its_claims_with_it(hostile: Hostile, database: Database) -> None:
    evil = await hostile.join("evil")
    await hostile.says(evil, wire.HeldVm("web", OwnershipRecord(EPOCH_MAX, Claim.OWNER)))
    async with database.transaction() as connection:
        await reconciling.node_removed(connection, "evil")
    vm = await web(database)
    assert (vm.epoch, vm.unreconciled) == (1, None) and await claims(database, "evil") == {}


async def test_a_mark_that_a_server_gave_tells_on_an_older_database_once(hostile: Hostile, database: Database) -> None:
    seen = await hostile.join("seen")
    mark = hostile.proofs.seal(DatabaseMark("5e17", 7))
    await hostile.says(seen, mark=mark)
    assert "has not connected since" in (await held_up(database))["web"]
    async with database.transaction() as connection:
        await connection.execute("UPDATE node_leases SET renewed_at = clock_timestamp()")
        assert await database_marks.settle(connection) is None
    for number in (7, 8):  # a stolen node keeps marks of the time that was lost
        await hostile.says(seen, mark=hostile.proofs.seal(DatabaseMark("5e17", number)))
        assert await held_up(database) == {}


async def test_a_node_from_before_there_were_proofs_is_believed_until_it_has_them(
    hostile: Hostile, database: Database
) -> None:
    old = await hostile.join("old")

    async def upgraded(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO node_leases (node, renewed_at, unproven_until)"
            " VALUES ('old', clock_timestamp(), clock_timestamp() + interval '1 h')"
            " ON CONFLICT (node) DO UPDATE SET unproven_until = excluded.unproven_until"
        )

    await database.transact(upgraded)
    await hostile.says(old, wire.HeldVm("vm-old", OWNER))
    assert await claims(database, "old") == {"vm-old": "unknown"}
    await hostile.says(old, wire.HeldVm("vm-old", OWNER, hostile.proofs.of_order("vm-old", Order(OrderKind.OWN, 2))))
    await hostile.says(old, wire.HeldVm("vm-x", OWNER))
    assert await claims(database, "old") == {"vm-x": "unproven"}


async def test_a_node_is_given_proofs_and_shows_them_when_an_older_database_was_put_back(
    hostile: Hostile, database: Database
) -> None:
    good = await hostile.join("good")
    async with database.transaction() as connection:
        await add_vm(connection, "mine", "good", own_disk=False)
    hostile.links.resync()
    async with hostile.connected(good, ()) as link:
        told: wire.Message | None = None
        while not isinstance(told, wire.Desired):
            told, _ = codec.decode_from_server(await link.recv(decode=False))
    (statement,) = told.statements
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM vms WHERE id = 'mine'")
    record = OwnershipRecord(statement.order.epoch, Claim.OWNER)
    await hostile.says(good, wire.HeldVm("mine", record, statement.proof))
    assert await claims(database, "good") == {"mine": "unknown"}
    async with database.transaction() as connection:
        with pytest.raises(Conflict, match="node good has VM mine"):
            await nodes.remove(connection, "good", "me")


def test_a_proof_is_of_one_vm_epoch_and_order_and_ends_before_a_deletion_is_forgotten() -> None:
    now = 1e9
    old = [b"root"]
    proofs = OwnershipProofs(lambda: old, lambda: now)
    proof = proofs.of_order("vm-a", Order(OrderKind.OWN, 2))
    assert proofs.prove("vm-a", OWNER, proof)
    assert proofs.prove("vm-a", OwnershipRecord(2, Claim.RELEASED), proof)
    for vm, held, shown in (
        ("vm-b", OWNER, proof), ("vm-a", OwnershipRecord(3, Claim.OWNER), proof), ("vm-a", OWNER, ""),
        ("vm-a", OWNER, proofs.of_order("vm-a", Order(OrderKind.RECEIVE, 2))), ("vm-a", OWNER, f"0{proof}.x"),
        ("vm-a", OWNER, "é.é"), ("vm-a", OWNER, f"ffffff.{proof.partition('.')[2]}"),
    ):  # fmt: skip
        assert not proofs.prove(vm, held, shown), (vm, held, shown)
    rotating = [b"new root", b"root"]
    assert OwnershipProofs(lambda: rotating, lambda: now).prove("vm-a", OWNER, proof)
    later = now + (WEEKS_MAX + 1) * WEEK_S
    assert not OwnershipProofs(lambda: old, lambda: later).prove("vm-a", OWNER, proof)
