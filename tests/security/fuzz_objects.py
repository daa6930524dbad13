"""One real object of each kind for hostile requests, put back as it was while they delete and change it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.client import Client
from novacron.model.migration import Progress
from novacron.store.database import Connection, Database
from tests.support.stored_fleet import add_node, add_vm
from tests.waiting import pause_async

PROJECT = "fuzzed"
KEEP_S = 0.5
"""How often they are put back."""
KEPT = {
    "projects": "id", "users": "id", "nodes": "name", "node_leases": "node", "networks": "name",
    "security_groups": "name", "backup_repositories": "id", "backup_policies": "id", "vms": "id", "backups": "id",
    "replicas": "id", "plans": "id", "drills": "id", "volumes": "id", "snapshots": "id", "exports": "id",
    "imports": "id", "image_owners": "name", "drains": "id", "migrations": "id", "floating_addresses": "address",
    "forwards": "id", "grants": "id", "invitations": "id", "tokens": "id",
}  # fmt: skip
"""Tables, those that others refer to first, and their keys."""
SITE = "fuzzed-site"


class FuzzObjects(NamedTuple):
    """Their names and ids, as requests need them."""

    by_path: dict[str, str]
    """By what is before them in a path."""
    by_field: dict[str, str]
    """By the field of a body, or parameter of a query, that names one."""


class _Api:
    def __init__(self, client: Client) -> None:
        self._client = client

    def __call__(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Create something; the refusal of any of it is a failure of the test."""
        mark = "&" if "?" in path else "?"
        made = self._client.request("POST", f"/api/v1{path}{mark}project={PROJECT}", body)
        assert isinstance(made, dict), path
        return made


async def _nodes_and_vms(connection: Connection) -> None:
    for name in ("host-kept", "host-other"):
        await add_node(connection, name)
    for name, status in await connection.fetch("SELECT name, status FROM nodes"):  # a name means one image on all
        inventory = status["inventory"]
        inventory |= {"dwcp_endpoint": "127.0.0.1:7445", "networks": True}
        inventory["images"][0] |= {"disk_bytes": 1 << 20, "kind": "disk"}
        inventory["pools"][0] |= {"bytes_total": 1 << 40, "bytes_free": 1 << 39}
        await connection.execute(
            "UPDATE nodes SET spec = spec || $2, status = $3 WHERE name = $1", name, {"site": SITE}, status
        )
    for name in ("vm-kept", "vm-moving", "vm-lost", "vm-off"):
        power = "stopped" if name == "vm-off" else "running"
        await add_vm(connection, name, "host-kept", power=power)
        await connection.execute(
            "UPDATE vms SET project = $2, status = status || $3 WHERE id = $1", name, PROJECT, {"state": power}
        )


async def _finish(connection: Connection) -> None:
    """Bring what nodes would have made to where it can be used, and add what only the platform makes."""
    await connection.execute(
        "UPDATE backups SET phase = 'kept', result = result || $1 WHERE project = $2",
        {"snapshot": "5" * 64, "disk_bytes": 1 << 20}, PROJECT,
    )  # fmt: skip
    await connection.execute("UPDATE volumes SET phase = 'ready' WHERE project = $1", PROJECT)
    await connection.execute("UPDATE snapshots SET phase = 'ready' WHERE vm = 'vm-kept'")
    await connection.execute(
        "UPDATE exports SET phase = 'ready', size_bytes = 8, disk_bytes = 8, sha256 = $1 WHERE vm = 'vm-kept'", "0" * 64
    )
    await connection.execute(
        "INSERT INTO migrations (id, vm, vm_name, kind, source, target, epoch, phase, progress, project, started_at,"
        " moved_at) VALUES"
        " ('mig-kept', 'vm-moving', 'vm-moving', 'live', 'host-kept', 'host-other', 1, 'transferring', $2, $1,"
        " now(), now() + interval '1 d')",
        PROJECT, msgspec.to_builtins(Progress()),
    )  # fmt: skip
    await connection.execute("UPDATE vms SET migration = 'mig-kept' WHERE id = 'vm-moving'")
    await connection.execute("UPDATE vms SET unreconciled = 'only-here' WHERE id = 'vm-lost'")


async def _in_database(url: str, work: Any) -> None:
    database = await Database.open(url, 1)
    try:
        await database.transact(work)
    finally:
        await database.close()


