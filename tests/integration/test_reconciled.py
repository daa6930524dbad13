"""What operators decide about VMs of which nodes know more than an older database, and what becomes of them."""

from __future__ import annotations

import pytest

from novacron.model.errors import Conflict
from novacron.model.ownership import Claim, OrderKind, OwnershipRecord
from novacron.store import (
    adoption,
    leases,
    lost_nodes,
    reconciling,
    unreconciled,
    vms,
)
from novacron.store.database import Database
from novacron.store.reconciling import NodeRecord
from tests.support import older_database
from tests.support.older_database import adopt, described, forget, hear, orders, said, stored
from tests.support.stored_fleet import add_node

fleet = older_database.fleet


async def test_nothing_is_forgotten_while_a_node_may_have_it_that_was_not_heard(fleet: Database) -> None:
    """Node b says that the VM was moved at epoch 3. Node c, which is off, has it since: its disk would be removed."""
    async with fleet.transaction() as connection:
        await add_node(connection, "c")
    await said(fleet, "b", "web", 3, Claim.RELEASED)
    await hear(fleet, "a", "b")
    for decision in (forget(fleet, "web", "web"), adopt(fleet, "web", node="b", confirm="web")):
        with pytest.raises(Conflict, match="node c, which may have the VM, has not connected since") as refused:
            await decision
        assert "novacron node remove c --force" in str(refused.value.hint)
    await said(fleet, "c", "web", 3, name="web")
    await hear(fleet, "c")
    assert (await adopt(fleet, "web", node="c")).node == "c"


@pytest.mark.parametrize("claim", [Claim.OWNER, Claim.RELEASED, Claim.INCOMING])
async def test_a_vm_that_goes_on_at_the_epoch_at_which_an_older_database_deleted_it_is_seen(
    fleet: Database, claim: Claim
) -> None:
    """It was moved at epoch 2, which the database does not know, and deleted in it by force."""
    async with fleet.transaction() as connection:
        await vms.remove(connection, await vms.get(connection, "web"))
    await said(fleet, "b", "web", 2, claim, name="web")
    await hear(fleet, "a", "b")
    async with fleet.connection() as connection:
        (seen,) = await adoption.find(connection, "web")
        assert "deleted at epoch 2" in seen.reason
        assert await unreconciled.at_unknown_epochs(connection, {"web": 2}) == ["web"]
    await forget(fleet, "web", seen.vm_name)
    assert await orders(fleet, "b", "web") == {"web": (OrderKind.GONE, 3)}


async def test_what_a_lost_vm_left_on_another_node_is_ended_there(fleet: Database) -> None:
    """Its disk is on a host that was removed, and may come back: that one keeps it."""
    await said(fleet, "b", "web", 3, Claim.RELEASED)
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET node = NULL, lost_on = 'a'")
    await hear(fleet, "a", "b")
    await forget(fleet, "web", "web")
    assert await orders(fleet, "b", "web") == {"web": (OrderKind.GONE, 4)} and await orders(fleet, "a", "web") == {}


async def test_a_node_whose_journal_was_put_back_still_has_what_it_had(fleet: Database) -> None:
    """Its record says nothing any more, but its disk is there: it must not be told to remove that."""
    await said(fleet, "b", "web", 3, name="web")
    await said(fleet, "b", "web", 0, Claim.NONE, whole=True)
    assert "node b has it, at epoch 3" in str((await stored(fleet, "web")).unreconciled)
    assert await orders(fleet, "b", "web") == {}
    assert (await adopt(fleet, "web")).node == "b"
    assert await orders(fleet, "b", "web") == {"web": (OrderKind.OWN, 4)}


async def test_heartbeats_of_an_earlier_connection_never_count_again(fleet: Database) -> None:
    """A counter in the database would come to the same number again, once that was put back."""
    begun = await fleet.transact(lambda connection: leases.begin(connection, "a"))
    for _ in range(3):
        async with fleet.transaction() as connection:
            await connection.execute("UPDATE node_leases SET generation = 0")
            await leases.begin_again(connection)
        for number in (begun, 0, 1, 2):
            async with fleet.transaction() as connection:
                assert await leases.renew(connection, [leases.Beat("a", number)], 0.0) == set()


