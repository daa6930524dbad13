"""VMs: what users ask for, and where they are placed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.cloud_init import SealedSeed
from novacron.model.errors import (
    Conflict,
    IllegalState,
    InvalidInput,
    NotFound,
    PreconditionFailed,
)
from novacron.model.firmware_state import FirmwareState
from novacron.model.network import NicSpec
from novacron.model.plugged import NIC_PORTS
from novacron.model.vm import (
    ALLOWED_IN,
    BARRED_BY_MIGRATION,
    BEGIN_ANEW,
    DISTURB_CLONING,
    Power,
    Vm,
    VmAction,
    VmSpec,
    VmState,
    mac_addresses,
)
from novacron.store import (
    deferred_writes,
    events,
    hardware,
    image_use,
    macs,
    media,
    networks,
    projects,
    sizes,
    unreconciled,
)
from novacron.store.database import Connection
from novacron.store.rows import object_of
from novacron.telemetry import traces

DETACHED = (
    "vm = NULL, vm_name = NULL, lun = NULL, bus = 'scsi', with_vm = false, read_only = false,"
    " boot_order = NULL, detaching = false,"
    " error = CASE WHEN EXISTS (SELECT FROM nodes WHERE name = volumes.node) THEN '' ELSE error END,"
    " reason_code = CASE WHEN EXISTS (SELECT FROM nodes WHERE name = volumes.node) THEN '' ELSE reason_code END"
)
"""What is said of a volume that no VM has."""


def of_row(row: asyncpg.Record | None) -> Vm:
    """Return the VM that a row of its table is."""
    return object_of(Vm, row)


def name_taken(name: str) -> Conflict:
    """Return the error for a name that another VM of the project has."""
    return Conflict(f"a VM named {name!r} exists", field="name", hint="choose another name")


async def get(connection: Connection, id: str, *, lock: bool = False) -> Vm:
    """Return a VM. Raises NotFound."""
    row = await connection.fetchrow("SELECT * FROM vms WHERE id = $1" + (" FOR UPDATE" if lock else ""), id)
    if row is None:
        raise NotFound(f"there is no VM {id!r}", hint="see: novacron vm list")
    return of_row(row)


def check_revision(vm: Vm, if_match: int | None) -> None:
    """Raise PreconditionFailed unless the VM is at this revision, if one is named."""
    if if_match is not None and if_match != vm.revision:
        raise PreconditionFailed(
            f"VM {vm.name} is at revision {vm.revision}, not {if_match}",
            field="If-Match",
            hint="read the VM again, look at what changed, and repeat",
        )


def check_action(vm: Vm, action: VmAction, if_match: int | None) -> None:
    """Raise PreconditionFailed, Conflict or IllegalState when ``action`` does not fit the VM as it is."""
    check_revision(vm, if_match)
    unreconciled.check(vm, action)
    if vm.deleting:
        if action is VmAction.DELETE:
            return
        raise IllegalState(f"cannot {action} VM {vm.name}: it is being deleted")
    if vm.lost_on is not None and action is not VmAction.DELETE:
        raise IllegalState(
            f"cannot {action} VM {vm.name}: its disk is on node {vm.lost_on}, which was removed",
            hint=f"see: novacron vm recover {vm.name} --help",
        )
    if vm.migration is not None and action in BARRED_BY_MIGRATION:
        raise Conflict(
            f"cannot {action} VM {vm.name}: migration {vm.migration} is moving it",
            hint=f"wait for it, or: novacron migration abort {vm.migration}",
        )
    if vm.status.state not in ALLOWED_IN[action] and not (vm.status.record_lost and action in BEGIN_ANEW):
        raise IllegalState(f"cannot {action} VM {vm.name}: {_standing(vm)}", hint=_way_out(vm))
    if action is VmAction.DELETE and vm.spec.protected:
        raise Conflict(f"VM {vm.name} is protected", hint=f"to delete it: novacron vm set {vm.name} --no-protect")


def _standing(vm: Vm) -> str:
    """Say how a VM is, in a sentence about why something can't be done."""
    if vm.status.state is not VmState.UNKNOWN:
        return f"it is {vm.status.state}"
    reason = f": {vm.status.reason}" if vm.status.reason else ""
    return f"its state is unknown, and its QEMU may still run on node {vm.node}{reason}"


