"""What nodes own: the statements about their VMs, and their reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from novacron.model.cloud_init import SealedSeed
from novacron.model.cpu import CpuModel
from novacron.model.firmware_state import FirmwareState
from novacron.model.plugged import NicPorts
from novacron.model.vm import CloneOf, Vm, VmSpec, VmState, VmStatus
from novacron.store import events, reconciling, unreconciled, vms
from novacron.store.database import Connection
from novacron.store.rows import Decoded, decode, decode_each

HINDERED = frozenset({VmState.FAILED, VmState.UNKNOWN})


class OwnedVm(msgspec.Struct, frozen=True):
    """A VM as it is sent to its node."""

    project_id: str
    id: str
    name: str
    spec: VmSpec
    node: str
    migration: str | None
    epoch: int
    deleting: bool
    machine: str
    reboots: int
    halted_at_start: int | None
    seed: SealedSeed | None
    resets: int
    hardware_renewals: int
    booted_once_at: int
    nic_ports: NicPorts
    clone_of: CloneOf | None
    firmware_state: FirmwareState | None
    cpu: CpuModel | None
    image_digest: str | None
    trace: str
    image_keys: tuple[str, ...] = ()
    """Ids of the keys with which its images are encrypted."""
    withheld: str = ""
    """Why its node must not begin it yet."""


async def all(
    connection: Connection, *, node: str | None = None, ids: Sequence[str] | None = None
) -> Decoded[OwnedVm]:  # fmt: skip
    """Return every VM that ``node`` owns, or those of ``ids`` that any node owns; and the ids of those that can't be
    decoded, or are unreconciled: nodes are told nothing of them, and they are not gone."""
    where, value = ("node = $1", node) if ids is None else ("node IS NOT NULL AND vms.id = ANY($1)", ids)
    rows = await connection.fetch(
        "SELECT (SELECT p.id FROM projects p WHERE p.name = vms.project) AS project_id,"
        " vms.id, name, spec, node, migration, epoch, deleting, status ->> 'machine' AS machine,"
        # As JSON: a number that a node reports may be larger than any of the database's, and stops only its own VM.
        " status -> 'reboots' AS reboots, nullif(status -> 'halted_at_start', 'null') AS halted_at_start,"
        " coalesce(status -> 'resets', '0') AS resets,"
        " coalesce(status -> 'hardware_renewals', '0') AS hardware_renewals,"
        " coalesce(status -> 'booted_once_at', '-1') AS booted_once_at, nic_ports, seed, clone_of,"
        " status -> 'cpu' AS cpu, image_digest, trace, ARRAY(SELECT o.encryption_key FROM image_owners o"
        " WHERE o.encryption_key <> '' AND o.name = ANY(ARRAY[spec ->> 'image', spec ->> 'kernel', spec ->> 'initrd']"
        " || ARRAY(SELECT drive ->> 'iso' FROM jsonb_array_elements(spec -> 'cdroms') drive))) AS image_keys,"
        " CASE WHEN status ->> 'machine' = '' THEN vm_firmware_states.state END AS firmware_state"  # it never ran
        " FROM vms LEFT JOIN vm_seeds ON vm_seeds.vm = vms.id"
        " LEFT JOIN vm_firmware_states ON vm_firmware_states.vm = vms.id"
        f" WHERE {where} AND unreconciled IS NULL",
        value,
    )
    unknown = await connection.fetch(f"SELECT id FROM vms WHERE unreconciled IS NOT NULL AND {where}", value)
    held_back = await unreconciled.withheld(connection, {row["id"]: row["node"] for row in rows})
    owned = decode("vms", rows, lambda row: msgspec.convert({**row, "withheld": held_back.get(row["id"], "")}, OwnedVm))
    return Decoded(owned.rows, owned.unreadable | {row["id"] for row in unknown})


ONLY_ENDING = (
    "NOT EXISTS (SELECT FROM unreconciled_vms u WHERE u.vm = vms.id AND u.contradiction <> 'ending' AND u.proven)"
)
"""Of an unreconciled VM: the database is right, and others are to end what they have of it."""


async def epochs(
    connection: Connection, ids: Sequence[str], node: str | None = None
) -> dict[str, tuple[int, bool]]:  # fmt: skip
    """Return the epoch of each of these VMs, and whether it was deleted; ones never known, ones that are
    unreconciled, and ones whose disk only a removed node has, are left out: whoever comes with it keeps it, unless that
    is ``node``, which was to end what it has."""
    rows = await connection.fetch(
        "SELECT id, epoch, false AS deleted FROM vms WHERE id = ANY($1) AND (lost_on IS NULL OR EXISTS"
        " (SELECT FROM unreconciled_vms u WHERE u.vm = vms.id AND u.contradiction = 'ending' AND u.node = $2))"
        f" AND (unreconciled IS NULL OR {ONLY_ENDING})"
        " UNION ALL SELECT vm, epoch, true FROM vm_tombstones WHERE vm = ANY($1)",
        ids, node,
    )  # fmt: skip
    return {row["id"]: (row["epoch"], row["deleted"]) for row in rows}


class Report(NamedTuple):
    """How a node says that a VM is, which it owns at ``epoch``."""

    node: str
    vm: str
    epoch: int
    status: VmStatus


def _event_of(was: VmStatus, status: VmStatus) -> str | None:
    """Return the reason of the event that a change of a VM's status is: of its state, or of what keeps it waiting."""
    if status.state is not was.state:
        return status.state.capitalize()
    return status.reason_code if status.reason_code and status.reason_code != was.reason_code else None


