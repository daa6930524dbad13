"""The hardware of a host."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

PciAddress = Annotated[str, Meta(pattern=r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")]


PciId = Annotated[str, Meta(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}\Z")]
DEVICES_PER_VM_MAX = 8


class NumaNode(msgspec.Struct, frozen=True):
    """Processors with their local memory."""

    cpus: int
    memory_mib: int


class Disk(msgspec.Struct, frozen=True):
    """A disk of a host."""

    name: str
    size_bytes: int
    model: str
    rotates: bool


class HostInterface(msgspec.Struct, frozen=True):
    """A physical network interface of the host."""

    name: str
    mac: str
    mtu: int
    up: bool


class PciDevice(msgspec.Struct, frozen=True):
    """A device that can be passed through. ``kind`` is its class and subclass (PCI Code and ID Assignment)."""

    address: str
    id: str
    """Vendor and device, such as ``8086:10fb``."""
    kind: str
    driver: str
    iommu_group: int | None
    """None: no IOMMU confines the device to its guest's memory, so it can't be passed through."""


class HostHardware(msgspec.Struct, frozen=True):
    """What a host consists of."""

    processor: str
    numa: tuple[NumaNode, ...]
    disks: tuple[Disk, ...]
    interfaces: tuple[HostInterface, ...]
    devices: tuple[PciDevice, ...]