def _way_out(vm: Vm) -> str | None:
    if vm.status.state is not VmState.UNKNOWN:
        return None
    return f"wait until its node reports, or stop what may be running: novacron vm stop {vm.name} --force"


def check_whole(vm: Vm, action: str) -> None:
    """Raise Conflict while a part of the VM's disk is still in the backup that it runs from."""
    if vm.clone_of is not None and vm.clone_of.live:
        raise Conflict(
            f"cannot {action} VM {vm.name}: it still runs from {vm.clone_of.source_name}",
            hint=f"wait until all of its disk is on its node: novacron vm show {vm.name}",
        )


async def check_not_cloning(connection: Connection, vm: Vm, action: VmAction) -> None:
    """Raise Conflict while a clone of the VM, or the VM as a clone, is being made, if ``action`` would disturb that."""
    if action not in DISTURB_CLONING:
        return
    if vm.clone_of is not None and vm.clone_of.live and action is not VmAction.DELETE:
        check_whole(vm, action)
    if vm.clone_of is not None and action is not VmAction.DELETE:
        raise Conflict(f"cannot {action} VM {vm.name}: it is being cloned from {vm.clone_of.source_name}")
    name = await connection.fetchval(
        "SELECT name FROM vms WHERE clone_of ->> 'source' = $1 AND clone_of ->> 'replica' IS NULL LIMIT 1", vm.id
    )
    if name is not None:
        raise Conflict(
            f"cannot {action} VM {vm.name}: {name} is being cloned from it",
            hint=f"wait until that is done, or delete {name}",
        )


async def act(
    connection: Connection,
    id: str,
    action: VmAction,
    if_match: int | None,
    actor: str,
    stop_timeout_s: int | None = None,
) -> Vm:
    """Change the spec as ``action`` asks: start, stop, pause, resume, reboot or delete.

    A node that has lost its record of the VM may have promised something at the present epoch, in a migration. Once no
    migration is active that promise binds nobody any more: the owner stays, at the next epoch, and may act again.
    """
    vm = await get(connection, id, lock=True)
    check_action(vm, action, if_match)
    await check_not_cloning(connection, vm, action)
    if action is VmAction.DELETE and vm.node is None:
        await remove(connection, vm)
        return msgspec.structs.replace(vm, deleting=True)
    spec = msgspec.structs.replace(vm.spec, **power_changes(vm.spec, action, stop_timeout_s))
    row = await connection.fetchrow(
        "UPDATE vms SET spec = $2, deleting = deleting OR $3, trace = $4, epoch = epoch + $5 WHERE id = $1 RETURNING *",
        vm.id,
        msgspec.to_builtins(spec),
        action is VmAction.DELETE,
        traces.carry(),
        int(_begins_anew(vm, action)),
    )
    await events.record(
        connection,
        events.NewEvent("vm", vm.id, vm.name, action.capitalize(), f"{action} requested", actor, project=vm.project),
    )
    return of_row(row)


def _begins_anew(vm: Vm, action: VmAction) -> bool:
    """Say whether an action moves the VM to its next epoch."""
    return vm.status.record_lost and action in BEGIN_ANEW and vm.node is not None and vm.migration is None


class ChangedVm(NamedTuple):
    """Which VM it is."""

    id: str
    name: str
    project: str


class OneStatement(NamedTuple):
    """A change of what was known, in one statement, which does nothing if that is not so any more."""

    of: ChangedVm
    statement: str
    arguments: tuple[Any, ...]
    event: events.NewEvent


SIMPLE = frozenset(
    {
        "restart",
        "start_order",
        "start_delay_s",
        "protected",
        "disk_iops",
        "disk_bytes_per_s",
        "placement",
        "ha_priority",
    }
)
"""What of a VM depends on nothing else, and nothing else on it."""


