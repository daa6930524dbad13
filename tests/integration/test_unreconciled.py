"""An older database put back: what nodes know of VMs beyond it, and that nothing is done against that."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.control.objects import Objects
from novacron.control.placement import PlacementController
from novacron.model import limits
from novacron.model.condition import ConditionReason, ConditionType
from novacron.model.database_mark import DatabaseMark
from novacron.model.errors import Conflict, InvalidInput, NotFound
from novacron.model.ownership import Claim, OrderKind, OwnershipRecord
from novacron.model.vm import VmAction, VmState, VmStatus
from novacron.server import node_statements
from novacron.server.database_watch import DatabaseWatch
from novacron.server.node_statements import NodeBasis
from novacron.store import (
    conditions,
    database_marks,
    failover,
    leases,
    lost_nodes,
    migrations,
    nodes,
    owned,
    reconciling,
    unreconciled,
    vms,
    volumes,
)
from novacron.store import fleet as fleet_store
from novacron.store.database import Database
from novacron.store.leader import leadership
from novacron.store.reconciling import NodeRecord
from novacron.wire import messages as wire
from tests.support import older_database
from tests.support.older_database import (
    NEW,
    NIC,
    act,
    adopt,
    count,
    create,
    forget,
    hear,
    orders,
    said,
    stored,
    withheld,
)
from tests.support.project_secrets import PlainSecrets
from tests.support.stored_fleet import add_node, add_vm, nodes_of_vms

fleet = older_database.fleet


async def test_nothing_is_given_out_that_a_vm_has_which_only_a_node_knows(fleet: Database) -> None:
    volume = {"id": "vol-1", "pool": "local", "lun": 0, "size_mib": 8}
    await said(fleet, "b", NEW, 3, nics=[NIC], volumes=(volume,))
    assert await count(fleet, "b") == 1
    with pytest.raises(Conflict, match="node b has a VM named 'new'") as refused:
        await create(fleet, "new")
    assert "novacron vm adopt new" in str(refused.value.hint)
    with pytest.raises(Conflict, match="VM new, which is unreconciled, has 10"):
        await create(fleet, "other", "10.9.0.7", nic=True)
    for number in range(6):
        assert (await create(fleet, f"other-{number}", nic=True)).nics[0].address != "10.9.0.7"
    async with fleet.transaction() as connection:
        await connection.execute(
            "INSERT INTO volumes (id, name, pool, kind, node, size_mib, phase, project)"
            " VALUES ('vol-1', 'data', 'local', 'local', 'a', 8, 'ready', 'default')"
        )
        with pytest.raises(Conflict, match="VM new, which is unreconciled"):
            await volumes.attach(connection, "vol-1", "web", volumes.Attachment(), "me")
        with pytest.raises(Conflict, match="VM new, which is unreconciled"):
            await volumes.delete(connection, "vol-1", "me")
        await connection.execute("UPDATE volumes SET phase = 'deleting'")
        assert not await volumes.on_node(connection, "a"), "the node is not told to delete it"
        with pytest.raises(Conflict, match="node b has VM new"):
            await nodes.remove(connection, "b", "me")


async def test_a_vm_that_only_a_node_knows_takes_the_room_that_it_has_there(fleet: Database) -> None:
    async def load(node: str) -> tuple[int, int]:
        async with fleet.transaction() as connection:
            whole = (await fleet_store.load(connection)).loads[node]
            part = (await fleet_store.load_some(connection, [node], [])).loads[node]
        assert whole == part
        return whole.vcpus, whole.memory_mib

    assert await load("b") == (0, 0)
    before = await load("a")
    await said(fleet, "b", NEW, 3)
    taken = await load("b")
    assert taken > (0, 0)
    await said(fleet, "b", "web", 3)
    assert await load("b") > taken, "it runs there, wherever the database has it"
    assert await load("a") == before
    async with fleet.transaction() as connection:
        for hostile in ('"many"', "-5", "1e300", "null", "[]"):
            await connection.execute(
                "UPDATE unreconciled_vms SET description = jsonb_set(description, '{spec,vcpus}', $1::text::jsonb)",
                hostile,
            )
            assert 0 <= (await fleet_store.load(connection)).loads["b"].vcpus <= 2 * limits.VCPUS_MAX
        await connection.execute(
            "UPDATE unreconciled_vms SET description = jsonb_set(jsonb_set(jsonb_set(description,"
            " '{spec,vcpus}', '2'), '{spec,cpu_policy}', '\"dedicated\"'), '{spec,hugepages}', '\"2M\"')"
        )
        own = (await fleet_store.load(connection)).loads["b"]
        assert (own.dedicated_vcpus, own.memory_mib, own.huge_2m_mib, own.huge_1g_mib) == (4, 0, 128, 0)
        await connection.execute("UPDATE unreconciled_vms SET proven = false")
    assert await load("b") == (0, 0), "nobody has seen a proof of it"


async def test_a_vm_of_which_a_node_knows_a_later_epoch_is_left_alone_by_everybody(fleet: Database) -> None:
    await said(fleet, "b", "web", 3)
    vm = await stored(fleet, "web")
    assert vm.status.state is VmState.UNKNOWN
    assert vm.unreconciled == "node b has it, at epoch 3; the database has it on a, at epoch 1"
    for action in (*set(VmAction) - {VmAction.CONFIGURE, VmAction.MIGRATE, VmAction.CLONE, VmAction.EXPORT},):
        with pytest.raises(Conflict, match="node b has it, at epoch 3") as refused:
            await act(fleet, "web", action)
        assert "novacron vm adopt web" in str(refused.value.hint) and "vm forget web" in str(refused.value.hint)
        with pytest.raises(Conflict):
            vms.act_in_one_statement(vm, action, None, "me", None)
    assert await orders(fleet, "a", "web") == {} == await orders(fleet, "b", "web")
    async with fleet.transaction() as connection:
        assert await failover.waiting(connection, "a") == []
        assert await failover.restart_elsewhere(connection, "web", "a", "a is silent") is None
        await owned.observe(connection, [owned.Report("a", "web", 1, VmStatus(state=VmState.RUNNING))])
    assert (await stored(fleet, "web")).status.state is VmState.UNKNOWN
    with pytest.raises(Exception, match="its epoch stays as it is"):
        async with fleet.transaction() as connection:
            await connection.execute("UPDATE vms SET epoch = epoch + 1 WHERE id = 'web'")


async def test_a_vm_that_the_database_has_on_no_node_is_not_placed_while_a_node_has_it(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_vm(connection, "waits")
    await said(fleet, "b", "waits", 1)
    await PlacementController().step(fleet, Objects("placement"))
    assert (await nodes_of_vms(fleet))["waits"] is None
    adopted = await adopt(fleet, "waits")
    assert (adopted.node, adopted.epoch) == ("b", 2)


async def test_an_adopted_vm_is_as_its_node_knows_it_at_an_epoch_above_all(fleet: Database) -> None:
    volume = {"id": "vol-1", "pool": "local", "lun": 0, "size_mib": 8, "moves": True}
    await said(fleet, "b", NEW, 3, nics=[NIC], volumes=(volume,))
    vm = await adopt(fleet, "new")
    assert (vm.id, vm.name, vm.node, vm.epoch, vm.status.machine) == (NEW, "new", "b", 4, "pc-q35-7.2")
    assert await orders(fleet, "b", NEW) == {NEW: (OrderKind.OWN, 4)}
    async with fleet.connection() as connection:
        (attached,) = await volumes.of_vm(connection, NEW)
    assert (attached.id, attached.node, attached.lun) == ("vol-1", "b", 0)
    with pytest.raises(InvalidInput, match="is another VM's"):
        await create(fleet, "other", "10.9.0.7", nic=True)
    assert await count(fleet, "b") == 0
    await act(fleet, NEW, VmAction.STOP)
    with pytest.raises(NotFound):
        await adopt(fleet, "new")


async def test_a_vm_that_moved_after_the_backup_is_adopted_where_it_is(fleet: Database) -> None:
    await said(fleet, "a", "web", 2, Claim.NONE)
    await said(fleet, "b", "web", 2, name="web")
    vm = await adopt(fleet, "web")
    assert (vm.node, vm.epoch, vm.unreconciled) == ("b", 3, None)
    assert await orders(fleet, "a", "web") == {"web": (OrderKind.GONE, 3)}
    assert await orders(fleet, "b", "web") == {"web": (OrderKind.OWN, 3)}


async def test_what_stands_in_the_way_of_an_adoption_is_said(fleet: Database) -> None:
    await create(fleet, "new")
    await create(fleet, "other", "10.9.0.7", nic=True)
    await said(fleet, "b", NEW, 3, nics=[NIC])
    with pytest.raises(Conflict, match="in network lan now belongs to another VM"):
        await adopt(fleet, NEW)
    await said(fleet, "b", NEW, 3, nics=[{"network": "gone", "address": None}])
    with pytest.raises(Conflict, match="has no network gone") as refused:
        await adopt(fleet, NEW)
    assert "novacron network create gone" in str(refused.value.hint)
    await said(fleet, "b", NEW, 3)
    with pytest.raises(Conflict, match="another VM is named 'new'"):
        await adopt(fleet, NEW)
    assert (await adopt(fleet, NEW, name="again")).name == "again"


async def test_a_vm_that_was_deleted_after_the_backup_is_not_started_and_goes_when_that_is_adopted(
    fleet: Database,
) -> None:
    await said(fleet, "a", "web", 2, Claim.NONE)
    assert await orders(fleet, "a") == {}
    assert "has removed it or handed it over" in str((await stored(fleet, "web")).unreconciled)
    with pytest.raises(InvalidInput, match="another node may have it") as refused:
        await adopt(fleet, "web")
    assert refused.value.field == "confirm" and "--confirm web" in str(refused.value.hint)
    await adopt(fleet, "web", confirm="web")
    assert await nodes_of_vms(fleet) == {}
    await said(fleet, "b", "web", 3)
    assert await orders(fleet, "b", "web") == {}, "another node that has it after all is not told to end it"


async def test_a_vm_whose_deletion_the_database_saw_begin_is_gone_with_its_nodes_word(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET deleting = true")
    await said(fleet, "a", "web", 2, Claim.NONE)
    assert await nodes_of_vms(fleet) == {}
    async with fleet.connection() as connection:
        assert await owned.epochs(connection, ["web"]) == {"web": (3, True)}


async def test_a_forgotten_vm_is_ended_where_the_database_does_not_have_it(fleet: Database) -> None:
    await said(fleet, "b", NEW, 3)
    await said(fleet, "b", "web", 5, name="web")
    await hear(fleet, "a", "b")
    for ref, name in ((NEW, "new"), ("web", "web")):
        with pytest.raises(InvalidInput, match="with its disk") as refused:
            await forget(fleet, ref, None)
        assert f"--confirm {name}" in str(refused.value.hint)
        await forget(fleet, ref, name)
    assert await orders(fleet, "b", NEW, "web") == {NEW: (OrderKind.GONE, 4), "web": (OrderKind.GONE, 6)}
    assert await orders(fleet, "a", "web") == {}, "it begins there once it has ended elsewhere"
    await said(fleet, "b", "web", 5, whole=True)
    assert "node b ends what it has of it" in str((await stored(fleet, "web")).unreconciled)
    assert await orders(fleet, "a", "web") == {}, "it has not yet"
    for again in (adopt(fleet, "web"), forget(fleet, "web", "web"), act(fleet, "web", VmAction.STOP)):
        with pytest.raises(Conflict, match="node b ends what it has") as unneeded:
            await again
        assert "novacron vm unreconciled" in str(unneeded.value.hint)
    await fleet.transact(lambda connection: reconciling.ended(connection, "b", "web"))
    assert await orders(fleet, "a", "web") == {"web": (OrderKind.OWN, 7)}
    await said(fleet, "b", NEW, 3)
    assert await count(fleet, "b") == 0, "what the node says late is no contradiction any more"


async def test_a_vm_whose_node_has_removed_it_is_not_begun_anew_on_the_databases_word(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await connection.execute(
            "UPDATE nodes SET status = jsonb_set(status, '{inventory,images,0,disk_bytes}', '1073741824')"
        )
        await add_vm(connection, "db", "a")
    for vm in ("web", "db"):
        await said(fleet, "a", vm, 2, Claim.NONE)
        await hear(fleet, "a", "b")
        await forget(fleet, vm, vm)
    assert await orders(fleet, "a") == {}
    lost, web = await stored(fleet, "db"), await stored(fleet, "web")
    assert (lost.lost_on, lost.status.state) == ("a", VmState.FAILED) and "vm recover db" in lost.status.reason
    assert (web.node, web.lost_on) == (None, None), "what has no disk of its own is placed again"


async def test_a_contradiction_ends_when_its_node_has_nothing_of_the_vm_any_more(fleet: Database) -> None:
    await said(fleet, "b", "web", 3)
    await said(fleet, "b", NEW, 3)
    await fleet.transact(lambda connection: reconciling.take(connection, "b", [], whole=True))
    vm = await stored(fleet, "web")
    assert (vm.unreconciled, vm.node, vm.epoch) == (None, "a", 2) and await count(fleet, "b") == 0
    await said(fleet, "a", "web", 4, Claim.NONE)
    await fleet.transact(lambda connection: reconciling.take(connection, "a", [], whole=True))
    assert (await stored(fleet, "web")).unreconciled is not None, "that it has it no more is what it said"


async def test_what_a_migration_brought_that_the_database_has_forgotten_is_removed(fleet: Database) -> None:
    for _ in range(2):
        await said(fleet, "b", "web", 1, Claim.INCOMING)
    vm = await stored(fleet, "web")
    assert (vm.node, vm.epoch, vm.unreconciled) == ("a", 2, None), "the node obeys the next epoch"
    assert await orders(fleet, "b", "web") == {"web": (OrderKind.GONE, 2)}
    assert await orders(fleet, "a", "web") == {"web": (OrderKind.OWN, 2)}
    await said(fleet, "a", "web", 4)
    await said(fleet, "b", "web", 2, Claim.INCOMING)
    assert (await stored(fleet, "web")).epoch == 2, "a VM that is unreconciled stays as it is"


async def test_a_migration_that_only_the_old_database_knows_ends_and_moves_nothing(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await connection.execute(
            "INSERT INTO migrations (id, vm, vm_name, kind, source, target, epoch, phase, progress)"
            " VALUES ('mig-1', 'web', 'web', 'live', 'a', 'b', 1, 'transferring', '{}')"
        )
        await connection.execute("UPDATE vms SET migration = 'mig-1'")
    await said(fleet, "b", "web", 2)
    vm = await stored(fleet, "web")
    assert (vm.node, vm.epoch, vm.migration) == ("a", 1, None)
    async with fleet.connection() as connection:
        row = await connection.fetchrow("SELECT phase, error FROM migrations")
    assert row is not None and row["phase"] == "failed" and "older" in row["error"]


async def test_a_node_is_told_nothing_of_networks_and_volumes_before_it_has_described_its_vm(fleet: Database) -> None:
    async def told() -> set[type]:
        async with fleet.transaction(isolation="repeatable_read") as connection:
            basis = NodeBasis(None, ())
            return {type(m) for m in await node_statements.messages(connection, "b", {NEW}, PlainSecrets(), basis)}

    record = NodeRecord(NEW, OwnershipRecord(3, Claim.OWNER))
    await fleet.transact(lambda connection: reconciling.take(connection, "b", [record], whole=True))
    assert not {wire.Networks, wire.Volumes} & await told()
    hostile = NodeRecord(NEW, OwnershipRecord(3, Claim.OWNER), {"name": "../x", "spec": 7, "volumes": "all"})
    await fleet.transact(lambda connection: reconciling.take(connection, "b", [hostile], whole=False))
    assert not {wire.Networks, wire.Volumes} & await told()
    await said(fleet, "b", NEW, 3)
    assert {wire.Networks, wire.Volumes} <= await told()


async def test_nothing_is_started_elsewhere_before_every_node_was_heard_that_may_have_it(fleet: Database) -> None:
    """The first node that knows more gives the older database away; another one may know of any VM."""
    async with fleet.transaction() as connection:
        await add_node(connection, "c")
        await add_vm(connection, "waits")
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node IN ('a', 'c')")
    await said(fleet, "b", NEW, 3)
    await create(fleet, "young")
    await PlacementController().step(fleet, Objects("placement"))
    placed = {vm.name: vm for vm in [await stored(fleet, id) for id in await nodes_of_vms(fleet)]}
    assert placed["young"].node is not None, "a VM that was created since can be nowhere else"
    assert placed["waits"].node is None
    assert "node a, which may have the VM, has not connected since" in placed["waits"].status.reason
    async with fleet.transaction() as connection:
        assert await failover.restart_elsewhere(connection, "web", "a", "a is silent") is None
        with pytest.raises(Conflict, match=r"node [bc], which may have the VM") as refused:
            await lost_nodes.recover_vm(connection, "web", "a", "me", discard_disk=False)
        assert "novacron node remove" in str(refused.value.hint)
    async with fleet.transaction() as connection:
        message = await connection.fetchval("SELECT message FROM events WHERE reason = 'FailoverWaits'")
        assert "which may have the VM" in message
        await connection.execute("UPDATE node_leases SET renewed_at = clock_timestamp() WHERE node IN ('b', 'c')")
        assert await failover.restart_elsewhere(connection, "web", "a", "a is silent") is not None
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE node_leases SET renewed_at = clock_timestamp()")
    await PlacementController().step(fleet, Objects("placement"))
    assert (await stored(fleet, "waits")).node is not None


async def doubted(database: Database, mark: DatabaseMark | None) -> str:
    return await database.transact(lambda connection: database_marks.doubt(connection, mark))


async def test_a_server_doubts_a_database_that_it_or_another_may_have_seen_more_of(fleet: Database) -> None:
    assert await doubted(fleet, None) == "", "no server has counted in it: it is new, or from before there were marks"
    assert "it is older than" in await doubted(fleet, DatabaseMark("5e17", 1))
    mark = await fleet.transact(lambda connection: database_marks.begin(connection, "5e17"))
    assert await doubted(fleet, mark) == ""
    later = await fleet.transact(lambda connection: database_marks.count(connection, mark))
    assert later == DatabaseMark("5e17", mark.number + 1)
    assert await doubted(fleet, mark) == "", "the server was killed before it wrote the last number down"
    assert "own files are older" in await doubted(fleet, DatabaseMark("5e17", mark.number - 1))
    assert "it is older than" in await doubted(fleet, DatabaseMark("5e17", later.number + 1))
    assert "has not used it before" in await doubted(fleet, None)
    other = await fleet.transact(lambda connection: database_marks.begin(connection, "07e4"))
    assert "another server, which was not stopped" in await doubted(fleet, later)
    async with leadership(fleet.url, database_marks.lock_of("07e4")):
        assert await doubted(fleet, later) == "" == await doubted(fleet, None), "another one runs: it was in use"
    await fleet.transact(lambda connection: database_marks.end(connection, other))
    assert await doubted(fleet, later) == ""


async def test_a_server_whose_database_is_replaced_under_it_lets_every_node_connect_again(
    fleet: Database, tmp_path: Path
) -> None:
    changed: list[None] = []
    watch = DatabaseWatch(fleet, tmp_path / "database.mark", lambda: changed.append(None))
    await watch.begin()
    before = watch.mark
    await watch.step()
    assert before is not None and watch.mark == DatabaseMark(before.server, before.number + 1) and not changed
    async with fleet.transaction() as connection:
        generations = await connection.fetch("SELECT generation FROM node_leases ORDER BY node")
        await connection.execute("UPDATE database_marks SET number = number - 1")
    await watch.step()
    assert watch.mark.server != before.server and len(changed) == 1
    async with fleet.connection() as connection:
        now = await connection.fetch("SELECT generation FROM node_leases ORDER BY node")
        assert not {row["generation"] for row in now} & {row["generation"] for row in generations}
        assert await unreconciled.not_heard(connection) == ["a", "b"]
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE node_leases SET renewed_at = clock_timestamp()")
    await watch.step()
    assert len(changed) == 2
    async with fleet.connection() as connection:
        events = await connection.fetch("SELECT reason, message FROM events WHERE kind = 'database' ORDER BY id")
    assert [row["reason"] for row in events] == ["DatabaseSuspected", "DatabaseTrusted"]
    assert "after these nodes have connected: a, b" in events[0]["message"]


async def test_a_vm_waits_for_nodes_that_may_have_it_and_a_young_one_does_not(fleet: Database) -> None:
    async def compare(number: int) -> None:
        mark = DatabaseMark("5e17", number)
        await fleet.transact(lambda connection: database_marks.compare(connection, "a", mark))

    await fleet.transact(lambda connection: database_marks.begin(connection, "5e17"))
    await compare(1)
    assert await withheld(fleet, "a") == {"web": ""}
    await compare(2)
    async with fleet.transaction() as connection:
        await add_vm(connection, "young", "a")
        await connection.execute("UPDATE node_leases SET renewed_at = clock_timestamp() WHERE node = 'a'")
    waits = await withheld(fleet, "a")
    why, young = waits["web"], waits["young"]
    assert "node b, which may have the VM, has not connected since" in why and young == ""
    async with fleet.transaction() as connection:
        await conditions.refresh(connection, "b")
        (condition,) = [
            c for c in (await nodes.get(connection, "b")).status.conditions if c.type is ConditionType.DATABASE
        ]
        assert condition.reason is ConditionReason.NOT_HEARD_SINCE_RESTORE
        with pytest.raises(Conflict, match="node b, which may have the VM") as refused:
            await migrations.create(connection, "web", migrations.MoveRequest(actor="me"))
        assert "novacron node remove" in str(refused.value.hint)
    async with fleet.transaction() as connection:
        await leases.fenced(connection, "b", cut_off=True)
    assert await withheld(fleet, "a") == {"web": "", "young": ""}, "a node that was cut off since runs nothing"
