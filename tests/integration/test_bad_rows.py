"""A row that can't be decoded costs its own object what is done for it, never another one, and never a running VM."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from novacron.model.errors import Unavailable
from novacron.model.image import ImportSpec, Source
from novacron.model.node import Accelerator, AcceleratorKind, ImageInfo, Inventory
from novacron.model.ownership import OrderKind
from novacron.model.vm import VmSpec, VmState, VmStatus
from novacron.server.node_statements import NodeBasis, VmReadings, messages, statements
from novacron.store import backups, identities, imports, migrations, new_vms, nodes, owned, projects, vms
from novacron.store.database import Connection, Database
from novacron.telemetry.values import counter
from novacron.wire import messages as wire
from tests.support.project_secrets import PlainSecrets
from tests.support.stored_fleet import add_backup, add_vm

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
        await connection.execute(
            "INSERT INTO volumes (id, name, project, pool, kind, size_mib, node, phase)"
            " VALUES ('vol-2', 'more', 'default', 'local', 'local', 64, 'a', 'ready')"
        )
    assert await _told(database, "a", ids) == {ids[0]: OrderKind.OWN, ids[2]: OrderKind.OWN}
    async with database.transaction(isolation="repeatable_read") as connection:
        told = await messages(connection, "a", set(ids), SECRETS, NO_BASIS)
    assert {type(message) for message in told} == {wire.Desired, *KINDS}
    [volumes] = [message for message in told if isinstance(message, wire.Volumes)]
    assert [volume.id for volume in volumes.volumes] == ["vol-2"], "a node leaves alone what it is not told of"


KNOWS = NodeBasis(None, (), knows_unreadable=True)


async def _two_of_each(connection: Connection) -> None:
    """Let node b have two exports, imports, backups and replicas to work on, of which the second is not readable."""
    for number, phase in ((1, "making"), (2, "melting")):
        await connection.execute(
            "INSERT INTO exports (id, vm, vm_name, node, spec, phase)"
            " SELECT $1, id, name, 'b', spec, $2 FROM vms WHERE id = 'web'",
            f"export-{number}", phase,
        )  # fmt: skip
        spec = ImportSpec(f"image-{number}", Source.UPLOAD, size_bytes=7)
        image = await imports.create(connection, "default", spec, "b", "ann")
        await connection.execute("UPDATE imports SET id = $2 WHERE id = $1", image.id, f"import-{number}")
        await connection.execute(
            "INSERT INTO replicas (id, vm, vm_name, node, site, phase, rpo_s, points_kept, project)"
            " VALUES ($1, $2, $2, 'b', 'default', 'following', 60, 2, 'default')",
            f"replica-{number:016}", "web" if number == 1 else "gone",
        )  # fmt: skip
    await connection.execute("UPDATE imports SET phase = 'melting' WHERE id = 'import-2'")
    await connection.execute("UPDATE replicas SET points = '[7]' WHERE vm = 'gone'")
    await connection.execute("UPDATE backups SET node = 'b', phase = 'verifying', id = 'backup-1'")
    await connection.execute(
        "INSERT INTO backups (id, vm, vm_name, repository, repository_name, node, spec, phase, result, project)"
        " SELECT 'backup-2', vm, vm_name, repository, repository_name, node, '7', phase, result, project FROM backups"
    )


async def test_a_row_that_cannot_be_decoded_is_named_and_hides_no_other_of_its_kind(database: Database) -> None:
    async with database.transaction() as connection:
        await add_backup(connection)
        await _two_of_each(connection)
    async with database.transaction(isolation="repeatable_read") as connection:
        told = {type(message): message for message in await messages(connection, "b", set(), SECRETS, KNOWS)}
        briefly = {type(message) for message in await messages(connection, "b", set(), SECRETS, NO_BASIS)}
    exported, imported, backed_up, replicated = (
        told[kind] for kind in (wire.Exports, wire.Imports, wire.Backups, wire.Replicas)
    )
    assert isinstance(exported, wire.Exports) and isinstance(imported, wire.Imports)
    assert isinstance(backed_up, wire.Backups) and isinstance(replicated, wire.Replicas)
    assert ([item.id for item in exported.exports], exported.unreadable) == (["export-1"], ("export-2",))
    assert ([item.id for item in imported.imports], imported.unreadable) == (["import-1"], ("import-2",))
    assert ([item.id for item in backed_up.backups], backed_up.unreadable) == (["backup-1"], ("backup-2",))
    assert [item.vm for item in replicated.kept] == ["web"] and replicated.unreadable == (f"replica-{2:016}",)
    assert replicated.unreadable_vms == ("gone",)
    assert briefly == {wire.Networks, wire.Desired, wire.Volumes}, "an agent of before would take it for gone"


async def test_the_backups_of_a_repository_that_cannot_be_decoded_are_named(database: Database) -> None:
    async with database.transaction() as connection:
        await add_backup(connection)
        await connection.execute("UPDATE backups SET phase = 'verifying', id = 'backup-1'")
        await connection.execute("UPDATE backup_repositories SET prunes = '[7]'")
    async with database.transaction(isolation="repeatable_read") as connection:
        told = await messages(connection, "a", set(), SECRETS, KNOWS)
    [backed_up] = [message for message in told if isinstance(message, wire.Backups)]
    assert backed_up == wire.Backups((), ("backup-1",))


async def test_a_backup_that_cannot_be_decoded_hinders_no_other_on_its_node(database: Database) -> None:
    async with database.transaction() as connection:
        await add_backup(connection)
        await add_vm(connection, "db", at="a")
        await connection.execute("UPDATE backups SET phase = 'making', spec = '7'")
        repository = await connection.fetchval("SELECT id FROM backup_repositories")
        assert (await backups.create(connection, "db", repository, "test")).node == "a"


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


@pytest.mark.parametrize(
    ("kind", "fails"),
    [
        *((kind, _defect) for kind in KINDS),
        (wire.Imports, _unstorable),
        *(pytest.param(kind, _unstorable, marks=pytest.mark.slow) for kind in KINDS if kind is not wire.Imports),
    ],
)
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
