"""Hot-plugging of processors and memory.

Sources: QEMU's docs/system/cpu-hotplug.rst and docs/memory-hotplug.txt.
"""

from __future__ import annotations

import contextlib

from novacron.model.guest_hardware import GuestHardware
from novacron.qemu import nics
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.qemu.usage import has_balloon


async def look(monitor: Monitor) -> GuestHardware:
    """Return what the guest has now. Raises MonitorFailed."""
    sizes = await monitor.execute("query-memory-size-summary")
    devices = await monitor.execute("query-memory-devices")
    dimms = sorted((entry["data"]["slot"], entry["data"]["size"]) for entry in devices if entry["type"] == "dimm")
    places = [entry["qom-path"] for entry in await monitor.execute("query-hotpluggable-cpus") if "qom-path" in entry]
    added = sum(place.startswith("/machine/peripheral") for place in places)
    dimms_mib = tuple(size >> 20 for _, size in dimms)
    balloon, has_nics = await has_balloon(monitor), await nics.look(monitor)
    return GuestHardware(len(places) - added, sizes["base-memory"] >> 20, added, dimms_mib, balloon, has_nics)


async def vcpu_threads(monitor: Monitor) -> list[int]:
    """Return the thread of each processor, in order, as QEMU counts: ``pid_namespace.host_threads`` says what the host
    calls them. Raises MonitorFailed."""
    cpus = await monitor.execute("query-cpus-fast")
    return [int(cpu["thread-id"]) for cpu in sorted(cpus, key=lambda cpu: int(cpu["cpu-index"]))]


async def replay(monitor: Monitor, hardware: GuestHardware) -> None:
    """Add to a QEMU that waits for a migration what was hot-plugged at the source. Raises MonitorFailed."""
    if hardware.vcpus_added:
        await add_cpus(monitor, hardware.vcpus_added)
    for number, mib in enumerate(hardware.dimms_mib):
        await _add_dimm(monitor, number, mib)


async def add_cpus(monitor: Monitor, count: int) -> None:
    """Add processors to a running guest. Raises MonitorFailed."""
    slots = await monitor.execute("query-hotpluggable-cpus")
    free = [slot for slot in slots if "qom-path" not in slot]
    if len(free) < count:
        raise MonitorFailed(f"the VM was started with room for {len(free)} more processors, not {count}")
    places = ("node-id", "socket-id", "die-id", "core-id", "thread-id")
    free.sort(key=lambda slot: [slot["props"].get(place, 0) for place in places])
    for slot in free[:count]:
        id = "cpu-" + "-".join(str(slot["props"].get(place, 0)) for place in places)
        await monitor.execute("device_add", {"driver": slot["type"], "id": id, **slot["props"]})


async def add_memory(monitor: Monitor, mib: int) -> None:
    """Add memory to a running guest. Raises MonitorFailed."""
    await _add_dimm(monitor, len((await look(monitor)).dimms_mib), mib)


async def _add_dimm(monitor: Monitor, number: int, mib: int) -> None:
    backend = f"memory{number + 1}"
    await monitor.execute("object-add", {"qom-type": "memory-backend-ram", "id": backend, "size": mib << 20})
    try:
        await monitor.execute("device_add", {"driver": "pc-dimm", "id": f"dimm{number + 1}", "memdev": backend})
    except MonitorFailed:
        with contextlib.suppress(MonitorFailed):
            await monitor.execute("object-del", {"id": backend})
        raise
