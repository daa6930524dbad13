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


MISSING = "it is not in the VM's disk"


class SnapshotFailed(Exception):
    """It was not done: says why. The VM is as it was."""


async def work(machine: VirtualMachine, snapshot: wire.SnapshotWanted, run_state: str) -> float | None:
    """Make, restore or delete a snapshot; return for how many ms the guest stood still, if it did.

    To go back to a snapshot without memory, QEMU is ended: the caller starts it again. Raises SnapshotFailed.
    """
    try:
        if machine.monitor is not None and run_state != "absent":
            if snapshot.phase is not SnapshotPhase.REVERTING or snapshot.memory:
                return await _running(machine, machine.monitor, snapshot, run_state)
            if snapshot.id not in await snapshots.names(machine.monitor):
                raise SnapshotFailed(MISSING)  # before the guest is ended for it
            await machine.kill()
        elif snapshot.memory and snapshot.phase is not SnapshotPhase.DELETING:
            await _bring_back_disk(machine, snapshot)
            raise SnapshotFailed("the VM does not run any more")
        await _stopped(machine, snapshot)
        return None
    except (MonitorFailed, MachineFailed, OverlayFailed, GuestSilent, OSError, TimeoutError) as error:
        raise SnapshotFailed(str(error) or type(error).__name__) from error


async def _running(
    machine: VirtualMachine, monitor: Monitor, snapshot: wire.SnapshotWanted, run_state: str
) -> float | None:
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
                raise SnapshotFailed(MISSING)
            await _load(monitor, snapshot, run_state)
        case SnapshotPhase.DELETING if exists:
            await snapshots.delete(monitor, snapshot.id)
    return None


def _way_back(snapshot: wire.SnapshotWanted) -> str:
    """Return the name of the snapshot that keeps the guest as it is while it goes back to another."""
    return f"before-{snapshot.id}"


async def _load(monitor: Monitor, snapshot: wire.SnapshotWanted, run_state: str) -> None:
    """Let a guest go back to a snapshot with its memory. One that does not load, such as one of other devices, leaves
    the guest as it was. Raises SnapshotFailed, MonitorFailed."""
    before = _way_back(snapshot)
    if before not in await snapshots.names(monitor):  # it is there if an earlier agent was killed in between
        await snapshots.create(monitor, before, memory=True)
    try:
        await snapshots.load(monitor, snapshot.id)
    except MonitorFailed as error:
        try:
            await snapshots.load(monitor, before)
            if run_state == "running":
                await monitor.execute("cont")
        except MonitorFailed as worse:
            raise SnapshotFailed(f"{error}; the guest stands still, it could not be brought back: {worse}") from error
        await snapshots.delete(monitor, before)
        raise SnapshotFailed(f"{error}; the guest goes on as it was") from error
    await snapshots.delete(monitor, before)


async def _bring_back_disk(machine: VirtualMachine, snapshot: wire.SnapshotWanted) -> None:
    """Let the disk of a VM that ended while it went back be as before. Raises OverlayFailed."""
    inside = _in_file(machine)
    if inside is not None and _way_back(snapshot) in await inside.names():
        await inside.apply(_way_back(snapshot))
        await inside.delete(_way_back(snapshot))


def _in_file(machine: VirtualMachine) -> InFile | None:
    """Return the snapshots in the file of a VM that does not run; None: it has never run."""
    path = machine.directory / DISK_LAYER
    if not path.exists():
        return None
    uid = machine.home.make()
    machine.home.give(DISK_LAYER)
    return InFile(path, lambda command: command if uid is None else confine.confined(command, confine.Account(uid)))


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
    inside = _in_file(machine)
    if inside is None:
        raise SnapshotFailed("the VM has never run: there is nothing that a snapshot could keep")
    exists = snapshot.id in await inside.names()
    match snapshot.phase:
        case SnapshotPhase.CREATING if not exists:
            await inside.create(snapshot.id)
        case SnapshotPhase.REVERTING:
            if not exists:
                raise SnapshotFailed(MISSING)
            await inside.apply(snapshot.id)
        case SnapshotPhase.DELETING if exists:
            await inside.delete(snapshot.id)
