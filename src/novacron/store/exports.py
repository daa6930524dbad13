"""Exports of VMs: what users ask for, and how far the nodes are."""

from __future__ import annotations

import secrets
from typing import NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.errors import Conflict, IllegalState, NotFound, Unavailable
from novacron.model.export import Export, ExportPhase
from novacron.model.vm import VmAction, with_mac_addresses
from novacron.store import events, nodes, projects, vms
from novacron.store.database import Connection
from novacron.store.hindered import ERROR_LENGTH_MAX, hindrance
from novacron.store.rows import Decoded, decode, object_of
from novacron.telemetry import traces


def _export(row: asyncpg.Record | None) -> Export:
    return object_of(Export, row)


async def create(connection: Connection, ref: str, actor: str) -> Export:
    """Ask for a VM's disk as it is now. Raises NotFound, IllegalState, Conflict, Unavailable,
    QuotaExceeded."""
    vm = await vms.get(connection, ref, lock=True)
    vms.check_action(vm, VmAction.EXPORT, None)
    if vm.node is None:
        raise IllegalState(f"VM {vm.name} has not been placed on a node yet", hint="wait until it is placed")
    if vm.clone_of is not None:
        raise Conflict(f"VM {vm.name} is being cloned", hint="wait until that is done")
    if vm.spec.encryption_key:
        raise IllegalState(
            f"the disk of VM {vm.name} is encrypted, and its export would not be",
            hint="copy the data from inside the guest",
        )
    node = await nodes.get(connection, vm.node)
    if not node.status.ready or node.status.inventory is None:
        raise Unavailable(f"node {vm.node} is not ready", hint="bring the node back first")
    image = next((image for image in node.status.inventory.images if image.name == vm.spec.image), None)
    if vm.spec.kernel is not None:
        raise IllegalState(
            f"VM {vm.name} boots kernel {vm.spec.kernel}, so its disk alone would not boot elsewhere",
            hint=f"while it is off: novacron vm set {vm.name} --kernel ''",
        )
    if image is None or not image.disk_bytes or not vm.spec.own_disk:
        raise IllegalState(f"VM {vm.name} has no disk to export")
    if image.kind == "kernel":
        raise IllegalState(f"VM {vm.name} boots the kernel of its image, so its disk alone would not boot elsewhere")
    await _check_slots(connection, vm.node, vm.project)
    before = await projects.lock_usage(connection, vm.project)
    row = await connection.fetchrow(
        "INSERT INTO exports (id, vm, vm_name, node, spec, phase, trace, disk_mib)"
        " SELECT $1, $2, $3, $4, $5, $6, $7, disk_mib FROM vms WHERE id = $2 RETURNING *",
        f"export-{secrets.token_hex(8)}", vm.id, vm.name, vm.node,
        msgspec.to_builtins(with_mac_addresses(vm.id, vm.spec)), ExportPhase.MAKING,
        traces.carry(),
    )  # fmt: skip
    await projects.check_quota(connection, vm.project, before)
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, "ExportAsked", f"on {vm.node}", actor))
    return _export(row)


async def _check_slots(connection: Connection, node: str, project: str) -> None:
    """Raise Unavailable if a node, or a project there, keeps as many exports as it may."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('exports'))")  # or many at once would not count
    row = await connection.fetchrow(
        "SELECT count(*) AS all_, count(*) FILTER (WHERE project = $2) AS own FROM exports WHERE node = $1",
        node, project,
    )  # fmt: skip
    assert row is not None
    whose, count = (f"project {project}", row["own"]) if row["own"] >= limits.EXPORTS_PER_PROJECT_MAX else ("", 0)
    if not whose and row["all_"] >= limits.EXPORTS_PER_NODE_MAX:
        whose, count = "all projects", row["all_"]
    if whose:
        raise Unavailable(
            f"node {node} already keeps {count} exports of {whose}", hint="delete one, see: novacron vm exports"
        )


async def get(connection: Connection, id: str) -> Export:
    """Return the export. Raises NotFound."""
    row = await connection.fetchrow("SELECT * FROM exports WHERE id = $1", id)
    if row is None:
        raise NotFound(f"there is no export {id!r}", hint="see: novacron vm exports")
    return _export(row)


async def delete(connection: Connection, id: str, actor: str) -> Export:
    """Forget an export, and let its node remove the file. Raises NotFound."""
    export = await get(connection, id)
    await connection.execute("DELETE FROM exports WHERE id = $1", id)
    await events.record(connection, events.NewEvent("vm", export.vm, export.vm_name, "ExportDeleted", export.id, actor))
    return export


async def on_node(connection: Connection, node: str) -> Decoded[Export]:
    """Return the exports that a node is to keep, or to make, and the ids of those that can't be decoded."""
    rows = await connection.fetch(
        "SELECT * FROM exports WHERE node = $1 AND phase <> $2 ORDER BY id", node, ExportPhase.FAILED
    )
    return decode("exports", rows, _export)


class ExportReport(NamedTuple):
    """How an export stands, as its node says. ``size_bytes``: of the file; ``disk_bytes``: of the disk in it."""

    id: str
    phase: ExportPhase
    size_bytes: int
    disk_bytes: int
    sha256: str
    error: str
    code: str = ""


async def report(connection: Connection, node: str, report: ExportReport) -> None:
    """Store what the node says; one that is ready may still be lost, with its file."""
    id, phase, size_bytes, disk_bytes, sha256, error, code = report
    row = await connection.fetchrow("SELECT * FROM exports WHERE id = $1 AND node = $2 FOR UPDATE", id, node)
    if row is None or _export(row).phase in (phase, ExportPhase.FAILED):
        return
    await connection.execute(
        "UPDATE exports SET phase = $2, size_bytes = $3, disk_bytes = $4, sha256 = $5, error = $6, reason_code = $7"
        " WHERE id = $1",
        id, phase, size_bytes, disk_bytes, sha256, error[:ERROR_LENGTH_MAX], hindrance(error, code),
    )  # fmt: skip
    reason = "Exported" if phase is ExportPhase.READY else "ExportFailed"
    await events.record(
        connection, events.NewEvent("vm", row["vm"], row["vm_name"], reason, error or f"{size_bytes} bytes")
    )
