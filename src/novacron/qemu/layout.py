"""What the memory of a running guest fits: the machine that QEMU makes for it (docs/interop/qemu-qmp-ref)."""

from __future__ import annotations

import re

from novacron.model.snapshot import MachineLayout
from novacron.qemu import hotplug
from novacron.qemu.monitor import Monitor

MACHINE_SUFFIX = "-machine"
NAMED, NAMELESS = "/machine/peripheral", "/machine/peripheral-anon"
NAMELESS_BEFORE = re.compile(r"^(nic[0-7]-device|video0)\Z")
"""Devices that had no names in earlier versions, whose snapshots still fit."""
PLUGGED_LATER = ("cpu-", "dimm")
"""Names of processors and memory that were hot-plugged: they are counted, not compared one by one."""


async def look(monitor: Monitor) -> MachineLayout:
    """Return the machine as it is now. Raises MonitorFailed."""
    version = (await monitor.execute("query-version"))["qemu"]
    machine = str(await monitor.execute("qom-get", {"path": "/machine", "property": "type"}))
    hardware = await hotplug.look(monitor)
    kvm = await monitor.execute("query-kvm")
    return MachineLayout(
        qemu=f"{version['major']}.{version['minor']}.{version['micro']}",
        machine=machine.removesuffix(MACHINE_SUFFIX),
        accelerator="kvm" if kvm["enabled"] else "tcg",
        vcpus=hardware.vcpus_in_all,
        memory_mib=hardware.memory_mib,
        added_mib=hardware.dimms_mib,
        devices=tuple(sorted(await _devices(monitor))),
    )


async def _devices(monitor: Monitor) -> list[str]:
    devices = []
    for entry in await monitor.execute("qom-list", {"path": NAMED}):
        name, kind = str(entry["name"]), _child_type(entry["type"])
        if kind and not name.startswith(PLUGGED_LATER):
            devices.append(
                kind if NAMELESS_BEFORE.match(name) else f"{name} ({kind}){await _place(monitor, name, kind)}"
            )
    for entry in await monitor.execute("qom-list", {"path": NAMELESS}):
        if kind := _child_type(entry["type"]):
            devices.append(kind)
    return devices


async def _place(monitor: Monitor, name: str, kind: str) -> str:
    """Return where a disk is at its controller: its state is saved under that."""
    if kind != "scsi-hd":
        return ""
    return f" at {await monitor.execute('qom-get', {'path': f'{NAMED}/{name}', 'property': 'lun'})}"


def _child_type(type_: str) -> str:
    """Return the type of a device in QEMU's tree, empty for a property that is none."""
    return type_.removeprefix("child<").removesuffix(">") if type_.startswith("child<") else ""