async def _let_go_on(connection: Connection, reports: Sequence[Report], held_back: set[str]) -> None:
    """Nodes that have lost their record of a VM that they are to end hear the next epoch, which they obey."""
    for node, id, epoch, status in reports:
        if status.record_lost and id in held_back:
            await reconciling.record_lost(connection, node, id, epoch)


async def _tell(
    connection: Connection, vm: Vm, report: Report, was: VmStatus, causes: events.CommonCauses
) -> None:  # fmt: skip
    """Record the event that a change of a VM's status makes, if it does: of the VM, or of its node if many VMs there
    are kept by the same."""
    status, node = report.status, report.node
    reason = _event_of(was, status)
    if reason is None:
        return
    message = f"{status.state} on {node}" + (f": {status.reason}" if status.reason else "")
    hindered = status.reason_code and (reason == status.reason_code or status.state in HINDERED)
    if hindered and not causes.is_own(node, status.reason_code):
        message = f"further VMs are {message}; the latest is {vm.name}: novacron vm list --node {node}"
        event = events.NewEvent("node", node, node, status.reason_code, message)
    else:
        event = events.NewEvent("vm", vm.id, vm.name, reason, message, project=vm.project)
    await events.record(connection, event)


async def observe(connection: Connection, reports: Sequence[Report], causes: events.CommonCauses | None = None) -> None:
    """Store what the owners of VMs report, in this order; anyone else's report is ignored, and so
    is one of a VM whose row can't be decoded. Finishes deletions. ``causes``: of what was told before."""
    causes = causes or events.CommonCauses()
    rows = await connection.fetch(
        "SELECT * FROM vms WHERE id = ANY($1) ORDER BY id FOR UPDATE", list({report.vm for report in reports})
    )
    vms_by_id = {vm.id: vm for vm in decode_each("vms", rows, vms.of_row)}
    changed: dict[str, VmStatus] = {}
    await _let_go_on(connection, reports, {id for id, vm in vms_by_id.items() if vm.unreconciled is not None})
    for node, id, epoch, status in reports:
        vm = vms_by_id.get(id)
        if vm is None or vm.node != node or vm.epoch != epoch or vm.unreconciled is not None:
            continue
        was = changed.get(id, vm.status)
        if status.state is VmState.ABSENT:
            if vm.deleting:
                await vms.remove(connection, vms_by_id.pop(id))
                changed.pop(id, None)
        elif status != was:
            changed[id] = status
            await _tell(connection, vm, Report(node, id, epoch, status), was, causes)
    if changed:
        await connection.execute(
            "UPDATE vms SET status = o.status FROM unnest($1::text[], $2::jsonb[]) AS o (id, status)"
            " WHERE vms.id = o.id",
            list(changed), [msgspec.to_builtins(status) for status in changed.values()],
        )  # fmt: skip
