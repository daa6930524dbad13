"""A node that has lost its record of a VM leaves it alone until a user begins the next epoch, as a user always may."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent.vm.journal import Journal, Record, obey_order
from novacron.model.errors import Conflict
from novacron.model.node import Accelerator, AcceleratorKind, ImageInfo, Inventory
from novacron.model.ownership import OrderVerdict, may_run
from novacron.model.vm import Power, Vm, VmAction, VmSpec, VmState, VmStatus
from novacron.server.node_statements import NodeBasis, statements
from novacron.store import identities, migrations, new_vms, nodes, owned, projects, vms
from novacron.store.database import Connection, Database
from tests.support.project_secrets import PlainSecrets

LOST = VmStatus(state=VmState.FAILED, record_lost=True)


async def _store_vm(database: Database, nodes_named: tuple[str, ...] = ("a",)) -> Vm:
    inventory = Inventory(
        8, 8192, "x86_64", "6", "7", Accelerator(AcceleratorKind.TCG, ""), (ImageInfo("tiny", "0", 1, "kernel"),),
        None, "x:1", "0",
    )  # fmt: skip
    async with database.transaction() as connection:
        for name in nodes_named:
            await identities.join(connection, name, "")
            await nodes.connected(connection, name, inventory)
        making = await projects.making(connection, "default")
        new = new_vms.NewVm("web", VmSpec(image="tiny"), node="a")
        return await new_vms.create(connection, making, new, "ann")


async def _report(database: Database, vm: Vm, status: VmStatus) -> None:
    async with database.transaction() as connection:
        await owned.observe(connection, [owned.Report("a", vm.id, vm.epoch, status)])


async def _act(database: Database, vm: Vm, action: VmAction) -> Vm:
    async with database.transaction() as connection:
        return await vms.act(connection, vm.id, action, None, "ann")


async def _obey(database: Database, vm: Vm, record: Record) -> tuple[Record, OrderVerdict]:
    """Let the only node hear what it is to be told."""
    async with database.transaction(isolation="repeatable_read") as connection:
        (statement,) = await statements(connection, "a", {vm.id}, PlainSecrets(), NodeBasis(None, ()))
    return obey_order(record, statement.order)


@pytest.mark.parametrize("state", [VmState.FAILED, VmState.RUNNING])
@pytest.mark.parametrize("action", [VmAction.START, VmAction.STOP, VmAction.DELETE])
async def test_the_only_node_goes_on_with_a_vm_whose_record_it_lost(
    database: Database, tmp_path: Path, state: VmState, action: VmAction
) -> None:
    vm = await _store_vm(database)
    (tmp_path / f"{vm.id}.json").write_bytes(b"garbage")
    record, verdict = await _obey(database, vm, Journal(tmp_path).load_one(vm.id))
    assert verdict is OrderVerdict.HOLD
    await _report(database, vm, VmStatus(state=state, record_lost=True))
    after = await _act(database, vm, action)
    assert (after.node, after.epoch) == ("a", vm.epoch + 1)
    record, verdict = await _obey(database, vm, record)
    assert verdict is OrderVerdict.RUN and may_run(record.held) and not record.damaged


async def test_a_promise_of_an_active_migration_binds_a_node_that_lost_its_record(database: Database) -> None:
    vm = await _store_vm(database, ("a", "b"))
    await _report(database, vm, VmStatus(state=VmState.STOPPED))
    async with database.transaction() as connection:
        await migrations.create(connection, vm.id, migrations.MoveRequest(actor="ann", target="b"))
    await _report(database, vm, LOST)
    for action in (VmAction.START, VmAction.DELETE):
        with pytest.raises(Conflict, match="is moving it"):
            await _act(database, vm, action)
    assert (await _act(database, vm, VmAction.STOP)).epoch == vm.epoch


async def test_a_vm_whose_record_is_there_keeps_its_epoch(database: Database) -> None:
    vm = await _store_vm(database)
    await _report(database, vm, VmStatus(state=VmState.FAILED))
    after = await _act(database, vm, VmAction.START)
    assert (after.epoch, after.spec.power) == (vm.epoch, Power.RUNNING)


async def test_the_short_way_leaves_the_next_epoch_to_the_long_one(database: Database) -> None:
    vm = await _store_vm(database)
    await _report(database, vm, LOST)

    async def read(connection: Connection) -> Vm:
        return await vms.get(connection, vm.id)

    lost = await database.transact(read)
    assert vms.act_in_one_statement(lost, VmAction.START, None, "ann", None) is None
