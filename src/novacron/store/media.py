"""The images that VMs use beside their own: ISOs in drives, kernels and initial RAM disks."""

from __future__ import annotations

import msgspec

from novacron.model.devices import BootDevice, DiskBus
from novacron.model.errors import IllegalState, InvalidInput
from novacron.model.vm import Firmware, Vm, VmFields, VmSpec, is_off
from novacron.store import imports, nodes, snapshot_memory
from novacron.store.database import Connection

WHILE_OFF = ("os", "disk_bus", "disk_boot_order", "nic_model", "network_boot_order", "kernel", "initrd",
             "kernel_arguments", "smbios_manufacturer", "smbios_serial", "smbios_asset_tag", "serial_ports",
             "usb", "cpu_policy", "hugepages", "numa_nodes")  # fmt: skip
"""Fields with which QEMU is started."""
HARDWARE = ("disk_bus", "nic_model", "network_boot_order", "cdroms", "serial_ports", "usb", "numa_nodes", "hugepages")
"""Those that make another machine, which the memory of a snapshot does not fit."""
FIELDS = frozenset({*WHILE_OFF, "cdroms", "boot_once"})


def check(spec: VmFields) -> None:
    """Raise InvalidInput when devices of a VM don't go together."""
    if spec.disk_bus is DiskBus.IDE and spec.firmware is not Firmware.BIOS:
        raise InvalidInput("a VM with UEFI has no IDE bus", field="disk_bus", hint="use sata, or firmware bios")
    _check_usb(spec)
    if spec.boot_once is BootDevice.CDROM and not spec.cdroms:
        raise InvalidInput("the VM has no CD-ROM drive", field="boot_once", hint="add one: --cd ISO")
    if spec.boot_once is BootDevice.NETWORK and spec.network_boot_order is None:
        raise InvalidInput(
            "its network interfaces are not in the boot order", field="boot_once",
            hint="while it is off: novacron vm set VM --network-boot-order 9",
        )  # fmt: skip
    for field, value in (("initrd", spec.initrd), ("kernel_arguments", spec.kernel_arguments)):
        if value and spec.kernel is None:
            raise InvalidInput(
                "the VM does not boot a kernel directly", field=field, hint="add the kernel: --kernel NAME"
            )


def _check_usb(spec: VmFields) -> None:
    twice = next((kind for kind in spec.usb if spec.usb.count(kind) > 1), None)
    if twice is not None:
        raise InvalidInput(f"a VM has one USB {twice} at most", field="usb", hint=f"name {twice} once")


async def pin(connection: Connection, spec: VmSpec, project: str) -> VmSpec:
    """Return the spec of a VM of a project with the digests of its ISOs and kernel. Raises InvalidInput."""
    check(spec)
    if not spec.media:
        return msgspec.structs.replace(spec, media_digests={}) if spec.media_digests else spec
    held = {
        image.name: image.kind
        for node in await nodes.all(connection)
        for image in (node.status.inventory.images if node.status.inventory else ())
        if image.name in spec.media
    }
    owners = await imports.owners(connection, spec.media)
    for name, kind in spec.media.items():
        if name not in held or owners.get(name, project) != project:
            raise InvalidInput(
                f"no node holds {kind} {name!r} for project {project}", field=_field(spec, name),
                hint="see: novacron image list",
            )  # fmt: skip
        if held[name] != kind:
            raise InvalidInput(
                f"{name!r} is an image of kind {held[name]}, not {kind}", field=_field(spec, name),
                hint=f"import it as that kind: novacron image import --format {kind}",
            )  # fmt: skip
    return msgspec.structs.replace(spec, media_digests=await imports.digests(connection, spec.media))


def _field(spec: VmFields, name: str) -> str:
    """Return the field that names an image."""
    return next((field for field in ("kernel", "initrd") if getattr(spec, field) == name), "cdroms")


def booting_once(spec: VmSpec, next_start: int) -> VmSpec:
    """Return the spec of a VM whose ``boot_once`` applies to the start of this number."""
    return msgspec.structs.replace(spec, boot_once_at=next_start) if spec.boot_once else spec


async def changed(connection: Connection, vm: Vm, spec: VmSpec, fields: set[str]) -> VmSpec:
    """Return a VM's new spec, in which these fields were changed. Raises InvalidInput, IllegalState."""
    if "firmware" in fields:
        await _check_volumes(connection, vm, spec)
    if not fields & FIELDS:
        return spec
    off = is_off(vm)
    drives, were = ([drive.boot_order for drive in each.cdroms] for each in (spec, vm.spec))
    needs_off = [field for field in (*WHILE_OFF, "cdroms") if field in fields and (field != "cdroms" or drives != were)]
    if not off and needs_off:
        what = "the number of CD-ROM drives and their boot order" if needs_off[0] == "cdroms" else needs_off[0]
        raise IllegalState(
            f"{what} can only change while VM {vm.name} is stopped; it is {vm.status.state} (stop it explicitly)",
            hint=f"novacron vm stop {vm.name} --wait",
        )
    for field in filter(HARDWARE.__contains__, needs_off):
        await snapshot_memory.check_none(connection, vm, field, field)
    if "boot_once" in fields:
        spec = booting_once(spec, spec.starts + 1)
    return await pin(connection, spec, vm.project)


async def _check_volumes(connection: Connection, vm: Vm, spec: VmSpec) -> None:
    """Raise InvalidInput when a VM has disks that its machine would not have with another firmware."""
    check(spec)
    ide = await connection.fetchval("SELECT name FROM volumes WHERE vm = $1 AND bus = 'ide'", vm.id)
    if ide is not None and spec.firmware is not Firmware.BIOS:
        raise InvalidInput(
            f"volume {ide} is on bus ide, which a VM with UEFI does not have", field="firmware",
            hint=f"detach it, and attach it on another bus: novacron volume detach {ide}",
        )  # fmt: skip