def make(client: Client, url: str) -> FuzzObjects:
    """Create them, through the API where it can."""
    asyncio.run(_in_database(url, _nodes_and_vms))
    post = _Api(client)
    repository = post("/backup-repositories", {"name": "repository-kept"})["id"]
    backup = post("/vms/vm-kept/actions/backup", {"repository": repository})["id"]
    replica = post("/vms/vm-kept/actions/replicate", {"node": "host-other"})["id"]
    made = {
        "backup-repositories": repository,
        "backups": backup,
        "replicas": replica,
        "backup-policies": post(
            "/backup-policies", {"name": "policy-kept", "repository": repository, "vms": ["vm-kept"]}
        )["id"],
        "plans": post("/plans", {"name": "plan-kept", "vms": [{"vm": "vm-kept"}]})["id"],
        "volumes": post("/volumes", {"name": "volume-kept", "size_mib": 16, "node": "host-kept"})["id"],
        "exports": post("/vms/vm-kept/actions/export")["id"],
        "snapshots": post("/vms/vm-kept/snapshots", {"name": "snapshot-kept"})["id"],
        "imports": post("/imports", {"name": "import-kept", "size_bytes": 4096})["id"],
        "drills": post("/drills", {
            "drill": "database-restore", "verdict": "passed", "started_at": "2026-01-01T00:00:00Z",
            "ended_at": "2026-01-01T00:01:00Z", "version": "1", "machine": "kept",
        })["id"],
        "drains": _drain(post, client),
    }  # fmt: skip
    post("/networks", {"name": "net-kept"})
    post("/security-groups", {"name": "group-kept"})
    mac = post("/vms/vm-off/nics", {"network": "net-kept"})["spec"]["nics"][0]["mac"]
    made["forwards"] = post("/forwards", {"vm": "vm-off", "vm_port": 80, "network": "net-kept"})["id"]
    client.create_user("user-kept", password=None)
    made["grants"] = post("/grants", {"user": "user-kept", "role": "viewer"})["id"]
    made["tokens"] = post("/tokens", {"name": "token-kept"})["id"]
    asyncio.run(_in_database(url, _finish))
    by_path = {f"/api/v1/{kind}": id for kind, id in made.items()} | {
        "/api/v1/vms": "vm-kept", "/api/v1/nodes": "host-kept", "/api/v1/migrations": "mig-kept",
        "/api/v1/unreconciled-vms": "vm-lost", "/api/v1/networks": "net-kept",
        "/api/v1/security-groups": "group-kept", "/api/v1/sites": SITE, "/api/v1/users": "user-kept",
        "/api/v1/vms/{ref}/snapshots": "snapshot-kept", "/api/v1/vms/{ref}/nics": mac or "06:00:00:00:00:01",
        "/api/v1/vms/{ref}/commands": "1", "/api/v1/keys": "page",
        "/api/v1/users/{ref}/second-factors": "totp",
    }  # fmt: skip
    by_field = {
        "repository": repository, "backup": backup, "replica": replica, "vm": "vm-kept", "node": "host-kept",
        "target": "host-other", "source": "host-other", "network": "net-kept", "group": "group-kept",
        "project": PROJECT, "user": "user-kept", "site": SITE, "volume": made["volumes"], "snapshot": "snapshot-kept",
        "plan": made["plans"],
    }  # fmt: skip
    return FuzzObjects(by_path, by_field)


def _drain(post: _Api, client: Client) -> str:
    """Drain a node without VMs: that ends at once, and is remembered."""
    post("/nodes/host-other/actions/drain", {})
    drain = next(iter(client.list("drains")))["id"]
    client.request("POST", "/api/v1/nodes/host-other/actions/uncordon")
    return str(drain)


class _Stored(NamedTuple):
    """What a table had at the beginning."""

    key: str
    keys: list[str]
    rows: str
    """As JSON."""
    columns: list[str]
    """That are put back in rows that are there."""
    every: list[str]
    """That are put into a row that is missing."""


async def _read(connection: asyncpg.Connection[Any], table: str, key: str) -> _Stored:
    rows = await connection.fetch(f"SELECT {key} AS key, to_jsonb(t)::text AS row FROM {table} t")  # noqa: S608
    columns = await connection.fetch(
        "SELECT quote_ident(column_name) AS name, is_identity = 'YES' OR column_name IN ('revision', 'renewed_at',"
        " 'hears_until') AS own FROM information_schema.columns WHERE table_name = $1 AND is_generated = 'NEVER'",
        table,
    )
    every, kept = [row["name"] for row in columns], [row["name"] for row in columns if not row["own"]]
    return _Stored(key, [row["key"] for row in rows], "[" + ",".join(row["row"] for row in rows) + "]", kept, every)


async def _put_back(connection: asyncpg.Connection[Any], table: str, stored: _Stored) -> None:
    """Have a table as it was: nothing more in it, nothing less, nothing else."""
    names, every = ", ".join(stored.columns), ", ".join(stored.every)
    mine, theirs = (f"({', '.join(f'{of}.{name}' for name in stored.columns)})" for of in ("t", "excluded"))
    await connection.execute(
        f"INSERT INTO {table} AS t ({every}) OVERRIDING SYSTEM VALUE"  # noqa: S608
        f" SELECT {every} FROM jsonb_populate_recordset(NULL::{table}, $1::text::jsonb)"
        f" ON CONFLICT ({stored.key}) DO UPDATE SET ({names}) = ROW{theirs} WHERE {mine} IS DISTINCT FROM {theirs}",
        stored.rows,
    )


async def _remove_more(connection: asyncpg.Connection[Any], table: str, stored: _Stored) -> None:
    await connection.execute(f"DELETE FROM {table} WHERE NOT {stored.key} = ANY($1)", stored.keys)  # noqa: S608


@contextlib.asynccontextmanager
async def kept(url: str) -> AsyncIterator[None]:
    """Put the objects back, again and again, for as long as the block runs, and remove what was added to them."""
    connection = await asyncpg.connect(url)
    stored = {table: await _read(connection, table, key) for table, key in KEPT.items()}

    async def work() -> None:
        while True:
            await pause_async(KEEP_S)
            await _all_back(connection, stored)

    keeping = asyncio.create_task(work())
    try:
        yield
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        await connection.close()


async def _all_back(connection: asyncpg.Connection[Any], stored: dict[str, _Stored]) -> None:
    """Put all of it back at once: nobody sees a migration without its VM's word of it."""
    with contextlib.suppress(asyncpg.SerializationError, asyncpg.DeadlockDetectedError):  # the next time, then
        async with connection.transaction():
            await connection.execute(
                "UPDATE node_leases SET renewed_at = clock_timestamp(),"
                " hears_until = clock_timestamp() + interval '1 h'"
            )
            # What refers to something that is missing waits for the next time.
            for table, was in stored.items():
                with contextlib.suppress(asyncpg.IntegrityConstraintViolationError):
                    async with connection.transaction():
                        await _put_back(connection, table, was)
            for table, was in reversed(stored.items()):
                with contextlib.suppress(asyncpg.IntegrityConstraintViolationError):  # something refers to it still
                    async with connection.transaction():
                        await _remove_more(connection, table, was)
