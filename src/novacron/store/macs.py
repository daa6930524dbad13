"""MAC addresses of VMs: each belongs to one interface in the whole fleet.

The table ``macs`` has a row for each interface of every VM. A trigger of ``vms`` writes it in the transaction that
stores the VM. If another transaction has taken an address meanwhile, it ends this one as a serialization failure: the
work is then done again, and draws other addresses.
"""

from __future__ import annotations

import secrets

import msgspec

from novacron.model import mac
from novacron.model.errors import Conflict, InvalidInput
from novacron.model.vm import VmSpec
from novacron.store.connection import Connection

HELD = """
    SELECT mac, vm, vms.name FROM macs LEFT JOIN vms ON vms.id = vm AND vms.project = $3
        WHERE mac = ANY($1) AND NOT shared AND vm <> $2
    UNION ALL SELECT mac, vm, vms.name FROM macs LEFT JOIN vms ON vms.id = vm AND vms.project = $3
        WHERE mac = ANY($1) AND shared AND vm <> $2
    UNION ALL SELECT interface.mac, vm, CASE WHEN project = $3 THEN vm_name END FROM unreconciled_vms,
        nova_macs(vm, description -> 'spec') interface
        WHERE description IS NOT NULL AND interface.mac = ANY($1) AND vm <> $2
    ORDER BY mac LIMIT 1
"""
"""A MAC address of some that a VM other than $2 has, with that VM's name if it is in project $3."""


def assign(spec: VmSpec) -> VmSpec:
    """Return the spec of a new VM in which each interface has a MAC address. Raises InvalidInput."""
    if not spec.nics:
        return msgspec.structs.replace(spec, mac=_chosen_or_random(spec.mac, "mac"))
    if spec.mac is not None:
        raise InvalidInput(
            "a VM with nics has its MAC addresses in them", field="mac", hint='nics: [{"network": ..., "mac": ...}]'
        )
    nics, seen = [], set[str]()
    for number, nic in enumerate(spec.nics):
        field = f"nics[{number}].mac"
        address = _chosen_or_random(nic.mac, field)
        if address in seen:
            raise InvalidInput(f"another interface of this VM has {address}", field=field, hint=mac.HINT)
        seen.add(address)
        nics.append(msgspec.structs.replace(nic, mac=address))
    return msgspec.structs.replace(spec, nics=tuple(nics))


def _chosen_or_random(chosen: str | None, field: str) -> str:
    return mac.from_random(secrets.token_bytes(mac.RANDOM_BYTES)) if chosen is None else mac.check(chosen, field)


async def check_free(connection: Connection, spec: VmSpec, project: str) -> None:
    """Raise Conflict when another VM has a MAC address that a user chose for a VM of ``project``."""
    fields = {nic.mac.lower(): f"nics[{number}].mac" for number, nic in enumerate(spec.nics) if nic.mac is not None}
    if spec.mac is not None:
        fields[spec.mac.lower()] = "mac"
    found = await _holder(connection, list(fields), "", project)
    if found is not None:
        address, holder = found
        raise Conflict(f"{holder} has the MAC address {address}", field=fields[address], hint=mac.HINT)


async def check_kept(connection: Connection, vm: str, spec: VmSpec, project: str) -> None:
    """Raise Conflict unless a VM can keep the MAC addresses in its spec."""
    kept = [address for address in (spec.mac, *(nic.mac for nic in spec.nics)) if address is not None]
    found = await _holder(connection, kept, vm, project)
    if found is not None:
        address, holder = found
        raise Conflict(
            f"{holder} has its MAC address {address} by now", field="mac",
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
