"""A VM whose disk is still to be made from another's: a worker's part in that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from novacron.agent.actions import Action, doing
from novacron.agent.vm import clone_disk
from novacron.agent.vm.directory import NoAccount
from novacron.agent.vm.machine import MachineFailed
from novacron.disk.overlay import OverlayFailed
from novacron.model.vm import CloneOf, VmState
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

if TYPE_CHECKING:
    from novacron.agent.worker import Worker

log = logs.get(__name__)

AGAIN_S = 2.0


class Cloning:
    """The clone that a worker's VM is to become."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._making: asyncio.Task[None] | None = None

    def go_on(self, of: CloneOf) -> None:
        """See that the VM gets its disk, and that the server hears of it."""
        if clone_disk.made(self._worker.machine.directory):
            self._tell()
        elif self._making is None:
            self._making = asyncio.create_task(self._make(of), name=f"clone-{self._worker.vm}")

    async def cancel(self) -> None:
        making = self._making
        if making is not None:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    def _tell(self) -> None:
        self._worker.host.send(wire.Cloned(self._worker.vm, self._worker.record.held.epoch))

    async def _make(self, of: CloneOf) -> None:
        worker = self._worker
        worker.report(VmState.PENDING, f"its disk is being made from that of {of.source_name}")
        try:
            source = worker.host.worker(of.source)
            if source is None:
                raise MachineFailed(f"VM {of.source_name} is not here")
            await source.known()
            with doing(Action.CLONE, trace=worker.trace, vm=worker.vm, source=of.source):
                if of.linked:
                    await clone_disk.share(source.machine, worker.machine.home, source.lock)
                else:
                    await clone_disk.copy(source.machine, worker.machine.home, source.lock)
            log.info("cloned", vm=worker.vm, source=of.source, linked=of.linked)
            self._tell()
        except (MachineFailed, MonitorFailed, OverlayFailed, NoAccount, OSError, TimeoutError) as error:
            log.warning("a clone can't be made now", vm=worker.vm, source=of.source, error=str(error))
            worker.report(VmState.FAILED, f"its disk can't be made from that of {of.source_name}: {error}")
            await asyncio.sleep(AGAIN_S)
        finally:
            self._making = None
            worker.wake()
