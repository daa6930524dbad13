"""A row that can't be decoded costs its own object what is done for it, never another one, and never a running VM."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from novacron.model.errors import Unavailable
from novacron.model.node import Accelerator, AcceleratorKind, ImageInfo, Inventory
from novacron.model.ownership import OrderKind
from novacron.model.vm import VmSpec, VmState, VmStatus
from novacron.server.node_statements import NodeBasis, VmReadings, messages, statements
from novacron.store import identities, migrations, new_vms, nodes, owned, projects, vms
from novacron.store.database import Connection, Database
from novacron.telemetry.values import counter
from novacron.wire import messages as wire
from tests.support.project_secrets import PlainSecrets

NO_BASIS = NodeBasis(None, ())
BAD_SPEC = 'UPDATE vms SET spec = spec || \'{"power": "teleport"}\' WHERE id = $1'
VOLUME = (
    "INSERT INTO volumes (id, name, project, pool, kind, size_mib, node, phase, vm, vm_name, lun)"
    " VALUES ('vol-1', 'data', 'default', 'local', 'local', 64, 'a', $2, $1, 'web-1', 1)"
)


SECRETS = PlainSecrets()


async def _made(connection: Connection, count: int = 3) -> list[str]:
    """Create nodes a and b, and so many VMs on a; return their ids."""
    inventory = Inventory(
        8, 8192, "x86_64", "6", "7", Accelerator(AcceleratorKind.TCG, ""), (ImageInfo("tiny", "0", 1, "kernel"),),
        None, "x:1", "0",
    )  # fmt: skip
    for name in ("a", "b"):
        await identities.join(connection, name, "")
        await nodes.connected(connection, name, inventory)
    making = await projects.making(connection, "default")
    ids = [
        (await new_vms.create(connection, making, new_vms.NewVm(f"web-{n}", VmSpec(image="tiny"), node="a"), "ann")).id
        for n in range(count)
    ]
    await owned.observe(connection, [owned.Report("a", id, 1, VmStatus(state=VmState.STOPPED)) for id in ids])
    return ids


async def _told(database: Database, node: str, held: Sequence[str]) -> dict[str, OrderKind]:
    async with database.transaction(isolation="repeatable_read") as connection:
        told = await statements(connection, node, set(held), SECRETS, NO_BASIS)
        readings = await VmReadings.read(connection, held, SECRETS)
    stated = {statement.vm: statement.order.kind for statement in told}
    for vm in held:
        briefly = readings.on(node, vm, SECRETS, NO_BASIS)
        assert briefly is None or stated[vm] is briefly.order.kind
        if vm not in stated:
            assert briefly is None, "what is read of one VM says no more"
    return stated


@pytest.mark.parametrize(
    "damage",
    [
        BAD_SPEC,
        "UPDATE vms SET status = jsonb_set(status, '{cpu}', '7') WHERE id = $1",
        "INSERT INTO vm_seeds (vm, seed) VALUES ($1, '{\"user_data\": 7}')",
    ],
)
async def test_a_node_is_told_nothing_of_a_vm_that_cannot_be_decoded_and_all_of_the_others(
    database: Database, damage: str
) -> None:
    async with database.transaction() as connection:
        ids = await _made(connection)
        await connection.execute(damage, ids[1])
    before = counter("novacron_database_bad_rows_total").cell("vms")[0]
    assert await _told(database, "a", ids) == {ids[0]: OrderKind.OWN, ids[2]: OrderKind.OWN}
    assert counter("novacron_database_bad_rows_total").cell("vms")[0] > before


async def test_a_volume_that_cannot_be_decoded_is_not_taken_for_one_that_is_gone(database: Database) -> None:
    async with database.transaction() as connection:
        ids = await _made(connection)
        await connection.execute(VOLUME, ids[1], "fromthefuture")
    assert await _told(database, "a", ids) == {ids[0]: OrderKind.OWN, ids[2]: OrderKind.OWN}
    async with database.transaction(isolation="repeatable_read") as connection:
        told = await messages(connection, "a", set(ids), SECRETS, NO_BASIS)
    assert {type(message) for message in told} == {
        wire.Networks,
        wire.Desired,
        wire.Imports,
        wire.Exports,
        wire.Backups,
        wire.Replicas,
    }


KINDS: dict[type[wire.Message], str] = {
    wire.Networks: "network_members.on_node",
    wire.Imports: "imports.working",
    wire.Exports: "exports.on_node",
    wire.Backups: "backups.on_node",
    wire.Replicas: "replicas.on_node",
    wire.Volumes: "volumes.on_node",
}
"""What a node is told beside its VMs, and what reads that."""


async def _defect(connection: Connection, node: str) -> None:
    raise RuntimeError("a defect")


async def _unstorable(connection: Connection, node: str) -> None:
    await connection.execute("SELECT 1 / 0")


@pytest.mark.parametrize("fails", [_defect, _unstorable])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_defect_with_one_kind_leaves_a_node_told_of_all_others(
    database: Database, monkeypatch: pytest.MonkeyPatch, kind: type[wire.Message], fails: object
) -> None:
    async with database.transaction() as connection:
        ids = await _made(connection, 1)
    monkeypatch.setattr(f"novacron.store.{KINDS[kind]}", fails)
    name, failed = kind.__name__.lower(), list[str]()
    before = counter("novacron_work_restarts_total").cell(f"tell-{name}")[0]
    async with database.transaction(isolation="repeatable_read") as connection:
        told = await messages(connection, "a", set(ids), SECRETS, NO_BASIS, failed)
    assert {type(message) for message in told} == {wire.Desired, *KINDS} - {kind}
    assert [len(message.statements) for message in told if isinstance(message, wire.Desired)] == [1]
    assert failed == [name] and counter("novacron_work_restarts_total").cell(f"tell-{name}")[0] == before + 1


async def test_a_defect_with_one_vm_leaves_a_node_told_of_all_others(database: Database) -> None:
    async with database.transaction() as connection:
        ids = await _made(connection)
        migration = await migrations.create(connection, ids[0], migrations.MoveRequest(actor="ann", target="b"))
        await migrations.begin(connection, migration.id)
    failing = {"a", "b"}

    def page_keys(project: str, began: object) -> list[bytes]:
        if began is not None and failing:  # only of a VM that moves
            failing.pop()
            raise RuntimeError("a defect")
        return [b"k" * 32]

    for node, others in (("a", {ids[1], ids[2], "networks"}), ("b", {"networks"})):
        failed = list[str]()
        async with database.transaction(isolation="repeatable_read") as connection:
            told = await messages(connection, node, set(ids[:1]), PlainSecrets(page_keys), NO_BASIS, failed)
        stated = {
            statement.vm for message in told if isinstance(message, wire.Desired) for statement in message.statements
        }
        assert stated | {"networks"} == others and failed == ["vms"], "of the VM itself it is told nothing"
        assert len(told) == len(KINDS) + 1


async def test_a_database_that_is_away_is_no_defect_of_one_kind(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(connection: Connection, node: str) -> None:
        raise ConnectionResetError

    monkeypatch.setattr("novacron.store.exports.on_node", away)
    with pytest.raises(Unavailable):
        async with database.transaction(isolation="repeatable_read") as connection:
            await messages(connection, "a", set(), SECRETS, NO_BASIS)


async def test_a_migration_that_cannot_be_decoded_leaves_its_vm_alone_at_both_ends(database: Database) -> None:
    async with database.transaction() as connection:
        ids = await _made(connection)
        await connection.execute("UPDATE node_leases SET renewed_at = now()")
        for id in ids[:2]:
            migration = await migrations.create(connection, id, migrations.MoveRequest(actor="ann", target="b"))
            await migrations.begin(connection, migration.id)
        await connection.execute('UPDATE migrations SET progress = \'{"raw_bytes": "x"}\' WHERE vm = $1', ids[0])
    assert await _told(database, "a", ids) == {ids[1]: OrderKind.OWN, ids[2]: OrderKind.OWN}
    assert await _told(database, "b", ids[:2]) == {ids[1]: OrderKind.RECEIVE}


async def test_a_target_is_told_nothing_of_a_vm_that_cannot_be_decoded(database: Database) -> None:
    async with database.transaction() as connection:
        ids = await _made(connection)
        for id in ids[:2]:
            migration = await migrations.create(connection, id, migrations.MoveRequest(actor="ann", target="b"))
            await migrations.begin(connection, migration.id)
        await connection.execute(BAD_SPEC, ids[0])
    assert await _told(database, "b", ids[:2]) == {ids[1]: OrderKind.RECEIVE}


async def test_a_report_of_a_vm_that_cannot_be_decoded_is_ignored_and_the_others_are_stored(database: Database) -> None:
    async with database.transaction() as connection:
        ids = await _made(connection)
        await connection.execute(BAD_SPEC, ids[1])
    async with database.transaction() as connection:
        await owned.observe(
            connection, [owned.Report("a", id, 1, VmStatus(state=VmState.RUNNING)) for id in ids]
        )  # fmt: skip
        assert (await vms.get(connection, ids[0])).status.state is VmState.RUNNING
        assert (await vms.get(connection, ids[2])).status.state is VmState.RUNNING
