"""Nodes that can't read what they have written down of a VM, after an older database was put back."""

from __future__ import annotations

import pytest

from novacron.model.errors import Conflict, InvalidInput
from novacron.model.ownership import Claim, OrderKind, OwnershipRecord
from novacron.model.unreconciled import EPOCHS_UNSEEN
from novacron.model.vm import VmAction, VmState, VmStatus
from novacron.store import leases, owned, reconciling, unreconciled
from novacron.store.database import Database
from novacron.store.reconciling import NodeRecord
from tests.support import older_database
from tests.support.older_database import (
    NEW,
    act,
    adopt,
    count,
    described,
    forget,
    hear,
    orders,
    stored,
    withheld,
)
from tests.support.stored_fleet import add_node, add_vm

fleet = older_database.fleet


async def connect(database: Database, node: str, *damaged: str, sound: NodeRecord | None = None) -> None:
    """A node connects that can't read what it has written down of some VMs, and is heard from then on."""
    records = [NodeRecord(vm, None) for vm in damaged] + ([] if sound is None else [sound])
    async with database.transaction() as connection:
        await reconciling.take(connection, node, records, whole=True)
        generation = await leases.begin(connection, node, damaged)
        await leases.renew(connection, [leases.Beat(node, generation)], 0.0)


async def generation(database: Database, node: str) -> int:
    """Return that of the heartbeats that count."""
    async with database.connection() as connection:
        number: int = await connection.fetchval("SELECT generation FROM node_leases WHERE node = $1", node)
        return number


async def put_back(database: Database) -> None:
    """The database is found to be an older one: no node was heard since."""
    async with database.transaction() as connection:
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h'")
        await unreconciled.restored(connection)


async def test_a_node_that_cannot_read_its_record_was_not_heard_about_that_vm(fleet: Database) -> None:
    """The VM may run there at an epoch that the older database would give out again."""
    await put_back(fleet)
    await connect(fleet, "a")
    assert "has not connected since" in (await withheld(fleet, "a"))["web"]
    await connect(fleet, "b", "web", NEW)
    await connect(fleet, "a")
    async with fleet.connection() as connection:
        assert not await unreconciled.not_heard(connection)
    vm = await stored(fleet, "web")
    assert "node b may have it: its record of the VM is damaged" in str(vm.unreconciled)
    assert await orders(fleet, "a", "web") == {} == await orders(fleet, "b", "web", NEW) and vm.epoch == 1
    assert await count(fleet, "b") == 2
    with pytest.raises(Conflict, match="is damaged"):
        await act(fleet, "web", VmAction.START)
    await connect(fleet, "b", "web", NEW)
    assert (await stored(fleet, "web")).unreconciled == vm.unreconciled, "that it is heard by now says nothing of it"

    with pytest.raises(InvalidInput, match="with its disk"):
        await forget(fleet, "web", None)
    await forget(fleet, "web", "web")
    await forget(fleet, NEW, NEW)
    epoch = (await stored(fleet, "web")).epoch
    assert epoch > EPOCHS_UNSEEN, "above whatever the record may have said"
    unknown = (OrderKind.GONE, EPOCHS_UNSEEN + 1)
    assert await orders(fleet, "b", "web", NEW) == {"web": (OrderKind.GONE, epoch), NEW: unknown}
    assert await orders(fleet, "a", "web") == {}, "it begins there once it has ended elsewhere"
    lost = owned.Report("b", "web", epoch, VmStatus(state=VmState.RUNNING, record_lost=True))
    for _ in range(2):  # the first epoch that it hears binds it, as its lost promise might
        await fleet.transact(lambda connection: owned.observe(connection, [lost]))
    assert await orders(fleet, "b", "web") == {"web": (OrderKind.GONE, epoch + 1)}
    await fleet.transact(lambda connection: reconciling.ended(connection, "b", "web"))
    assert await orders(fleet, "a", "web") == {"web": (OrderKind.OWN, epoch + 2)}


async def test_a_vm_goes_on_where_its_record_is_damaged_by_an_operators_word(fleet: Database) -> None:
    await put_back(fleet)
    await connect(fleet, "a")
    await connect(fleet, "b", "web", NEW)
    with pytest.raises(Conflict, match="node a, which may have the VM, has not connected since"):
        await adopt(fleet, "web", node="b", confirm="web")
    await hear(fleet, "a")
    with pytest.raises(InvalidInput, match="is damaged") as refused:
        await adopt(fleet, "web", node="b")
    assert "--confirm web" in str(refused.value.hint)
    with pytest.raises(Conflict, match=f"neither the database nor node b has the spec of VM {NEW}"):
        await adopt(fleet, NEW, confirm=NEW)
    vm = await adopt(fleet, "web", confirm="web")
    assert (vm.node, vm.unreconciled) == ("b", None) and vm.epoch > EPOCHS_UNSEEN
    assert await orders(fleet, "b", "web") == {"web": (OrderKind.OWN, vm.epoch)}
    assert await orders(fleet, "a", "web") == {"web": (OrderKind.GONE, vm.epoch)}


