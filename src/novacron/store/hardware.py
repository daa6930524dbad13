"""The hardware that a VM is to have at its next start: changed while it is off."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.model.cloud_init import SealedSeed, Seed, SeedChanges, check_seed
from novacron.model.errors import Conflict, IllegalState, InvalidInput, NoCapacity
from novacron.model.fit import refusal_by_hardware
from novacron.model.vm import Firmware, Vm, VmSpec, is_off
from novacron.store import nodes, snapshot_memory
from novacron.store.database import Connection

FIELDS = ("firmware", "tpm", "display", "cpu", "cpu_flags", "machine")
"""Of a spec: what only a start gives the guest."""
RENEWED = frozenset({"cpu", "cpu_flags", "machine"})
"""Fields that, named in a change, let the next start choose processor and machine type anew."""


def with_renewal(vm: Vm, changes: dict[str, Any]) -> dict[str, Any]:
    """Return changes of a VM's spec that count the renewal of processor and machine type that they ask for."""
    if not RENEWED & changes.keys():
        return changes
    return {**changes, "hardware_renewals": vm.spec.hardware_renewals + 1}


def check_machine(spec: VmSpec) -> None:
    """Raise InvalidInput when a VM's firmware does not run on the machine type that was chosen for it."""
    kind = "pc-i440fx" if spec.firmware is Firmware.BIOS else "pc-q35"
    if spec.machine is not None and not spec.machine.startswith(kind):
        raise InvalidInput(
            f"firmware {spec.firmware} needs a {kind} machine type, not {spec.machine}", field="machine",
            hint="choose one of that kind, or let the node choose: null in the API, newest on the command line",
        )  # fmt: skip


async def check(connection: Connection, vm: Vm, spec: VmSpec) -> None:
    """Raise IllegalState or NoCapacity unless a VM can have the hardware of another spec at its next start."""
    changed = [field for field in FIELDS if getattr(spec, field) != getattr(vm.spec, field)]
    check_machine(spec)
    if spec.hardware_renewals != vm.spec.hardware_renewals and not changed:
        changed = ["machine"]
    if not changed:
        return
    _check_off(vm, changed[0])
    await snapshot_memory.check_none(connection, vm, changed[0], changed[0])
    began = bool(vm.status.machine)
    if "firmware" in changed and began and Firmware.UEFI_SECURE in (spec.firmware, vm.spec.firmware):
        raise IllegalState(
            f"VM {vm.name} has already been started, and Secure Boot needs new firmware variables", field="firmware",
            hint="create a new VM with Secure Boot, and attach this VM's volumes to it",
        )  # fmt: skip
    given = await connection.fetchval("SELECT true FROM vm_firmware_states WHERE vm = $1", vm.id)
    if given and not began and {"firmware", "tpm"} & set(changed):
        raise IllegalState(
            f"VM {vm.name} has imported firmware state, which only its first start applies", field=changed[0],
            hint="start it once before you change this",
        )  # fmt: skip
    if vm.node is None:
        return
    node = await nodes.get(connection, vm.node)
    why = None if node.status.inventory is None else refusal_by_hardware(node, node.status.inventory, spec)
    if why is not None:
        raise NoCapacity(why, field=changed[0], hint=f"or move it: novacron vm migrate {vm.name} --to NODE")


def _check_off(vm: Vm, field: str) -> None:
    if not is_off(vm):
        raise IllegalState(
            f"{field} of VM {vm.name} can only change while it is stopped; it is {vm.status.state}"
            " (stop it explicitly)",
            field=field, hint=f"novacron vm stop {vm.name} --wait",
        )  # fmt: skip


def check_sealed(seed: Seed, key: str) -> None:
    """Raise Conflict unless the user data of a VM are encrypted with its key, if it has one."""
    sealed = seed.sealed if isinstance(seed, SealedSeed) else None
    if (seed.user_data and key) or (sealed is not None and sealed.key != key):
        raise Conflict("the key that encrypts the VM has just changed", hint="try again")


async def change_seed(connection: Connection, vm: Vm, changes: SeedChanges) -> None:
    """Change what cloud-init applies at a VM's next boot, for which the guest takes itself for a new instance.

    Raises IllegalState, InvalidInput.
    """
    _check_off(vm, "cloud_init")
    stored = await connection.fetchval("SELECT seed FROM vm_seeds WHERE vm = $1", vm.id)
    before = SealedSeed() if stored is None else msgspec.convert(stored, SealedSeed)
    seed = check_seed(changes.of(before))
    check_sealed(seed, vm.spec.encryption_key)
    await connection.execute(
        "INSERT INTO vm_seeds (vm, seed) VALUES ($1, $2) ON CONFLICT (vm) DO UPDATE SET seed = excluded.seed",
        vm.id, msgspec.to_builtins(msgspec.structs.replace(seed, generation=before.generation + 1)),
    )  # fmt: skip
