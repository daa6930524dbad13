"""A VM whose disk is still to be made: from another's on this node, or of a backup."""

from __future__ import annotations

import asyncio

from novacron.agent.actions import Action, doing
from novacron.agent.vm import clone_disk, restored_disk
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import NoAccount
from novacron.agent.vm.firmware_state import BadState
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.agent.vm.retries import Retries
from novacron.backup.errors import RepositoryError
from novacron.disk.errors import Unacceptable
from novacron.disk.overlay import OverlayFailed
from novacron.disk.qemu_img import ImgFailed
from novacron.dwcp.backoff import Backoff
from novacron.model.vm import CloneOf, VmState
from novacron.model.waiting import WaitCode, code_of
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)


RESTORE_S_MIN, RESTORE_S_MAX = 5.0, 600.0
"""Between attempts to make a disk of a backup."""


class CloneReconciler:
    """Makes the disk of a VM that is to become a clone, or that comes out of a backup."""

    def __init__(self, context: VmContext) -> None:
        self._context = context
        self._making: asyncio.Task[None] | None = None
        self._retries = Retries(context.vm, "clone", context.services.clock)
        self._restore_backoff = Backoff(RESTORE_S_MIN, RESTORE_S_MAX)

    def step(self, of: CloneOf) -> None:
        """See that the VM gets its disk, and that the server hears of it."""
        if clone_disk.made(self._context.machine.directory):
            self._report_done()
        elif self._making is None:
            self._making = asyncio.create_task(self._make(of), name=f"clone-{self._context.vm}")

    async def cancel(self) -> None:
        """Stop making the disk; what was begun can be done again."""
        making = self._making
        if making is not None:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    def _report_done(self) -> None:
        context = self._context
        context.services.send(wire.Cloned(context.vm, context.record.held.epoch))

    async def _clone(self, of: CloneOf) -> None:
        context = self._context
        source = context.services.find_vm(of.source)
        if source is None:
            raise MachineFailed(f"VM {of.source_name} is not here")
        await source.wait_until_known()
        with doing(Action.CLONE, trace=context.trace, vm=context.vm, source=of.source):
            make = clone_disk.share if of.linked else clone_disk.copy
            await make(source.machine, context.machine.home, source.lock, context.disk_key())

    async def _make(self, of: CloneOf) -> None:
        context = self._context
        origin = f"that of {of.source_name}" if of.backup is None else of.source_name
        context.report(VmState.PENDING, f"its disk is being made from {origin}", WaitCode.DISK_BEING_MADE)
        try:
            await (self._clone(of) if of.backup is None else restored_disk.make(context, of.backup))
            log.info("cloned", vm=context.vm, source=of.source, linked=of.linked)
            self._retries.reset()
            self._report_done()
        except (RepositoryError, Unacceptable, ImgFailed, BadState) as error:  # reading all of it again takes long
            why = f"its disk can't be made from {origin}: {error}"
            context.report(VmState.FAILED, why, code_of(error))
            await context.services.clock.sleep(self._restore_backoff.next_s())
        except (MachineFailed, MonitorFailed, OverlayFailed, NoAccount, OSError, TimeoutError) as error:
            why = f"its disk can't be made from {origin}: {error}"
            context.report(VmState.FAILED, why, WaitCode.STEP_FAILED)
            await self._retries.pause_after(error)
        except Exception as error:  # a defect must neither end the worker nor make a busy loop
            why = f"its disk can't be made: a defect in its agent: {error!r}"
            context.report(VmState.FAILED, why, WaitCode.STEP_FAILED)
            await self._retries.pause_after_defect(error)
        finally:
            self._making = None
            context.wake()
