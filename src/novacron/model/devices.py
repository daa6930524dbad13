"""The devices that a VM's user chooses: buses of disks, models of network interfaces, CD-ROM drives, boot order."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.names import Name

BootOrder = Annotated[int, Meta(ge=0, le=limits.BOOT_ORDER_MAX)]
SmbiosText = Annotated[
    str, Meta(pattern=r"^([A-Za-z0-9._+:/#()-]([A-Za-z0-9._+:/#() -]{0,62}[A-Za-z0-9._+:/#()-])?)?\Z")
]
"""What a guest's firmware says of its machine; empty: what QEMU says."""
KernelArguments = Annotated[str, Meta(pattern=r"^[\x20-\x7e]*\Z", max_length=limits.KERNEL_ARGUMENTS_LENGTH_MAX)]


class DiskBus(StrEnum):
    """The controller of a disk."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    """A SCSI disk of a paravirtual controller."""
    SATA = "sata"
    IDE = "ide"
    """For guests without other drivers. Only with a BIOS."""


class NicModel(StrEnum):
    """The model of a network interface."""

    VIRTIO = "virtio"
    E1000 = "e1000"
    RTL8139 = "rtl8139"


class UsbDevice(StrEnum):
    """A kind of USB device."""

    TABLET = "tablet"
    """A pointer with absolute positions: the pointers of guest and VNC viewer stay together."""
    KEYBOARD = "keyboard"
    MOUSE = "mouse"


class CpuPolicy(StrEnum):
    """How a VM's virtual CPUs share the CPUs of its node."""

    SHARED = "shared"
    """They run on all CPUs that no VM has for itself."""
    DEDICATED = "dedicated"
    """Each has a CPU of the node for itself."""


class HugePages(StrEnum):
    """The size of the pages of the node's memory that a guest's memory consists of."""

    NONE = "none"
    SIZE_2M = "2M"
    SIZE_1G = "1G"

    @property
    def size_mib(self) -> int:
        """Return the size of a page in MiB; 0: any."""
        return {HugePages.NONE: 0, HugePages.SIZE_2M: 2, HugePages.SIZE_1G: 1024}[self]


class BootDevice(StrEnum):
    """A kind of device from which a VM boots."""

    DISK = "disk"
    CDROM = "cdrom"
    NETWORK = "network"


class Cdrom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A CD-ROM drive of a VM."""

    iso: Name | None = None
    """The ISO in the drive; null: it is empty."""
    boot_order: BootOrder | None = limits.CDROM_BOOT_ORDER
    """The firmware tries the lowest number first; null: never."""


class Os(StrEnum):
    """The guest's operating system. It decides what a new VM has by default, and how its clock runs."""

    OTHER = "other"
    LINUX = "linux"
    DEBIAN12 = "debian12"
    WINDOWS10 = "windows10"
    WINDOWS11 = "windows11"

    @property
    def is_windows(self) -> bool:
        return self in (Os.WINDOWS10, Os.WINDOWS11)


NumaNodes = Annotated[int, Meta(ge=1, le=limits.NUMA_NODES_MAX)]
SerialPorts = Annotated[int, Meta(ge=0, le=limits.SERIAL_PORTS_MAX)]
Usb = Annotated[tuple[UsbDevice, ...], Meta(max_length=len(UsbDevice))]