def _change(vm: Vm, changes: dict[str, Any], event: events.NewEvent) -> OneStatement:
    """Return a change of fields of a VM's spec that needs to read no other object."""
    spec = msgspec.to_builtins(msgspec.structs.replace(vm.spec, **changes))
    condition = f"{deferred_writes.IN_TURN} AND id = $1 AND revision = $3"
    statement = f"UPDATE vms SET spec = $2, trace = $4 WHERE {condition} RETURNING *"
    return OneStatement(
        ChangedVm(vm.id, vm.name, vm.project), statement, (vm.id, spec, vm.revision, traces.carry()), event
    )


def configure_in_one_statement(
    vm: Vm, changes: dict[str, Any], if_match: int | None, actor: str
) -> OneStatement | None:
    """Return what ``configure`` would do in one statement, or None where it takes more. Raises as that does."""
    check_action(vm, VmAction.CONFIGURE, if_match)
    if not SIMPLE.issuperset(changes):
        return None
    message = _in_words(vm, changes)
    return _change(vm, changes, events.NewEvent("vm", vm.id, vm.name, "Configured", message, actor, vm.project))


def act_in_one_statement(
    vm: Vm, action: VmAction, if_match: int | None, actor: str, stop_timeout_s: int | None
) -> OneStatement | None:
    """Return what ``act`` would do in one statement, or None where it takes more. Raises as that does."""
    check_action(vm, action, if_match)
    if action in DISTURB_CLONING or vm.clone_of is not None or action is VmAction.DELETE or _begins_anew(vm, action):
        return None
    event = events.NewEvent("vm", vm.id, vm.name, action.capitalize(), f"{action} requested", actor, vm.project)
    return _change(vm, power_changes(vm.spec, action, stop_timeout_s), event)


def power_changes(spec: VmSpec, action: VmAction, stop_timeout_s: int | None) -> dict[str, object]:
    """Return what of a spec an action changes."""
    match action:
        case VmAction.START:
            less = {} if spec.balloon_mib is None else {"memory_mib": spec.balloon_mib, "balloon_mib": None}
            return {"power": Power.RUNNING, "starts": spec.starts + 1, **less}
        case VmAction.STOP:
            timeout_s = limits.STOP_TIMEOUT_S_DEFAULT if stop_timeout_s is None else stop_timeout_s
            return {"power": Power.STOPPED, "stop_timeout_s": timeout_s}
        case VmAction.PAUSE:
            return {"power": Power.PAUSED}
        case VmAction.RESUME:
            return {"power": Power.RUNNING}
        case VmAction.REBOOT:
            return {"reboots": spec.reboots + 1}
        case VmAction.RESET:
            return {"resets": spec.resets + 1}
        case VmAction.DELETE:
            return {}
    raise ValueError(f"{action} is not a power action")


def _in_words(vm: Vm, changes: dict[str, Any]) -> str:
    return ", ".join(_said_of(vm, changes, key) for key in changes)


def _said_of(vm: Vm, changes: dict[str, Any], key: str) -> str:
    match key:
        case "nics":
            return f"security groups {_groups(changes[key])}"
        case "cloud_init":
            return "data of cloud-init"
        case "macs":
            return f"MAC addresses {', '.join(address or 'new' for address in changes[key])}"
        case "cdroms":
            return f"CD-ROM drives {', '.join(drive.iso or 'empty' for drive in changes[key]) or 'none'}"
        case "hardware_renewals":
            return "processor and machine type to be chosen again at its next start"
    return f"{key} {getattr(vm.spec, key)} to {changes[key]}"


