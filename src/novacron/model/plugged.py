"""Network interfaces that a VM gets, loses or moves while its guest runs: where they are, and what can't be. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model.devices import NicModel
from novacron.model.mac import MacAddress

NIC_PORTS = 8
"""Ports for interfaces that come later, in a machine with PCI Express: it takes none without one."""
HOT = "hot"
"""Begins the names of interfaces that came while their guest ran."""

NicPorts = Annotated[int, Meta(ge=0, le=NIC_PORTS)]
NicDevice = Annotated[str, Meta(pattern=r"^(nic|net|hot)[0-7]\Z")]
"""``nic`` and ``net``: the guest began with it, and can boot from a ``net``; ``hot``: it came later."""
PciDevice = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,63}\Z")]
PciSlot = Annotated[int, Meta(ge=1, le=31)]


class GuestNic(msgspec.Struct, frozen=True):
    """An interface that a running guest has."""

    mac: MacAddress
    device: NicDevice


class DeviceSlot(msgspec.Struct, frozen=True):
    """A device on the first PCI bus of a running guest, and its slot there."""

    device: PciDevice
    slot: PciSlot


class GuestNics(msgspec.Struct, frozen=True):
    """The interfaces of a running guest. The QEMU to which it migrates must have them in the same places."""

    devices: Annotated[tuple[GuestNic, ...], Meta(max_length=16)] = ()
    slots: Annotated[tuple[DeviceSlot, ...], Meta(max_length=32)] = ()
    """Where everything is, once an interface has left with which the guest began: the others do not close up. Empty:
    one after the other."""
    ports: NicPorts = 0
    """Free PCI Express ports for further interfaces."""

    @property
    def changed(self) -> bool:
        """Say whether they are not in the places in which a start would put them."""
        return bool(self.slots) or any(nic.device.startswith(HOT) for nic in self.devices)

    def device_of(self, mac: str) -> str | None:
        return next((nic.device for nic in self.devices if nic.mac == mac), None)


def has_pcie(machine: str) -> bool:
    """Say whether a machine type has PCI Express."""
    return machine.startswith(("q35", "pc-q35"))


def hot_name(number: int) -> str:
    return f"{HOT}{number}"


def hot_slot(number: int) -> int:
    """Return the slot of an interface that comes later, where there is no PCI Express: from the last one down."""
    return 31 - number


def free_hot_number(nics: GuestNics, taken_slots: Collection[int], *, pcie: bool) -> int | None:
    """Return the place for another interface, None if there is none."""
    used = {nic.device for nic in nics.devices}
    for number in range(nics.ports if pcie else NIC_PORTS):
        if hot_name(number) not in used and (pcie or hot_slot(number) not in taken_slots):
            return number
    return None


class RunningMachine(msgspec.Struct, frozen=True):
    """What decides whether a running guest can get or lose interfaces."""

    machine: str
    model: NicModel
    nics: GuestNics | None
    boots_from_network: bool

    def cannot_change(self) -> str | None:
        """Return why it can't get or lose interfaces, or None if it can."""
        if self.nics is None:
            return "it was started by an earlier version of NovaCron"
        return "it boots from the network, in the order of its interfaces" if self.boots_from_network else None

    def cannot_add(self) -> str | None:
        """Return why it can't get another interface, or None if it can."""
        if (why := self.cannot_change()) is not None or not has_pcie(self.machine):
            return why
        if self.model is not NicModel.VIRTIO:
            return f"interfaces of model {self.model} don't fit into the hot-plug ports of machine type {self.machine}"
        if self.nics is None or free_hot_number(self.nics, (), pcie=True) is not None:
            return None
        if self.nics.ports:
            return f"all {self.nics.ports} hot-plug ports of machine type {self.machine} are in use"
        return f"it has no hot-plug ports, which a {self.machine} needs for that"

    def cannot_remove(self, mac: str) -> str | None:
        """Return why it can't lose an interface, or None if it can."""
        if (why := self.cannot_change()) is not None or self.nics is None:
            return why
        device = self.nics.device_of(mac)
        if device is None:
            return "it has not got that interface yet"
        if has_pcie(self.machine) and not device.startswith(HOT):
            return f"it started with that interface, which machine type {self.machine} keeps on board"
        return None
