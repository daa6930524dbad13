"""MAC addresses of VMs: each belongs to one interface in the whole fleet.

The table ``macs`` has a row for each interface of every VM. A trigger of ``vms`` writes it in the transaction that
stores the VM. If another transaction has taken an address meanwhile, it ends this one as a serialization failure: the
work is then done again, and draws other addresses.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from novacron.model import mac
from novacron.model.errors import Conflict, IllegalState, InvalidInput
from novacron.model.vm import Vm, VmSpec, is_off, mac_addresses, with_addresses
from novacron.store import snapshot_memory
from novacron.store.connection import Connection

HELD = """
    SELECT mac, vm, vms.name FROM macs LEFT JOIN vms ON vms.id = vm AND vms.project = $3
        WHERE mac = ANY($1) AND NOT shared AND vm <> $2
    UNION ALL SELECT mac, vm, vms.name FROM macs LEFT JOIN vms ON vms.id = vm AND vms.project = $3
        WHERE mac = ANY($1) AND shared AND vm <> $2
    UNION ALL SELECT interface.mac, vm, CASE WHEN project = $3 THEN vm_name END FROM unreconciled_vms,
        nova_macs(vm, description -> 'spec') interface
        WHERE description IS NOT NULL AND interface.mac = ANY($1) AND vm <> $2 AND proven
    ORDER BY mac LIMIT 1
"""
"""A MAC address of some that a VM other than $2 has, with that VM's name if it is in project $3."""


def assign(spec: VmSpec) -> VmSpec:
    """Return the spec of a new VM in which each interface has a MAC address. Raises InvalidInput."""
    if not spec.nics:
        return with_addresses(spec, _assigned([spec.mac], ["mac"]))
    if spec.mac is not None:
        raise InvalidInput(
            "leave this out: with nics, each interface names its own MAC address",
            field="mac",
            hint='nics: [{"network": ..., "mac": ...}]',
        )
    fields = [f"nics[{number}].mac" for number in range(len(spec.nics))]
    return with_addresses(spec, _assigned([nic.mac for nic in spec.nics], fields))


def _assigned(chosen: Sequence[str | None], fields: Sequence[str]) -> list[str]:
    """Return MAC addresses of a VM's interfaces: those that were chosen, and new ones. Raises InvalidInput."""
    addresses: list[str] = []
    for address, field in zip(chosen, fields, strict=True):
        if address is None:
            checked = mac.from_random(secrets.token_bytes(mac.RANDOM_BYTES))
        else:
            checked = mac.check(address, field)
        if checked in addresses:
            raise InvalidInput(f"another interface of this VM has {checked}", field=field, hint=mac.HINT)
        addresses.append(checked)
    return addresses


async def check_free(connection: Connection, spec: VmSpec, project: str) -> None:
    """Raise Conflict when another VM has a MAC address that a user chose for a VM of ``project``."""
    fields = {nic.mac.lower(): f"nics[{number}].mac" for number, nic in enumerate(spec.nics) if nic.mac is not None}
    if spec.mac is not None:
        fields[spec.mac.lower()] = "mac"
    taken = await _holder(connection, list(fields), "", project)
    if taken is not None:
        address, holder = taken
        raise Conflict(f"{holder} has the MAC address {address}", field=fields[address], hint=mac.HINT)


async def check_kept_or_free(connection: Connection, vm: Vm, spec: VmSpec) -> None:
    """Raise Conflict when another VM has a MAC address that a user chose for a VM whose interfaces change."""
    fields = {nic.mac.lower(): "mac" for nic in spec.nics if nic.mac is not None}
    taken = await _holder(connection, list(fields), vm.id, vm.project)
    if taken is not None:
        address, holder = taken
        raise Conflict(f"{holder} has the MAC address {address}", field="mac", hint=mac.HINT)


async def check_kept(connection: Connection, vm: str, spec: VmSpec, project: str) -> None:
    """Raise Conflict unless a VM can keep the MAC addresses in its spec."""
    kept = [address for address in (spec.mac, *(nic.mac for nic in spec.nics)) if address is not None]
    taken = await _holder(connection, kept, vm, project)
    if taken is not None:
        address, holder = taken
        raise Conflict(
            f"{holder} now has its MAC address {address}", field="mac",
            hint="delete that VM, or give it another address: novacron vm set --mac",
        )  # fmt: skip


async def _holder(connection: Connection, addresses: list[str], vm: str, project: str) -> tuple[str, str] | None:
    """Return the first of some MAC addresses that a VM other than ``vm`` has, and who that is to a project's users."""
    if not addresses:
        return None
    row = await connection.fetchrow(HELD, addresses, vm, project)
    if row is None:
        return None
    return row["mac"], "another VM" if row["name"] is None else f"VM {row['name']}"


async def changed(connection: Connection, vm: Vm, wanted: Sequence[str | None]) -> VmSpec:
    """Return the spec of a VM that gets other MAC addresses; None: a free one.

    Raises InvalidInput, IllegalState, Conflict.
    """
    if not is_off(vm):
        raise IllegalState(
            f"MAC addresses of VM {vm.name} can only change while it is stopped; it is {vm.status.state}"
            " (stop it explicitly)",
            field="macs", hint=f"novacron vm stop {vm.name} --wait",
        )  # fmt: skip
    _check_count(vm, wanted)
    await snapshot_memory.check_none(connection, vm, "addresses", "macs")
    return with_addresses(vm.spec, await _free(connection, vm.project, wanted, vm.id))


async def of_clone(connection: Connection, source: Vm, spec: VmSpec, wanted: Sequence[str | None]) -> VmSpec:
    """Return the spec of a clone whose MAC addresses are named; None: a free one. Its source keeps its own.

    Raises InvalidInput, Conflict.
    """
    _check_count(source, wanted)
    return with_addresses(spec, await _free(connection, source.project, wanted))


async def of_restored(connection: Connection, project: str, spec: VmSpec, had: Sequence[str], *, must: bool) -> VmSpec:
    """Return the spec of a VM that is made of a backup, with the MAC addresses that it ``had`` as far as no other VM
    has them, and free ones for the rest. ``must``: with all that it had. Raises InvalidInput, Conflict."""
    addresses: list[str | None] = list(had)
    while (taken := await _holder(connection, [address for address in addresses if address], "", project)) is not None:
        address, holder = taken
        if must:
            raise Conflict(
                f"{holder} has the MAC address {address}", field="keep_macs",
                hint="delete that VM first, or restore with new addresses: --new-mac",
            )  # fmt: skip
        addresses[addresses.index(address)] = None
    return with_addresses(spec, await _free(connection, project, addresses))


def _check_count(vm: Vm, wanted: Sequence[str | None]) -> None:
    """Raise InvalidInput unless each interface of a VM gets an address."""
    count = len(mac_addresses(vm.id, vm.spec))
    if len(wanted) != count:
        raise InvalidInput(
            f"VM {vm.name} has {count} interfaces, not {len(wanted)}", field="macs",
            hint="give one address for each interface, in their order",
        )  # fmt: skip


async def _free(connection: Connection, project: str, wanted: Sequence[str | None], vm: str = "") -> Sequence[str]:
    """Return addresses that no VM has but ``vm``, drawn where none is named. Raises InvalidInput, Conflict."""
    addresses = _assigned(wanted, [f"macs[{number}]" for number in range(len(wanted))])
    taken = await _holder(connection, addresses, vm, project)
    if taken is not None:
        address, holder = taken
        field = f"macs[{addresses.index(address)}]"
        raise Conflict(f"{holder} has the MAC address {address}", field=field, hint=mac.HINT)
    return addresses