async def test_a_vm_whose_record_is_damaged_before_its_node_could_describe_it_can_be_adopted(fleet: Database) -> None:
    """The node has said that it has the VM, and nothing more: only the database, an older one, knows what it is."""
    await older_database.said(fleet, "a", "web", 3, Claim.RELEASED)
    await connect(fleet, "a", "web")
    await hear(fleet, "a", "b")
    with pytest.raises(InvalidInput, match="is damaged"):
        await adopt(fleet, "web")
    vm = await adopt(fleet, "web", confirm="web")
    assert (vm.node, vm.unreconciled) == ("a", None) and vm.epoch > EPOCHS_UNSEEN


async def test_a_vm_that_is_adopted_elsewhere_begins_once_a_damaged_record_is_no_danger(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_node(connection, "c")
    await put_back(fleet)
    await connect(fleet, "b", "web")
    owner = NodeRecord("web", OwnershipRecord(4, Claim.OWNER), described("web"))
    await connect(fleet, "c", sound=owner)
    vm = await adopt(fleet, "web")
    assert vm.node == "c" and "node b ends what it has of it" in str(vm.unreconciled) and vm.epoch > EPOCHS_UNSEEN
    assert await orders(fleet, "c", "web") == {}
    await fleet.transact(lambda connection: reconciling.ended(connection, "b", "web"))
    assert await orders(fleet, "c", "web") == {"web": (OrderKind.OWN, vm.epoch + 1)}


@pytest.mark.parametrize("held", [OwnershipRecord(0, Claim.RELEASED), OwnershipRecord(3, Claim.RELEASED), None])
async def test_a_nodes_own_word_ends_what_its_damaged_record_left_open(
    fleet: Database, held: OwnershipRecord | None
) -> None:
    """Its record is put back, or its state folder is replaced by one in which there is nothing of the VM."""
    await put_back(fleet)
    await connect(fleet, "b", "web")
    await connect(fleet, "b", sound=None if held is None else NodeRecord("web", held))
    vm = await stored(fleet, "web")
    if held is None or held.epoch == 0:
        assert vm.unreconciled is None
    else:
        assert "node b has handed it over, at epoch 3" in str(vm.unreconciled)


async def test_a_damaged_record_is_no_contradiction_of_a_database_that_knows_every_epoch(fleet: Database) -> None:
    await connect(fleet, "b", "web")
    assert (await stored(fleet, "web")).unreconciled is None
    await put_back(fleet)
    async with fleet.transaction() as connection:
        await add_vm(connection, "young", "a")
        await connection.execute("INSERT INTO vm_tombstones (vm, epoch) VALUES ('old', 3)")
    await connect(fleet, "b", "young", "old")
    assert (await stored(fleet, "young")).unreconciled is None and await count(fleet, "b") == 0


async def test_a_damaged_record_of_an_epoch_at_which_the_database_deleted_the_vm_is_seen(fleet: Database) -> None:
    """Another database gave that epoch to the node: the VM runs there."""
    async with fleet.transaction() as connection:
        await connection.execute("INSERT INTO vm_tombstones (vm, epoch) VALUES ('old', 3)")
        await reconciling.take(connection, "b", [NodeRecord("old", None, bound_at=2)], whole=True)
    assert await count(fleet, "b") == 0
    async with fleet.transaction() as connection:
        await reconciling.take(connection, "b", [NodeRecord("old", None, bound_at=3)], whole=True)
    assert await count(fleet, "b") == 1


async def test_a_node_that_was_believed_with_a_damaged_record_connects_again_when_the_database_is_doubted(
    fleet: Database,
) -> None:
    await connect(fleet, "a")
    await connect(fleet, "b", "web")
    beats = [leases.Beat(node, await generation(fleet, node)) for node in "ab"]
    assert await fleet.transact(lambda connection: leases.renew(connection, beats, 0.0)) == {"a", "b"}
    await put_back(fleet)
    assert await fleet.transact(lambda connection: leases.renew(connection, beats, 0.0)) == {"a"}
    await connect(fleet, "b", "web")
    assert "is damaged" in str((await stored(fleet, "web")).unreconciled)
    await put_back(fleet)
    beats[1] = leases.Beat("b", await generation(fleet, "b"))
    renewed = await fleet.transact(lambda connection: leases.renew(connection, beats, 0.0))
    assert renewed == {"a", "b"}, "what is held already is not asked for once more"
