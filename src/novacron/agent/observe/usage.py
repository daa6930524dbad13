"""What this host and its VMs use, looked at when somebody asks: for metrics alone, nothing is decided by it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from novacron.agent.host.wired import Wired
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.context import VmContext
from novacron.net import namespace, tap
from novacron.net.tap import Carried, NetworkFailed
from novacron.qemu import process, usage
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry.values import Labels

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LOOK_S_MAX = 3.0
"""A QEMU that does not answer meanwhile is left out of what needs its answer."""
AT_ONCE_MAX = 16
MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")

Value = tuple[str, Labels, float]


class Filesystems:
    """Usage of the filesystems that the agent uses. A remote one may not answer: then the caller gets
    what was found last, and no second look is begun."""

    def __init__(self, settings: AgentSettings, pools: Callable[[], Mapping[str, Path]]) -> None:
        self._settings, self._pools = settings, pools
        self._latest: list[Value] = []
        self._looking: asyncio.Task[list[Value]] | None = None

    async def look(self) -> list[Value]:
        """Return what was found, within a time limit."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(asyncio.to_thread(self._look))
        with contextlib.suppress(TimeoutError):
            self._latest = await asyncio.wait_for(asyncio.shield(self._looking), LOOK_S_MAX)
        return self._latest

    def _look(self) -> list[Value]:
        values: list[Value] = []
        for place, path in {"state": self._settings.state_dir, "images": self._settings.images_dir,
                            **self._pools()}.items():  # fmt: skip
            with contextlib.suppress(OSError):
                usage_ = shutil.disk_usage(path)
                values.append(("novacron_host_filesystem_bytes", (place,), usage_.total))
                values.append(("novacron_host_filesystem_free_bytes", (place,), usage_.free))
        return values


def host() -> Iterator[Value]:
    """Yield what the machine has and uses, but for file systems."""
    yield "novacron_host_cpus", (), os.cpu_count() or 1
    yield "novacron_host_load1", (), os.getloadavg()[0]
    ticks = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    for mode, count in zip(MODES, ticks, strict=False):
        yield "novacron_host_cpu_seconds_total", (mode,), int(count) / TICKS_PER_S
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    for name, field in (("memory_bytes", "MemTotal"), ("memory_available_bytes", "MemAvailable")):
        yield f"novacron_host_{name}", (), int(memory[field].split()[0]) << 10
    for resource in ("cpu", "memory", "io"):
        with contextlib.suppress(OSError, ValueError):  # kernels without PSI
            some = Path(f"/proc/pressure/{resource}").read_text().partition("\n")[0]
            yield "novacron_host_pressure_seconds_total", (resource,), int(some.rpartition("total=")[2]) / 1e6
    for interface, carried in tap.carried().items():
        if interface == "lo" or interface.startswith("nv"):
            continue
        yield "novacron_host_network_receive_bytes_total", (interface,), carried.received_bytes
        yield "novacron_host_network_transmit_bytes_total", (interface,), carried.sent_bytes
        yield "novacron_host_network_drops_total", (interface,), carried.dropped
    yield "novacron_host_boot_timestamp_seconds", (), time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


async def vms(running: Iterable[VmContext]) -> list[Value]:
    """Return what each VM that runs here uses."""
    turns = asyncio.Semaphore(AT_ONCE_MAX)

    async def look(vm: VmContext) -> list[Value]:
        async with turns:
            return await _vm(vm)

    values_of_vms = await asyncio.gather(*(look(vm) for vm in running if vm.machine.pid is not None))
    return [value for values in values_of_vms for value in values]


