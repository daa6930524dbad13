"""The volumes and the limits that a VM has while it runs: let them be as the server says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Iterable

from novacron.agent.actions import Action, Doing
from novacron.agent.host.volumes import Pools
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.model.vm import VmSpec
from novacron.qemu import disks
from novacron.qemu.command import QemuVolume
from novacron.qemu.disks import DiskLimits
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

Handled = Callable[[str, bool, str], None]
"""Called with a volume's id, whether QEMU does not have it, and what is wrong."""


def opened(pools: Pools, volumes: tuple[wire.VolumeAttached, ...]) -> list[QemuVolume]:
    """Return the volumes with which a VM starts, open. Raises OSError."""
    found: list[QemuVolume] = []
    try:
        for one in volumes:
            if not one.detaching:
                found.append(QemuVolume(one.id, one.lun, pools.open(one), one.read_only, one.boot_order))
    except OSError:
        for volume in found:
            os.close(volume.descriptor)
        raise
    return found


class Devices:
    """Those of one VM."""

    def __init__(self, machine: VirtualMachine, pools: Pools, doing: Doing, handled: Handled) -> None:
        self._machine = machine
        self._doing = doing
        self._pools = pools
        self._handled = handled
        self._settled: object = None

    def resync(self) -> None:
        """Look at everything again."""
        self._settled = None

    async def settle(self, wanted: wire.Assignment) -> None:
        """Let the VM, if it runs, have what it should. Raises MonitorFailed when QEMU does not answer."""
        monitor = self._machine.monitor if self._machine.pid is not None else None
        now = (self._machine.pid, wanted.volumes, _own(wanted.spec))
        if now == self._settled:
            return
        if monitor is None:
            for one in wanted.volumes:
                if one.detaching:
                    self._handled(one.id, True, "")
        else:
            has = await disks.plugged(monitor)
            for one in wanted.volumes:
                await self._one(monitor, one, has)
            for id in has.keys() - {one.id for one in wanted.volumes}:
                log.warning("a guest has a volume that is not its own", vm=self._machine.id, volume=id)
            with contextlib.suppress(MonitorFailed):  # it has no disk
                await disks.limit(monitor, disks.OWN, _own(wanted.spec))
            await asyncio.to_thread(self._bound, wanted)
        self._settled = now

    def _bound(self, wanted: wire.Assignment) -> None:
        """Let the cgroup bound QEMU where all of its disks are: to what they may do together."""
        every = [_own(wanted.spec), *(DiskLimits(one.iops, one.bytes_per_s) for one in wanted.volumes)]
        self._machine.bound_io(_sum(one.bytes_per_s for one in every), _sum(one.iops for one in every))

    async def _one(self, monitor: Monitor, one: wire.VolumeAttached, has: dict[str, int]) -> None:
        error = ""
        try:
            if one.detaching:
                if one.id in has:
                    with self._doing(Action.DETACH, volume=one.id):
                        await disks.unplug(monitor, one.id, one.lun)
                self._handled(one.id, True, "")
                return
            if one.id not in has:
                with self._doing(Action.ATTACH, volume=one.id):
                    await self._plug(monitor, one)
            elif has[one.id] < one.size_mib << 20:
                with self._doing(Action.GROW, volume=one.id):
                    await disks.resize(monitor, one.id, one.size_mib << 20)
            await disks.limit(monitor, one.id, DiskLimits(one.iops, one.bytes_per_s))
        except (MonitorFailed, OSError) as failure:
            error = str(failure) or type(failure).__name__
            log.warning("a volume is not as it should be", vm=self._machine.id, volume=one.id, error=error)
        self._handled(one.id, False, error)

    async def _plug(self, monitor: Monitor, one: wire.VolumeAttached) -> None:
        (volume,) = await asyncio.to_thread(opened, self._pools, (one,))
        try:
            await disks.plug(monitor, volume)
        finally:
            os.close(volume.descriptor)

    def full(self, wanted: wire.Assignment, room_bytes: int) -> str | None:
        """Say which place that the VM writes to has no room, or None when all have."""
        places = {"its disk": self._machine.directory}
        for one in wanted.volumes:
            with contextlib.suppress(OSError):
                places[f"pool {one.pool}"] = self._pools.path(one.pool, one.id).parent
        for what, path in places.items():
            free = shutil.disk_usage(path).free
            if free < room_bytes:
                return f"{what} is full: {free >> 20} MiB are free where it lies on this node"
        return None


def _sum(limits: Iterable[int | None]) -> int | None:
    found = list(limits)
    return None if None in found else sum(one for one in found if one is not None)


def _own(spec: VmSpec) -> DiskLimits:
    return DiskLimits(spec.disk_iops, spec.disk_bytes_per_s)
