"""From which devices a VM boots, and in which order (QEMU's docs/system/bootindex.rst)."""

from __future__ import annotations

import msgspec

from novacron.model.devices import BootDevice
from novacron.model.vm import VmSpec
from novacron.qemu.monitor import Monitor

STEP = 100
"""QEMU wants each bootindex once, and has 0 for a kernel of its own: places within a step tell equals apart."""
OWN_DISK, VOLUME, CD, NIC = 10, 20, 40, 50
DISK_DEVICE = "disk0-device"


def cd_device(number: int) -> str:
    return f"cd{number}-device"


def nic_device(number: int) -> str:
    return f"net{number}-device"


def volume_index(order: int, lun: int) -> int:
    return order * STEP + VOLUME + lun


def boots_once_from(spec: VmSpec) -> BootDevice | None:
    """Return from what the start that is due boots; None: as the boot order says."""
    return spec.boot_once if spec.boot_once_at == spec.starts else None


def for_start(spec: VmSpec, booted_once_at: int) -> VmSpec:
    """Return the spec with which a guest begins, after one began from ``boot_once`` at the start of this number."""
    return msgspec.structs.replace(spec, boot_once=None) if booted_once_at >= spec.boot_once_at else spec


class BootPlan(msgspec.Struct, frozen=True):
    """The boot order of a VM's own devices; None: it does not boot from them."""

    disk: int | None = None
    cds: tuple[int | None, ...] = ()
    network: int | None = None
    nics: int = 1
    once: BootDevice | None = None
    """From which kind it boots first, until the guest reboots."""

    @classmethod
    def of(cls, spec: VmSpec) -> BootPlan:
        orders = tuple(drive.boot_order for drive in spec.cdroms)
        return cls(spec.disk_boot_order, orders, spec.network_boot_order, len(spec.nics) or 1, boots_once_from(spec))

    def lasting(self) -> dict[str, int]:
        """Return the index of each device that has one, from the first reboot of the guest on."""
        indices = {} if self.disk is None else {DISK_DEVICE: self.disk * STEP + OWN_DISK}
        for number, order in enumerate(self.cds):
            if order is not None:
                indices[cd_device(number)] = order * STEP + CD + number
        if self.network is not None:
            indices |= {nic_device(number): self.network * STEP + NIC + number for number in range(self.nics)}
        return indices

    def first(self) -> dict[str, int]:
        """Return the index of each device that has one when QEMU starts."""
        devices: dict[BootDevice | None, list[str]] = {
            BootDevice.DISK: [DISK_DEVICE],
            BootDevice.CDROM: [cd_device(number) for number in range(len(self.cds))],
            BootDevice.NETWORK: [] if self.network is None else [nic_device(number) for number in range(self.nics)],
        }
        return self.lasting() | {name: number for number, name in enumerate(devices.get(self.once, ()), 1)}


async def forget_once(monitor: Monitor, plan: BootPlan) -> None:
    """Let the guest boot in the lasting order when it reboots. Raises MonitorFailed."""
    lasting = plan.lasting()
    for name, index in plan.first().items():
        if lasting.get(name) != index:
            change = {"path": f"/machine/peripheral/{name}", "property": "bootindex", "value": lasting.get(name, -1)}
            await monitor.execute("qom-set", change)