async def configure(
    connection: Connection, id: str, name: str | None, changes: dict[str, Any], if_match: int | None, actor: str
) -> Vm:
    """Rename a VM, or change fields of its spec; its size only while it is off.

    Raises Conflict, NoCapacity, QuotaExceeded.
    """
    vm = await get(connection, id, lock=True)
    check_action(vm, VmAction.CONFIGURE, if_match)
    if "security_groups" in changes:
        changes = _with_groups(vm, changes)
        await networks.check_groups(connection, changes["nics"], vm.project)
    changes = hardware.with_renewal(vm, sizes.by_balloon(vm, changes))
    spec = await media.changed(connection, vm, await _changed(connection, vm, changes), set(changes))
    await hardware.check(connection, vm, spec)
    sizes.check_maxima(spec)
    if spec.ha and not vm.spec.ha:
        await check_available(connection, vm.id, spec)
    has_more = "disk_mib" in changes or sizes.of(spec) != sizes.of(vm.spec)
    before = await projects.lock_usage(connection, vm.project) if has_more else None
    if sizes.of(spec) != sizes.of(vm.spec):
        await sizes.check_resize(connection, vm, spec)
    if "disk_mib" in changes:
        check_whole(vm, "resize the disk of")
        await sizes.check_disk(connection, spec.image, vm.spec.disk_mib or 0, changes["disk_mib"])
    changed = [_in_words(vm, changes)] if changes else []
    if name is not None and name != vm.name:
        await unreconciled.check_name(connection, vm.project, name)
        changed.insert(0, f"name {vm.name} to {name}")
    try:
        row = await connection.fetchrow(
            "UPDATE vms SET name = $2, spec = $3, disk_mib = greatest(disk_mib, $4), trace = $5,"
            " nic_ports = greatest(nic_ports, $6) WHERE id = $1 RETURNING *",
            vm.id, name or vm.name, msgspec.to_builtins(spec), changes.get("disk_mib", 0), traces.carry(),
            NIC_PORTS if "hardware_renewals" in changes else 0,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise name_taken(str(name)) from None
    if before is not None:
        await projects.check_quota(connection, vm.project, before)
    changed_vm = of_row(row)
    await _repeat_elsewhere(connection, changed_vm, before=vm)
    await events.record(
        connection,
        events.NewEvent("vm", vm.id, changed_vm.name, "Configured", ", ".join(changed), actor, project=vm.project),
    )
    return changed_vm


async def _repeat_elsewhere(connection: Connection, vm: Vm, before: Vm) -> None:
    """Store in other tables what they, too, say of a VM that was changed."""
    if mac_addresses(vm.id, vm.spec) != mac_addresses(vm.id, before.spec):
        await connection.execute("DELETE FROM nics WHERE vm = $1", vm.id)
        await networks.attach(connection, vm.id, vm.spec)
    if vm.name != before.name:
        for table in ("volumes", "snapshots", "replicas", "floating_addresses", "forwards"):
            await connection.execute(f"UPDATE {table} SET vm_name = $2 WHERE vm = $1", vm.id, vm.name)


async def _changed(connection: Connection, vm: Vm, changes: dict[str, Any]) -> VmSpec:
    """Return a VM's spec with changes, among which ``macs`` and ``cloud_init`` are no fields of it."""
    fields = dict(changes)
    wanted_macs, seed = fields.pop("macs", None), fields.pop("cloud_init", None)
    if seed is not None:
        await hardware.change_seed(connection, vm, seed)
    changed = msgspec.structs.replace(vm, spec=msgspec.structs.replace(vm.spec, **fields))
    return changed.spec if wanted_macs is None else await macs.changed(connection, changed, wanted_macs)


def _groups(nics: Sequence[NicSpec]) -> str:
    return ", ".join(sorted({group for nic in nics for group in nic.groups})) or "none"


def _with_groups(vm: Vm, changes: dict[str, Any]) -> dict[str, Any]:
    """Return changes in which ``security_groups`` are those of all interfaces. Raises InvalidInput."""
    if not vm.spec.nics:
        raise InvalidInput(
            f"VM {vm.name} is in no network",
            field="security_groups",
            hint="only network interfaces (nics) have security groups",
        )
    rest = {key: value for key, value in changes.items() if key != "security_groups"}
    return rest | {
        "nics": tuple(msgspec.structs.replace(nic, groups=changes["security_groups"]) for nic in vm.spec.nics)
    }


async def check_available(connection: Connection, id: str | None, spec: VmSpec) -> None:
    """Raise InvalidInput when a VM is to be highly available, and something of it is on one node only."""
    if not spec.own_disk and spec.disk_mib is not None:
        raise InvalidInput("a VM without a disk of its own has no disk size", field="disk_mib", hint="leave it out")
    if not spec.ha:
        return
    if spec.own_disk and await sizes.image_disk_mib(connection, spec.image) and not await is_replicated(connection, id):
        raise InvalidInput(
            f"a VM of image {spec.image} has its disk on its node only", field="ha",
            hint="replicate it first (novacron vm replicate), or create it without a disk (own_disk: false) and boot it"
            " from a volume in a shared pool",
        )  # fmt: skip
    local = await connection.fetchval("SELECT name FROM volumes WHERE vm = $1 AND kind = 'local' LIMIT 1", id)
    if local is not None:
        raise InvalidInput(
            f"its volume {local} is on its node only", field="ha", hint=f"detach it: novacron volume detach {local}"
        )


async def is_replicated(connection: Connection, id: str | None, but: str = "") -> bool:
    """Say whether a VM has a replica with a point from which it can go on, other than the one with the id ``but``."""
    query = (
        "SELECT FROM replicas r JOIN vms v ON v.id = r.vm WHERE r.vm = $1 AND r.id <> $2 AND r.node <> v.node"
        " AND r.phase = 'following' AND r.points <> '[]'"
    )
    return bool(await connection.fetchval(f"SELECT EXISTS ({query})", id, but))


async def touch(connection: Connection, vm: str) -> None:
    """Notify the VM's node: the statement about a VM includes its volumes and snapshots."""
    await connection.execute("UPDATE vms SET trace = $2 WHERE id = $1", vm, traces.carry())


async def remove(connection: Connection, vm: Vm) -> None:
    """Forget a VM of which nothing is left on its node; its epoch is kept."""
    await connection.execute(
        "INSERT INTO vm_tombstones (vm, epoch) VALUES ($1, $2) ON CONFLICT (vm) DO NOTHING",
        vm.id,
        vm.epoch + 1,
    )
    await connection.execute("UPDATE volumes SET phase = 'deleting' WHERE vm = $1 AND with_vm", vm.id)
    await leave(connection, vm)
    await events.record(
        connection,
        events.NewEvent(
            "vm", vm.id, vm.name, "Deleted", "deleted, with everything that belonged to it", project=vm.project
        ),
    )


async def leave(connection: Connection, vm: Vm) -> None:
    """Take a VM out of the database, with what belongs to it alone."""
    await connection.execute(f"UPDATE volumes SET {DETACHED} WHERE vm = $1", vm.id)
    await networks.release(connection, vm.id)
    await connection.execute("DELETE FROM vms WHERE id = $1", vm.id)


USES_IMAGE = image_use.uses("$1")


async def made_of(connection: Connection, image: str, node: str | None) -> list[str]:
    """Return the names of some VMs that use an image: on one node, or on their way there, or anywhere."""
    rows = await connection.fetch(
        f"SELECT name FROM vms WHERE {USES_IMAGE}"
        " AND ($2::text IS NULL OR node = $2 OR id IN"
        " (SELECT vm FROM migrations WHERE target = $2 AND finished_at IS NULL)) ORDER BY name LIMIT 5",
        image, node,
    )  # fmt: skip
    return [row["name"] for row in rows]


async def memory_mib(connection: Connection, ids: list[str]) -> int:
    """Return how much memory these VMs have in all."""
    total: int = await connection.fetchval(
        "SELECT coalesce(sum((spec ->> 'memory_mib')::bigint), 0)::bigint FROM vms WHERE id = ANY($1)", ids
    )
    return total


async def seed_of(connection: Connection, id: str) -> SealedSeed | None:
    """Return the first-boot data of a VM, if it has any."""
    seed = await connection.fetchval("SELECT seed FROM vm_seeds WHERE vm = $1", id)
    return None if seed is None else msgspec.convert(seed, SealedSeed)


async def firmware_state_of(connection: Connection, id: str) -> FirmwareState | None:
    """Return what firmware and TPM of a VM began with, if that was given."""
    state = await connection.fetchval("SELECT state FROM vm_firmware_states WHERE vm = $1", id)
    return None if state is None else msgspec.convert(state, FirmwareState)
