"""Has a guest write out what it has and stop writing for a moment."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.qemu.guest import GuestSilent
from novacron.telemetry import logs

log = logs.get(__name__)


class Quiesce:
    """Of one guest, if its agent does it within its time, and if it is ``wanted``; ``done`` says whether it did."""

    def __init__(self, machine: VirtualMachine, *, wanted: bool) -> None:
        self.done = False
        self._machine, self._wanted = machine, wanted

    @contextlib.asynccontextmanager
    async def around(self) -> AsyncIterator[None]:
        if not self._wanted:
            yield
            return
        try:
            try:
                await self._machine.guest.freeze()
                self.done = True
            except GuestSilent as error:
                log.warning("a guest is copied without being quiesced", vm=self._machine.id, error=str(error))
            yield
        finally:
            try:
                await self._machine.guest.thaw()
            except GuestSilent as error:
                log.warning("a guest may not write to its disks", vm=self._machine.id, error=str(error))