async def test_what_still_ends_somewhere_stays_so_whatever_else_is_reconciled(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_node(connection, "c")
    await said(fleet, "b", "web", 5, name="web")
    await hear(fleet, "a", "b", "c")
    await forget(fleet, "web", "web")
    await said(fleet, "c", "web", 9, name="web")
    vm = await adopt(fleet, "web")
    assert vm.node == "c" and "node b ends what it has of it" in str(vm.unreconciled)
    assert await orders(fleet, "c", "web") == {}


@pytest.mark.parametrize("decision", ["forget", "adopt"])
async def test_a_guest_that_a_node_has_handed_over_begins_anew(fleet: Database, decision: str) -> None:
    """It has run elsewhere since, and its disks may have changed: what the node has in memory is old."""
    described_as = described("web", resets=3)
    record = NodeRecord("web", OwnershipRecord(3, Claim.RELEASED), described_as)
    await fleet.transact(lambda connection: reconciling.take(connection, "a", [record], whole=True))
    await hear(fleet, "a", "b")
    if decision == "forget":
        vm = await forget(fleet, "web", "web")
    else:
        vm = await adopt(fleet, "web", confirm="web")
    assert (vm.node, vm.epoch, vm.spec.resets) == ("a", 4, 4)


async def test_a_guest_that_its_node_still_has_goes_on(fleet: Database) -> None:
    await said(fleet, "b", "web", 3, name="web")
    await hear(fleet, "a", "b")
    assert (await adopt(fleet, "web")).spec.resets == 0


@pytest.mark.parametrize("claim", [Claim.NONE, Claim.INCOMING])
async def test_a_vm_stays_where_it_is_though_a_node_was_removed_that_knew_of_it(fleet: Database, claim: Claim) -> None:
    """Node b had nothing of the VM, or a part of it. Node c, which is off, has it at the same epoch."""
    async with fleet.transaction() as connection:
        await add_node(connection, "c")
        await connection.execute("UPDATE vms SET node = NULL, epoch = 0")
    await said(fleet, "b", "web", 1, claim)
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node = 'b'")
        await connection.execute("""UPDATE nodes SET status = status || '{"ready": false}' WHERE name = 'b'""")
        await lost_nodes.remove_node(connection, "b", "b", "me")
    assert (await stored(fleet, "web")).epoch == 1
    await said(fleet, "c", "web", 1, name="web")
    assert "node c has it, at epoch 1" in str((await stored(fleet, "web")).unreconciled)
    assert await orders(fleet, "c", "web") == {}


async def test_a_lost_node_is_removed_though_its_vm_is_unreconciled_and_then_that_is_decided(fleet: Database) -> None:
    """Otherwise the advice goes in a circle: nobody decides before the node was heard or is removed."""
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node = 'a'")
        await connection.execute("""UPDATE nodes SET status = status || '{"ready": false}' WHERE name = 'a'""")
        await unreconciled.restored(connection)
        await reconciling.take(connection, "b", [NodeRecord("web", None)], whole=True)
    await hear(fleet, "b")
    assert "its record of the VM is damaged" in str((await stored(fleet, "web")).unreconciled)
    with pytest.raises(Conflict, match="node a, which may have the VM, has not connected since"):
        await forget(fleet, "web", "web")
    async with fleet.transaction() as connection:
        await lost_nodes.remove_node(connection, "a", "a", "me")
    vm = await stored(fleet, "web")
    assert (vm.node, vm.epoch) == (None, 1) and vm.unreconciled is not None
    vm = await forget(fleet, "web", "web")
    assert vm.node is None and vm.epoch > 1 and "node b ends" in str(vm.unreconciled)


async def test_a_lost_node_is_not_removed_while_another_one_owns_its_vm(fleet: Database) -> None:
    await said(fleet, "b", "web", 3, name="web")
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node = 'a'")
        await connection.execute("""UPDATE nodes SET status = status || '{"ready": false}' WHERE name = 'a'""")
        with pytest.raises(Conflict, match="cannot remove node a, which has VM web: node b has it") as refused:
            await lost_nodes.remove_node(connection, "a", "a", "me")
    assert "novacron vm adopt web" in str(refused.value.hint)
