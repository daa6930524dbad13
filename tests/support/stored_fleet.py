"""Nodes and VMs as rows of a real database."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.model.encryption import WrappedKey
from novacron.model.vm import Power, VmSpec, VmState, VmStatus
from novacron.store import backup_repositories, backups
from novacron.store.backup_repositories import NewRepository
from novacron.store.database import Connection, Database
from tests.support.fleet import node


async def add_node(connection: Connection, name: str, **status: Any) -> None:
    record = node(name)
    await connection.execute(
        "INSERT INTO nodes (name, spec, status) VALUES ($1, $2, $3)",
        name, msgspec.to_builtins(record.spec), msgspec.to_builtins(record.status) | status,
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO node_leases (node, renewed_at, hears_until) VALUES ($1, now(), now() + interval '1 h')", name
    )


async def add_vm(connection: Connection, name: str, at: str | None = None, **spec: Any) -> str:
    """Store a VM; later ones count as younger."""
    fields = msgspec.to_builtins(VmSpec(image="tiny", memory_mib=64, power=Power.RUNNING)) | spec
    status = VmStatus(state=VmState.PENDING if at is None else VmState.RUNNING, kept=True)
    await connection.execute(
        "INSERT INTO vms (id, name, spec, status, node, epoch, project, created_at)"
        " VALUES ($1, $1, $2, $3, $4, ($4::text IS NOT NULL)::int, 'default', clock_timestamp())",
        name, fields, msgspec.to_builtins(status), at,
    )  # fmt: skip
    return name


KEY = WrappedKey("key-0123456789abcdef", b"wrapped", "platform")


async def add_backup(connection: Connection) -> str:
    """Store nodes a and b, VM web on a, and a backup of it that is kept in repository nightly; return its id."""
    for name in ("a", "b"):
        await add_node(connection, name)
    await add_vm(connection, "web", at="a")
    await connection.execute(
        "UPDATE nodes SET status = jsonb_set(status, '{inventory,images,0,disk_bytes}', '1048576')"
    )  # fmt: skip
    repository = await backup_repositories.create(connection, NewRepository("default", "nightly", KEY, 7), "test")
    backup = await backups.create(connection, "web", repository.id, "test")
    await connection.execute(
        "UPDATE backups SET phase = 'kept', result = result || $2 WHERE id = $1",
        backup.id, {"snapshot": "5" * 64, "disk_bytes": 1 << 20},
    )  # fmt: skip
    return backup.id


async def nodes_of_vms(database: Database) -> dict[str, str | None]:
    async with database.connection() as connection:
        return {row["id"]: row["node"] for row in await connection.fetch("SELECT id, node FROM vms ORDER BY id")}
