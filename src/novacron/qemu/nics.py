"""Network interfaces of a guest: as arguments of QEMU, and plugged in and out while it runs.

Sources: QEMU's docs/pcie.txt, and its docs/specs/acpi_pci_hotplug.rst for machines without PCI Express.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterable

import msgspec

from novacron.model.devices import NicModel
from novacron.model.plugged import (
    NIC_PORTS,
    DeviceSlot,
    GuestNic,
    GuestNics,
    free_hot_number,
    has_pcie,
    hot_name,
    hot_slot,
)
from novacron.model.waiting import WaitCode
from novacron.qemu.monitor import Monitor, MonitorFailed

DEVICES = {NicModel.VIRTIO: "virtio-net-pci", NicModel.E1000: "e1000", NicModel.RTL8139: "rtl8139"}
NAMED, NAMELESS = "/machine/peripheral", "/machine/peripheral-anon"
SUFFIX = "-device"
NIC_NAME = re.compile(r"^((?:nic|net|hot)[0-7])-device\Z")
PORT = "hotport"
PORTS_SLOT = 0x1E
"""Of machines with PCI Express: the last slot that nothing has."""
GONE_S_MAX, LOOK_S = 5.0, 0.05


class QemuNic(msgspec.Struct, frozen=True):
    """A network interface: on a tap, or in QEMU's user mode when ``tap`` is None."""

    mac: str
    tap: str | None
    mtu: int | None = None
    descriptor: int | None = None
    """The tap, open: QEMU needs no right to open it."""
    device: str = ""
    """Its name among the guest's devices; empty: by its place."""


class GuestKeepsNic(MonitorFailed):
    """A guest was asked to let go of an interface, and has not."""

    code = WaitCode.GUEST_HOLDS_IT


# as arguments


def name_of(nic: QemuNic, number: int, *, boots: bool) -> str:
    """Return the name of an interface with which a guest begins."""
    return nic.device or f"{'net' if boots else 'nic'}{number}"


def netdev_of(device: str) -> str:
    """Return the name of what is behind an interface on this host."""
    return device if device.startswith("hot") else f"net{device[3:]}"


def device_options(nic: QemuNic, name: str, model: NicModel, *, pcie: bool) -> dict[str, object]:
    """Return the options of an interface. One without ``romfile`` can boot over PXE."""
    options: dict[str, object] = {
        "driver": DEVICES[model], "id": f"{name}{SUFFIX}", "netdev": netdev_of(name), "mac": nic.mac,
    }  # fmt: skip
    if not name.startswith("net"):
        options["romfile"] = ""
    if nic.mtu is not None and model is NicModel.VIRTIO:
        options["host_mtu"] = nic.mtu
    if name.startswith("hot"):
        number = int(name[3:])
        options |= {"bus": f"{PORT}{number}"} if pcie else {"bus": "pci.0", "addr": hex(hot_slot(number))}
    return options


def ports(count: int, machine: str) -> list[str]:
    """Return the ports for interfaces that come later: all in one slot, and without I/O ports, which are few."""
    if not has_pcie(machine):
        return []
    return [
        part
        for number in range(count)
        for part in (
            "-device",
            f"pcie-root-port,id={PORT}{number},bus=pcie.0,chassis={number + 1},port={number}"
            f",addr={PORTS_SLOT:#x}.{number}{',multifunction=on' if number == 0 else ''},io-reserve=0",
        )
    ]


def in_slots(arguments: list[str], slots: Iterable[DeviceSlot]) -> list[str]:
    """Return QEMU's arguments with each device in its slot of the first PCI bus."""
    places = {slot.device: slot.slot for slot in slots}
    if not places:
        return arguments
    return [
        _in_slot(argument, places) if before == "-device" else argument
        for before, argument in zip(("", *arguments), arguments, strict=False)
    ]


def _in_slot(device: str, places: dict[str, int]) -> str:
    if device.startswith("{"):
        options = json.loads(device)
        slot = places.get(options["id"])
        return device if slot is None else json.dumps({**options, "addr": hex(slot)})
    id = next((option.removeprefix("id=") for option in device.split(",") if option.startswith("id=")), "")
    return device if id not in places else f"{device},addr={places[id]:#x}"


