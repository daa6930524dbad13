"""A VM whose disk is still to be made: from another's on this node, or of a backup."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

from novacron.agent.actions import Action, doing
from novacron.agent.vm import clone_disk, replica_disk, restored_disk
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


class _GivenUp(NamedTuple):
    """A request to replace a disk with which nothing could be done: the VM has what it had."""

    request: str
    error: str
    code: str


class CloneReconciler:
    """Makes the disk of a VM that is to become a clone, or that comes out of a backup."""

    def __init__(self, context: VmContext) -> None:
        self._context = context
        self._making: asyncio.Task[None] | None = None
        self._retries = Retries(context.vm, "clone", context.services.clock)
        self._restore_backoff = Backoff(RESTORE_S_MIN, RESTORE_S_MAX)
        self._given_up: _GivenUp | None = None

    def step(self, of: CloneOf) -> None:
        """See that the VM gets its disk, and that the server hears of it."""
        if self._given_up is not None and self._given_up.request == of.replaces:
            self._report(self._given_up.error, self._given_up.code)
        elif self._has_disk(of):
            self._report()
        elif self._making is None:
            self._making = asyncio.create_task(self._make(of), name=f"clone-{self._context.vm}")

    async def cancel(self) -> None:
        """Stop making the disk; what was begun can be done again."""
        making = self._making
        if making is not None:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    def _has_disk(self, of: CloneOf) -> bool:
        if of.replaces:
            return restored_disk.is_replaced(self._context.machine.home, of.replaces)
        return clone_disk.made(self._context.machine.directory)

    def _report(self, error: str = "", code: str = "") -> None:
        context = self._context
        context.services.send(wire.Cloned(context.vm, context.record.held.epoch, error, code))

    async def _clone(self, of: CloneOf) -> None:
        context = self._context
        source = context.services.find_vm(of.source)
        if source is None:
            raise MachineFailed(f"VM {of.source_name} is not on this node")
        await source.wait_until_known()
        with doing(Action.CLONE, trace=context.trace, vm=context.vm, source=of.source):
            if of.linked:  # nothing is copied
                await clone_disk.share(source.machine, context.machine.home, source.lock, context.disk_key())
                return
            async with self._turn():
                await clone_disk.copy(source.machine, context.machine.home, source.lock, context.disk_key())

    def _turn(self) -> contextlib.AbstractAsyncContextManager[None]:
        return self._context.services.disk_turns.turn(self._context.assigned().project)

    async def _make_once(self, of: CloneOf) -> None:
        context = self._context
        if of.replica is not None:
            await replica_disk.make(context, of.replica, of.source)
        elif of.backup is None:
            await self._clone(of)
        elif not of.replaces:
            async with self._turn():
                await restored_disk.make(context, of.backup)
        else:
            try:
                async with self._turn():
                    await restored_disk.replace(context, of.backup, of.replaces)
            except (RepositoryError, Unacceptable, ImgFailed, BadState, OverlayFailed, OSError, TimeoutError) as error:
                if restored_disk.is_half_done(context.machine.home):
                    raise
                self._given_up = _GivenUp(of.replaces, str(error) or type(error).__name__, code_of(error))
                raise

    async def _make(self, of: CloneOf) -> None:
        context = self._context
        origin = _origin(of)
        context.report(VmState.PENDING, f"its disk is being created from {origin}", WaitCode.DISK_BEING_MADE)
        try:
            await self._make_once(of)
            log.info("cloned", vm=context.vm, source=of.source, linked=of.linked)
            self._retries.reset()
            self._report()
        except (RepositoryError, Unacceptable, ImgFailed, BadState) as error:  # reading all of it again takes long
            why = f"its disk can't be created from {origin}: {error}"
            context.report(VmState.FAILED, why, code_of(error))
            await context.services.clock.sleep(self._restore_backoff.next_s())
        except (MachineFailed, MonitorFailed, OverlayFailed, NoAccount, OSError, TimeoutError) as error:
            why = f"its disk can't be created from {origin}: {error}"
            context.report(VmState.FAILED, why, code_of(error))
            await self._retries.pause_after(error)
        except Exception as error:  # a defect must neither end the worker nor make a busy loop
            why = f"its disk can't be created: internal error in its agent: {error!r}"
            context.report(VmState.FAILED, why, WaitCode.STEP_FAILED)
            await self._retries.pause_after_defect(error)
        finally:
            self._making = None
            context.wake()


def _origin(of: CloneOf) -> str:
    if of.replica is not None:
        return f"point {of.replica.point} of the replica of {of.source_name}"
    return f"the disk of {of.source_name}" if of.backup is None else of.source_name
