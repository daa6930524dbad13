"""Nodes and VMs as rows of a real database."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.model.vm import Power, VmSpec, VmState, VmStatus
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


async def nodes_of_vms(database: Database) -> dict[str, str | None]:
    async with database.connection() as connection:
        return {row["id"]: row["node"] for row in await connection.fetch("SELECT id, node FROM vms ORDER BY id")}