# while the guest runs


async def look(monitor: Monitor) -> GuestNics | None:
    """Return the interfaces that a guest has; None: an earlier version started it, and did not name them all.

    Raises MonitorFailed.
    """
    nameless = {str(entry["type"]) for entry in await monitor.execute("qom-list", {"path": NAMELESS})}
    if nameless & {f"child<{kind}>" for kind in (*DEVICES.values(), "VGA")}:
        return None
    named = [str(entry["name"]) for entry in await monitor.execute("qom-list", {"path": NAMED})]
    devices = []
    for match in filter(None, map(NIC_NAME.match, sorted(named))):
        with contextlib.suppress(MonitorFailed):  # the guest lets go of it at this moment
            where = {"path": f"{NAMED}/{match[0]}", "property": "mac"}
            devices.append(GuestNic(str(await monitor.execute("qom-get", where)), match[1]))
    port_count = sum(name.startswith(PORT) for name in named)
    return GuestNics(tuple(devices), await _slots(monitor), min(port_count, NIC_PORTS))


async def _machine(monitor: Monitor) -> str:
    return str(await monitor.execute("qom-get", {"path": "/machine", "property": "type"}))


async def _bus(monitor: Monitor) -> list[tuple[int, str]]:
    """Return the slots of the first PCI bus that are taken, and by what, as far as that has a name."""
    (first, *_) = await monitor.execute("query-pci")
    return [(int(device["slot"]), str(device["qdev_id"])) for device in first["devices"]]


async def _slots(monitor: Monitor) -> tuple[DeviceSlot, ...]:
    """Return where everything is, if it is not one after the other."""
    if has_pcie(await _machine(monitor)):  # nothing leaves its first bus
        return ()
    fixed = [(slot, name) for slot, name in await _bus(monitor) if not name.startswith("hot")]
    slots = {slot for slot, _ in fixed}
    if slots == set(range(len(slots))):
        return ()
    return tuple(DeviceSlot(name, slot) for slot, name in fixed if name)


async def plug(monitor: Monitor, nic: QemuNic, model: NicModel) -> str:
    """Plug an interface into a running guest, and return its name; the caller keeps its descriptor.

    Raises MonitorFailed.
    """
    assert nic.descriptor is not None
    guest_nics = await look(monitor)
    if guest_nics is None:
        raise MonitorFailed("the guest was started by an earlier version of NovaCron")
    pcie = has_pcie(await _machine(monitor))
    number = free_hot_number(guest_nics, {slot for slot, _ in await _bus(monitor)}, pcie=pcie)
    if number is None:
        raise MonitorFailed("the guest has no free place for another interface")
    name = hot_name(number)
    await _forget(monitor, name)  # of an attempt that failed
    await monitor.get_fd(name, nic.descriptor)
    await monitor.execute("netdev_add", {"type": "tap", "id": name, "fd": name})
    try:
        await monitor.execute("device_add", device_options(nic, name, model, pcie=pcie))
    except BaseException:
        await _forget(monitor, name)
        raise
    return name


async def unplug(monitor: Monitor, name: str) -> None:
    """Plug an interface out of a running guest. Raises MonitorFailed, GuestKeepsNic."""
    if await _has(monitor, name):
        await monitor.execute("device_del", {"id": f"{name}{SUFFIX}"})
    try:
        async with asyncio.timeout(GONE_S_MAX):
            while await _has(monitor, name):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise GuestKeepsNic(f"the guest does not let go of interface {name}") from None
    await _forget(monitor, netdev_of(name))


async def _has(monitor: Monitor, name: str) -> bool:
    named = await monitor.execute("qom-list", {"path": NAMED})
    return f"{name}{SUFFIX}" in {str(entry["name"]) for entry in named}


async def _forget(monitor: Monitor, netdev: str) -> None:
    with contextlib.suppress(MonitorFailed):  # there is none
        await monitor.execute("netdev_del", {"id": netdev})


async def link(monitor: Monitor, device: str, *, up: bool) -> None:
    """Pull the cable of an interface out, or put it in. Raises MonitorFailed."""
    await monitor.execute("set_link", {"name": netdev_of(device), "up": up})
