"""The volumes and the limits that a VM has while it runs: let them be as the server says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Iterable

from novacron.agent.actions import Action, Doing
from novacron.agent.host.volumes import Pools
from novacron.agent.vm import keys
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.agent.vm.keys import KeyMissing
from novacron.model.encryption import DataKey
from novacron.model.vm import VmSpec
from novacron.model.waiting import code_of
from novacron.qemu import disks
from novacron.qemu.command import QemuVolume
from novacron.qemu.disks import DiskLimits
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

Handled = Callable[[str, bool, str, str], None]
"""Called with a volume's id, whether QEMU has let go of it, and the error if any, in words and as a code."""


def opened(pools: Pools, volumes: tuple[wire.VolumeAttached, ...]) -> list[QemuVolume]:
    """Return the volumes with which a VM starts, open. Raises OSError."""
    open_volumes: list[QemuVolume] = []
    try:
        for volume in volumes:
            if not volume.detaching:
                open_volumes.append(
                    QemuVolume(
                        volume.id, volume.lun, pools.open(volume), volume.read_only, volume.boot_order,
                        volume.encryption_key, volume.bus,
                    )
                )  # fmt: skip
    except OSError:
        for open_volume in open_volumes:
            os.close(open_volume.descriptor)
        raise
    return open_volumes


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

    async def settle(self, assignment: wire.Assignment) -> None:
        """Let the VM, if it runs, have what it should. Raises MonitorFailed when QEMU does not answer."""
        monitor = self._machine.monitor if self._machine.pid is not None else None
        now = (self._machine.pid, assignment.volumes, _own(assignment.spec))
        if now == self._settled:
            return
        if monitor is None:
            for volume in assignment.volumes:
                if volume.detaching:
                    self._handled(volume.id, True, "", "")
        else:
            has = await disks.plugged(monitor)
            for volume in assignment.volumes:
                await self._settle_volume(monitor, assignment, volume, has)
            for id in has.keys() - {volume.id for volume in assignment.volumes}:
                log.warning("a guest has an unexpected volume", vm=self._machine.id, volume=id)
            with contextlib.suppress(MonitorFailed):  # it has no disk
                await disks.limit(monitor, disks.OWN, _own(assignment.spec))
            await asyncio.to_thread(self._bound, assignment)
        self._settled = now

    def _bound(self, assignment: wire.Assignment) -> None:
        """Let the cgroup bound QEMU where all of its disks are: to what they may do together."""
        every = [_own(assignment.spec), *(DiskLimits(volume.iops, volume.bytes_per_s) for volume in assignment.volumes)]
        self._machine.bound_io(_sum(limits.bytes_per_s for limits in every), _sum(limits.iops for limits in every))

    async def _settle_volume(
        self, monitor: Monitor, assignment: wire.Assignment, volume: wire.VolumeAttached, has: dict[str, int]
    ) -> None:
        error = code = ""
        try:
            if volume.detaching:
                if volume.id in has:
                    with self._doing(Action.DETACH, volume=volume.id):
                        await disks.unplug(monitor, volume.id, volume.lun)
                self._handled(volume.id, True, "", "")
                return
            if volume.id not in has:
                with self._doing(Action.ATTACH, volume=volume.id):
                    await self._plug(monitor, volume, keys.volume_key(assignment, volume))
            elif has[volume.id] < volume.size_mib << 20:
                with self._doing(Action.GROW, volume=volume.id):
                    await disks.resize(monitor, volume.id, volume.size_mib << 20)
            await disks.limit(monitor, volume.id, DiskLimits(volume.iops, volume.bytes_per_s))
        except (MonitorFailed, KeyMissing, OSError) as failure:
            error, code = str(failure) or type(failure).__name__, code_of(failure)
            log.warning("a volume can't be set up", vm=self._machine.id, volume=volume.id, error=error)
        self._handled(volume.id, False, error, code)

    async def _plug(self, monitor: Monitor, attached: wire.VolumeAttached, key: DataKey | None) -> None:
        if key is not None:
            await disks.have_key(monitor, key.id, key.passphrase())
        (volume,) = await asyncio.to_thread(opened, self._pools, (attached,))
        try:
            await disks.plug(monitor, volume)
        finally:
            os.close(volume.descriptor)

    def full(self, assignment: wire.Assignment, room_bytes: int) -> str | None:
        """Say which place that the VM writes to has no room, or None when all have."""
        places = {"its disk": self._machine.directory}
        for volume in assignment.volumes:
            with contextlib.suppress(OSError):
                places[f"pool {volume.pool}"] = self._pools.path(volume.pool, volume.id).parent
        for what, path in places.items():
            free = shutil.disk_usage(path).free
            if free < room_bytes:
                return f"{what} is full: {free >> 20} MiB are free on its file system"
        return None


def _sum(limits: Iterable[int | None]) -> int | None:
    every = list(limits)
    return None if None in every else sum(limit for limit in every if limit is not None)


def _own(spec: VmSpec) -> DiskLimits:
    return DiskLimits(spec.disk_iops, spec.disk_bytes_per_s)
