"""A stolen node opens nothing but what its own VMs have: it is given no key of what another node works with."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime

import pytest

from novacron.model.encryption import DataKey, WrappedKey
from novacron.model.project import Quota
from novacron.server import node_statements
from novacron.store import backup_repositories, backups, projects, volumes
from novacron.store.backup_repositories import NewRepository
from novacron.store.database import Connection, Database
from novacron.store.projects import NewProject
from novacron.store.volumes import NewVolume
from novacron.wire import codec
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


async def told(connection: Connection, node: str) -> bytes:
    """Return every byte that a node is sent when its agent connects."""
    basis = node_statements.NodeBasis(None, ())
    said = await node_statements.messages(connection, node, {f"vm-{node}"}, AllSecrets(), basis)
    return b"".join(codec.encode(message) for message in said)


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
