"""An older database that was put back: a fleet of which nodes know more, and what is asked of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from novacron.model.network import NetworkSpec, NicSpec
from novacron.model.ownership import Claim, OrderKind, OwnershipRecord
from novacron.model.vm import VmAction, VmSpec
from novacron.server import node_statements
from novacron.server.node_statements import NodeBasis
from novacron.store import (
    adoption,
    networks,
    new_vms,
    nodes,
    projects,
    reconciling,
    vms,
)
from novacron.store.adoption import Adoption
from novacron.store.database import Connection, Database
from novacron.store.reconciling import NodeRecord
from novacron.wire import messages as wire
from tests.support.project_secrets import PlainSecrets
from tests.support.stored_fleet import add_node, add_vm

NEW = "vm-new"
NIC = {"network": "lan", "address": "10.9.0.7"}


@pytest.fixture
async def fleet(database: Database) -> Database:
    """Nodes a and b, a network, and a VM that is on a at epoch 1, as the database, which is old, has it."""
    async with database.transaction() as connection:
        for name in "ab":
            await add_node(connection, name)
        await networks.create(connection, "default", "lan", NetworkSpec(subnet="10.9.0.0/24"), None, "me")
        await add_vm(connection, "web", "a", ha=True, own_disk=False)
    return database


def described(name: str = "new", volumes: tuple[dict[str, Any], ...] = (), **spec: Any) -> dict[str, Any]:
    fields = msgspec.to_builtins(VmSpec(image="tiny", memory_mib=64)) | spec
    return {"name": name, "project": "default", "spec": fields, "volumes": list(volumes), "machine": "pc-q35-7.2"}


async def said(
    database: Database, node: str, vm: str, epoch: int, claim: Claim = Claim.OWNER, *, whole: bool = False,
    **description: Any,
) -> None:  # fmt: skip
    known = described(**description) if claim is Claim.OWNER else None
    record = NodeRecord(vm, OwnershipRecord(epoch, claim), known)
    await database.transact(lambda connection: reconciling.take(connection, node, [record], whole=whole))


async def create(database: Database, name: str, address: str | None = None, *, nic: bool = False) -> VmSpec:
    nics = (NicSpec("lan", address=address),) if nic else ()

    async def work(connection: Connection) -> VmSpec:
        new = new_vms.NewVm(name, VmSpec(image="tiny", memory_mib=64, nics=nics), 0)
        return (await new_vms.create(connection, await projects.making(connection, "default"), new, "me")).spec

    return await database.transact(work)


async def act(database: Database, vm: str, action: VmAction) -> None:
    await database.transact(lambda connection: vms.act(connection, vm, action, None, "me"))


async def adopt(database: Database, ref: str, **how: Any) -> Any:
    return await database.transact(lambda connection: adoption.adopt(connection, ref, Adoption(**how), "me"))


async def hear(database: Database, *names: str) -> None:
    """Nodes say their last word about what an older database may lack."""
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE node_leases SET renewed_at = clock_timestamp() WHERE node = ANY($1)", list(names)
        )


async def forget(database: Database, ref: str, confirm: str | None) -> Any:
    return await database.transact(lambda connection: adoption.forget(connection, ref, confirm, "me"))


async def orders(database: Database, node: str, *held: str) -> dict[str, tuple[OrderKind, int]]:
    """Return what a node is told of VMs."""
    async with database.transaction(isolation="repeatable_read") as connection:
        messages = await node_statements.messages(
            connection, node, set(held), PlainSecrets(), NodeBasis(None, ())
        )  # fmt: skip
    desired = next(message for message in messages if isinstance(message, wire.Desired))
    return {statement.vm: (statement.order.kind, statement.order.epoch) for statement in desired.statements}


async def stored(database: Database, vm: str) -> Any:
    async with database.connection() as connection:
        return await vms.get(connection, vm)


async def count(database: Database, node: str) -> int:
    async with database.connection() as connection:
        return (await nodes.get(connection, node)).status.unreconciled_vms


async def withheld(database: Database, node: str) -> dict[str, str]:
    """Return why VMs of a node are not begun."""
    async with database.transaction(isolation="repeatable_read") as connection:
        statements = await node_statements.statements(connection, node, set(), PlainSecrets(), NodeBasis(None, ()))
    return {s.vm: s.assignment.withheld for s in statements if s.assignment is not None}