async def _vm(vm: VmContext) -> list[Value]:
    machine, pid, hardware = vm.machine, vm.machine.pid, vm.machine.hardware
    if pid is None:
        return []
    name, project = vm.name_and_project()
    labels = (vm.vm, name, project)
    values: list[Value] = [
        ("novacron_vm_running", labels, 1),
        ("novacron_vm_guest_agent", labels, machine.guest_listens),
        *((name, labels, value) for name, value in await asyncio.to_thread(_process, pid, machine.directory)),
        *((name, labels, value) for name, value in await asyncio.to_thread(machine.charged)),
    ]
    if hardware is not None:
        values.append(("novacron_vm_vcpus", labels, hardware.vcpus_in_all))
        values.append(("novacron_vm_memory_bytes", labels, hardware.memory_in_all_mib << 20))
    for (_, tap_name), carried in (await asyncio.to_thread(_carried, machine.interfaces.wired)).items():
        on = (*labels, tap_name)  # what its tap receives, the guest has sent
        values.append(("novacron_vm_network_receive_bytes_total", on, carried.sent_bytes))
        values.append(("novacron_vm_network_transmit_bytes_total", on, carried.received_bytes))
        values.append(("novacron_vm_network_receive_packets_total", on, carried.sent_packets))
        values.append(("novacron_vm_network_transmit_packets_total", on, carried.received_packets))
        values.append(("novacron_vm_network_drops_total", on, carried.dropped))
    with contextlib.suppress(MonitorFailed, TimeoutError, KeyError):
        async with asyncio.timeout(LOOK_S_MAX):
            values += await _asked(vm, labels)
    return values


async def _asked(vm: VmContext, labels: Labels) -> list[Value]:
    """Return what QEMU itself has to be asked for. Raises MonitorFailed, TimeoutError."""
    monitor, values = vm.machine.monitor, list[Value]()
    if monitor is None or vm.record.post_copy is not None:  # there QEMU may wait for memory, and answers nobody
        return values
    for disk in await usage.disks(monitor):
        on = (*labels, disk.disk)
        values.append(("novacron_vm_disk_read_bytes_total", on, disk.read_bytes))
        values.append(("novacron_vm_disk_written_bytes_total", on, disk.written_bytes))
        values.append(("novacron_vm_disk_reads_total", on, disk.reads))
        values.append(("novacron_vm_disk_writes_total", on, disk.writes))
        values.append(("novacron_vm_disk_flushes_total", on, disk.flushes))
        for operation, took_s in (("read", disk.read_s), ("write", disk.write_s), ("flush", disk.flush_s)):
            values.append(("novacron_vm_disk_seconds_total", (*on, operation), took_s))
        values.append(("novacron_vm_disk_errors_total", on, disk.failed))
    hardware = vm.machine.hardware
    if hardware is not None and hardware.balloon:
        balloon = await usage.balloon(monitor)
        values.append(("novacron_vm_memory_balloon_bytes", labels, balloon.actual_bytes))
        if balloon.available_bytes is not None:
            values.append(("novacron_vm_memory_available_bytes", labels, balloon.available_bytes))
    return values


def _process(pid: int, directory: Path) -> list[tuple[str, float]]:
    values: list[tuple[str, float]] = []
    with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended meanwhile
        used = process.used(pid)
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        values.append(("novacron_vm_cpu_seconds_total", used.cpu_s))
        values.append(("novacron_vm_memory_resident_bytes", used.resident_bytes))
        values.append(("novacron_vm_start_timestamp_seconds", round(boot + used.started_s, 2)))
    with contextlib.suppress(OSError):
        layers = (path.lstat().st_blocks * 512 for path in directory.iterdir() if path.suffix == ".qcow2")
        values.append(("novacron_vm_disk_allocated_bytes", sum(layers)))
    return values


def _carried(wired: Iterable[Wired]) -> dict[tuple[str | None, str], Carried]:
    counters: dict[tuple[str | None, str], Carried] = {}
    for netns in {tap_.netns for tap_ in wired}:
        with contextlib.suppress(NetworkFailed, OSError):  # its network is going
            for interface, carried in namespace.within(netns, tap.carried).items():
                counters[netns, interface] = carried
    return {
        (interface.netns, interface.tap): counters[interface.netns, interface.tap]
        for interface in wired
        if (interface.netns, interface.tap) in counters
    }
