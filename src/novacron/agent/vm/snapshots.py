"""What a VM's worker does about its snapshots. Each step may be done again: the disk itself says which there are."""

from __future__ import annotations

import time

from novacron.agent.vm.directory import DISK_LAYER
from novacron.agent.vm.hypervisor import MachineFailed, VirtualMachine
from novacron.disk.overlay import OverlayFailed
from novacron.disk.overlay import Snapshots as InFile
from novacron.model.snapshot import SnapshotPhase
from novacron.qemu import confine, snapshots
from novacron.qemu.guest import GuestSilent
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)


class SnapshotFailed(Exception):
    """It was not done: says why. The VM is as it was."""


async def work(machine: VirtualMachine, snapshot: wire.SnapshotWanted, run_state: str) -> float | None:
    """Make, restore or delete a snapshot; return for how many ms the guest stood still, if it did.

    To go back to a snapshot without memory, QEMU is ended: the caller starts it again. Raises SnapshotFailed.
    """
    try:
        if machine.monitor is not None and run_state != "absent":
            if snapshot.phase is not SnapshotPhase.REVERTING or snapshot.memory:
                return await _running(machine, machine.monitor, snapshot)
            await machine.kill()
        elif snapshot.memory and snapshot.phase is not SnapshotPhase.DELETING:
            raise SnapshotFailed("the VM does not run any more")
        await _stopped(machine, snapshot)
        return None
    except (MonitorFailed, MachineFailed, OverlayFailed, GuestSilent, OSError, TimeoutError) as error:
        raise SnapshotFailed(str(error) or type(error).__name__) from error


async def _running(machine: VirtualMachine, monitor: Monitor, snapshot: wire.SnapshotWanted) -> float | None:
    await snapshots.settle(monitor)
    exists = snapshot.id in await snapshots.names(monitor)
    match snapshot.phase:
        case SnapshotPhase.CREATING if snapshot.quiesce:
            await _thaw(machine)  # an earlier agent may have been killed in between
            if exists:
                return None
            try:
                await machine.guest.freeze()
                return await _create(machine, monitor, snapshot)
            finally:
                await _thaw(machine)
        case SnapshotPhase.CREATING if not exists:
            return await _create(machine, monitor, snapshot)
        case SnapshotPhase.REVERTING:
            if not exists:
                raise SnapshotFailed("it is not in the VM's disk")
            await snapshots.load(monitor, snapshot.id)
        case SnapshotPhase.DELETING if exists:
            await snapshots.delete(monitor, snapshot.id)
    return None


async def _thaw(machine: VirtualMachine) -> None:
    """Let the guest write again; what its agent says to that changes nothing about the snapshot."""
    try:
        await machine.guest.thaw()
    except GuestSilent as error:
        log.warning("a guest may not write to its disks", vm=machine.id, error=str(error))


async def _create(machine: VirtualMachine, monitor: Monitor, snapshot: wire.SnapshotWanted) -> float:
    machine.stood_still_s = 0.0
    started = time.monotonic()
    await snapshots.create(monitor, snapshot.id, memory=snapshot.memory)
    took_s = time.monotonic() - started
    return 1e3 * (machine.stood_still_s if snapshot.memory else took_s)


async def _stopped(machine: VirtualMachine, snapshot: wire.SnapshotWanted) -> None:
    path = machine.directory / DISK_LAYER
    if not path.exists():
        raise SnapshotFailed("the VM has never run: there is nothing that a snapshot could keep")
    uid = machine.home.make()
    machine.home.give(DISK_LAYER)
    inside = InFile(path, lambda command: command if uid is None else confine.confined(command, confine.Account(uid)))
    exists = snapshot.id in await inside.names()
    match snapshot.phase:
        case SnapshotPhase.CREATING if not exists:
            await inside.create(snapshot.id)
        case SnapshotPhase.REVERTING:
            if not exists:
                raise SnapshotFailed("it is not in the VM's disk")
            await inside.apply(snapshot.id)
        case SnapshotPhase.DELETING if exists:
            await inside.delete(snapshot.id)
