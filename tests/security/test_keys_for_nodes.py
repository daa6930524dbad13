"""A stolen node opens nothing but what its own VMs have: it is given no key of what another node works with."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime

import pytest

from novacron.model.backup import BackupPhase
from novacron.model.encryption import DataKey, WrappedKey
from novacron.model.errors import NovaError
from novacron.model.ownership import EPOCH_MAX, Claim, OwnershipRecord
from novacron.model.project import Quota
from novacron.model.volume import VolumePhase
from novacron.server import node_statements
from novacron.server.reports import Reports
from novacron.store import backup_repositories, backups, projects, reconciling, volumes
from novacron.store.backup_repositories import NewRepository
from novacron.store.database import Connection, Database
from novacron.store.projects import NewProject
from novacron.store.volumes import NewVolume
from novacron.wire import codec
from novacron.wire import messages as wire
from tests.support.stored_fleet import add_node, add_vm

PLACES = {"a": "default", "b": "shop"}
"""Which project has something on which node."""


def secret(what: str) -> bytes:
    return hashlib.sha256(what.encode()).digest()


def key_of(project: str, what: str) -> str:
    return f"key-{secret(f'{project} {what}').hex()[:16]}"


class AllSecrets:
    """Unwraps whatever it is asked for."""

    def page_keys(self, project_id: str, began: datetime | None) -> list[bytes]:
        return [secret(f"pages of {project_id}")]

    async def data_keys(self, connection: Connection, ids: Collection[str]) -> Mapping[str, DataKey]:
        return {id: DataKey(id, secret(id)) for id in ids if id}


async def fill(connection: Connection, node: str, project: str) -> str:
    """Give a project an encrypted VM with a volume on a node, of which a backup is made; return the project's id."""
    disk, repository = (WrappedKey(key_of(project, what), b"wrapped", "file-1") for what in ("disk", "repository"))
    await add_node(connection, node)
    for path, size in (
        ("images,0,disk_bytes", 1 << 20),
        ("pools,0,bytes_total", 1 << 40),
        ("pools,0,bytes_free", 1 << 39),
    ):
        await connection.execute(
            "UPDATE nodes SET status = jsonb_set(status, $1::text[], to_jsonb($2::bigint))",
            ["inventory", *path.split(",")], size,
        )  # fmt: skip
    if project == "default":
        await projects.configure(connection, project, {"encryption": True}, "test", disk)
    else:
        await projects.create(connection, NewProject(project, "", Quota(), False, disk), "test")
    vm = await add_vm(connection, f"vm-{node}", at=node, encryption_key=disk.id)
    await connection.execute("UPDATE vms SET project = $2 WHERE id = $1", vm, project)
    made = await backup_repositories.create(connection, NewRepository(project, "nightly", repository, 7), "test")
    await backups.create(connection, vm, made.id, "test")
    await volumes.create(connection, project, NewVolume(f"data-{node}", "local", 64, node), "test")
    id: str = await connection.fetchval("SELECT id FROM projects WHERE name = $1", project)
    return id


async def told(connection: Connection, node: str, *held: str) -> bytes:
    """Return every byte that a node is sent when its agent connects; ``held``: VMs that it says it has, beside its
    own."""
    basis = node_statements.NodeBasis(None, ())
    said = await node_statements.messages(connection, node, {f"vm-{node}", *held}, AllSecrets(), basis)
    return b"".join(codec.encode(message) for message in said)


async def lies(connection: Connection, node: str) -> list[wire.Message]:
    """Return what a stolen node says of each object of another node that keys belong to: that it works with it."""
    vm, owner = f"vm-{node}", OwnershipRecord(EPOCH_MAX, Claim.OWNER)
    backup, volume = [
        str(await connection.fetchval(f"SELECT id FROM {table} WHERE node = $1", node))  # noqa: S608 - of this test
        for table in ("backups", "volumes")
    ]
    return [
        *(wire.BackupStands(backup, BackupPhase.MAKING, phase) for phase in BackupPhase),
        *(wire.VolumeStands(volume, phase) for phase in VolumePhase),
        *(wire.VolumeHandled(vm, epoch, volume, released) for epoch in (0, 1, EPOCH_MAX) for released in (True, False)),
        *(wire.Cloned(vm, epoch) for epoch in (0, 1, EPOCH_MAX)),
        wire.Contradicted(vm, owner, {"name": vm, "project": PLACES[node], "spec": {"image": "tiny"}}),
        wire.Removed(vm),
    ]


@pytest.mark.parametrize("stolen", PLACES)
async def test_a_node_that_claims_what_another_works_with_is_given_no_key_of_it(
    database: Database, stolen: str
) -> None:
    (other,) = PLACES.keys() - {stolen}
    async with database.transaction() as connection:
        ids = {node: await fill(connection, node, project) for node, project in PLACES.items()}
        said = await lies(connection, other)
        before = await told(connection, other)
    reports = Reports(database)
    for message in said:
        with contextlib.suppress(NovaError):
            await reports.store(stolen, message)
    held = reconciling.NodeRecord(f"vm-{other}", OwnershipRecord(EPOCH_MAX, Claim.OWNER), proven=False)
    async with database.transaction() as connection:
        await reconciling.take(connection, stolen, [held], whole=True)
        sent = await told(connection, stolen, f"vm-{other}")
        readings = await node_statements.VmReadings.read(connection, [f"vm-{other}"], AllSecrets())
        statement = readings.on(stolen, f"vm-{other}", AllSecrets(), node_statements.NodeBasis(None, ()))
        await connection.execute("UPDATE backup_repositories SET prune_asked_at = now()")
        await connection.execute("UPDATE backups SET phase = 'kept'")
        prunes = {prune.key for prune in await backup_repositories.due(connection, [stolen])}
        assert prunes == {key_of(PLACES[stolen], "repository")}
    secrets = [secret(f"pages of {ids[other]}"), *(secret(key_of(PLACES[other], w)) for w in ("disk", "repository"))]
    assert [key in before for key in secrets] == [True] * len(secrets), "its owner has them"
    assert [key in sent for key in secrets] == [False] * len(secrets)
    assert statement is None or statement.assignment is None


@pytest.mark.parametrize("stolen", PLACES)
async def test_a_node_is_given_no_key_of_what_other_nodes_work_with(database: Database, stolen: str) -> None:
    async with database.transaction() as connection:
        ids = {project: await fill(connection, node, project) for node, project in PLACES.items()}
        sent = await told(connection, stolen)
        secrets = {
            project: {
                "pages": secret(f"pages of {id}"),
                "disk": secret(key_of(project, "disk")),
                "repository": secret(key_of(project, "repository")),
            }
            for project, id in ids.items()
        }
        own = secrets.pop(PLACES[stolen])
        assert {what: secret in sent for what, secret in own.items()} == dict.fromkeys(own, True)
        for project, others in secrets.items():
            assert {what: secret in sent for what, secret in others.items()} == dict.fromkeys(others, False), project
        await connection.execute("UPDATE backups SET phase = 'kept'")
        assert own["repository"] not in await told(connection, stolen), "the work with the repository is over"
        await connection.execute("DELETE FROM volumes")
        await connection.execute("UPDATE vms SET node = NULL")
        sent = await told(connection, stolen)
        assert {what: secret in sent for what, secret in own.items()} == dict.fromkeys(own, False), "the VM went away"
