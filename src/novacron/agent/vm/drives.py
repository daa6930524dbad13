"""What is in the CD-ROM drives of a VM that runs: let it be as the server says."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from novacron.agent.actions import Action, Doing
from novacron.agent.vm import keys, media
from novacron.agent.vm.context import VmServices
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.agent.vm.keys import KeyMissing
from novacron.agent.vm.media import MediaMissing
from novacron.qemu import disks, drives
from novacron.qemu.command import QemuCd
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)


class Drives:
    """Those of one VM."""

    def __init__(self, machine: VirtualMachine, services: VmServices, doing: Doing) -> None:
        self._machine, self._services, self._doing = machine, services, doing
        self._settled: object = None

    async def settle(self, assignment: wire.Assignment) -> str:
        """Let the drives hold what they should; return why one does not, or nothing. Raises MonitorFailed when QEMU
        does not answer."""
        spec = assignment.spec
        monitor, now = self._machine.monitor, (self._machine.pid, spec.cdroms)
        if monitor is None or now == self._settled or not (spec.cdroms or self._settled):
            return ""
        has = await drives.media(monitor)
        try:
            images = media.find(self._services.images, spec)
            for image in images.values():
                if (key := keys.image_key(assignment, image)) is not None:
                    await disks.have_key(monitor, key.id, key.passphrase())
            for number, node in has.items():
                if number < len(spec.cdroms):
                    await self._settle(monitor, number, node, media.drive(spec, number, images, _open))
        except MediaMissing as missing:
            self._services.send(wire.ImageMissing(missing.name))
            return str(missing)
        except KeyMissing as missing_key:
            return str(missing_key)
        except OSError as error:
            return f"an ISO can't be opened: {error.strerror}"
        self._settled = now
        return ""

    async def _settle(self, monitor: Monitor, number: int, has: str | None, wanted: QemuCd) -> None:
        try:
            if wanted.node == has:
                return
            with self._doing(Action.CHANGE_CD, drive=number):
                await (drives.eject(monitor, number) if wanted.node is None else drives.insert(monitor, wanted))
        except MonitorFailed as error:
            log.warning("what is in a drive can't be changed", vm=self._machine.id, drive=number, error=str(error))
            raise
        finally:
            if wanted.descriptor is not None:
                await asyncio.to_thread(os.close, wanted.descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
