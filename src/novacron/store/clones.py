"""Clones: VMs whose disk is to be made from that of another, on its node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from novacron.model.constraints import Placement
from novacron.model.devices import CpuPolicy, HugePages
from novacron.model.errors import Conflict, IllegalState
from novacron.model.metadata import FIELDS as METADATA
from novacron.model.vm import CloneOf, Power, Restart, Vm, VmAction, VmSpec
from novacron.store import events, macs, new_vms, projects, snapshots, vms
from novacron.store.database import Connection
from novacron.store.hindered import ERROR_LENGTH_MAX

ISOLATED: dict[str, Any] = {
    "power": Power.RUNNING, "restart": Restart.NEVER, "ha": False, "placement": Placement(), "start_delay_s": 0,
    "devices": (), "nics": (), "address": None, "mac": None, "connected": False, "cdroms": (),
    "network_boot_order": None, "cpu_policy": CpuPolicy.SHARED, "hugepages": HugePages.NONE,
}  # fmt: skip
"""Changes to the spec of a VM that is only to show whether it starts: it reaches nothing, and takes nothing but room
from its node, which it shares with others."""


class NewClone(NamedTuple):
    """A clone that is asked for. ``changes`` are to its spec; ``linked``: it shares the source's disk as a layer."""

    name: str
    changes: dict[str, Any]
    linked: bool
    if_match: int | None = None
    macs: Sequence[str | None] | None = None
    """MAC addresses of its interfaces, in their order, or None for a free one; None: free ones for all."""


def fresh(spec: VmSpec) -> VmSpec:
    """Return the spec of a VM that is like another one, which may go on: it has no addresses yet. Pure."""
    return msgspec.structs.replace(
        spec,
        power=Power.RUNNING,
        starts=0,
        reboots=0,
        resets=0,
        boot_once=None,
        hardware_renewals=0,
        protected=False,
        address=None,
        mac=None,
        nics=tuple(msgspec.structs.replace(nic, address=None, address6=None, mac=None) for nic in spec.nics),
    )


async def create(connection: Connection, ref: str, asked: NewClone, actor: str) -> Vm:
    """Store a VM that is to become a clone of another.

    Raises NotFound, Conflict, IllegalState, NoCapacity, PreconditionFailed.
    """
    name, changes, linked, if_match, wanted_macs = asked
    source = await vms.get(connection, ref, lock=True)
    vms.check_action(source, VmAction.CLONE, if_match)
    if source.node is None:
        raise IllegalState(f"VM {source.name} has not been placed on a node yet", hint="wait until it is placed")
    if source.clone_of is not None:
        raise Conflict(f"VM {source.name} is itself being cloned from another", hint="wait until that is done")
    await snapshots.check_idle(connection, source)
    if linked and await snapshots.of_vm(connection, source.id):
        raise IllegalState(
            f"VM {source.name} has snapshots, so its disk can't be shared with a linked clone",
            field="linked",
            hint=f"make a full clone, or delete the snapshots, see: novacron snapshot list {source.name}",
        )
    spec = msgspec.structs.replace(fresh(source.spec), **changes)
    if wanted_macs is not None:
        spec = await macs.of_clone(connection, source, spec, wanted_macs)
    seed = await vms.seed_of(connection, source.id)
    begins = await vms.firmware_state_of(connection, source.id)
    of = CloneOf(source.id, source.name, linked)
    described = {field: value for field in METADATA if (value := getattr(source, field))}
    new = new_vms.NewVm(name, spec, None, source.node, seed, begins, of, described)
    clone = await new_vms.create(connection, await projects.making(connection, source.project), new, actor)
    await events.record(connection, events.NewEvent("vm", source.id, source.name, "CloneAsked", f"clone {name}", actor))
    return clone


class CloneReport(NamedTuple):
    """A VM has the disk that it was to get; with ``error`` it keeps the one that it had."""

    vm: str
    epoch: int
    error: str = ""
    code: str = ""


async def made(connection: Connection, node: str, report: CloneReport) -> None:
    """Store that a VM has its disk, as its owner reports. Anyone else's report is ignored."""
    row = await connection.fetchrow(
        "UPDATE vms SET clone_of = NULL FROM (SELECT clone_of AS before FROM vms WHERE id = $1 FOR UPDATE) AS old"
        " WHERE id = $1 AND node = $2 AND epoch = $3 AND clone_of IS NOT NULL"
        " AND ($4 = '' OR clone_of ->> 'replaces' <> '') RETURNING name, project, before",
        report.vm, node, report.epoch, report.error,
    )  # fmt: skip
    if row is None:
        return
    source, reason = row["before"]["source_name"], "Restored" if _is_restored(row["before"]) else "Cloned"
    message = f"from {source}"
    if report.error:
        reason, message = "RestoreFailed", f"{message}: {report.error[:ERROR_LENGTH_MAX]}; its disk is as it was"
    new = events.NewEvent("vm", report.vm, row["name"], reason, message, project=row["project"])
    await events.record(connection, new)


def _is_restored(of: dict[str, Any]) -> bool:
    """Say whether a VM had been there before its disk was."""
    return bool(of.get("replaces") or of.get("live"))
