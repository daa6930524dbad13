"""What a VM's worker does about its snapshots. Each step may be done again: the disk itself says which there are."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import NamedTuple

from novacron.agent.host.clock import Clock
from novacron.agent.vm.directory import DISK_LAYER
from novacron.agent.vm.hypervisor import MachineFailed, VirtualMachine
from novacron.disk.overlay import OverlayFailed
from novacron.disk.overlay import Snapshots as InFile
from novacron.model.encryption import DataKey
from novacron.model.snapshot import MachineLayout, SnapshotPhase, layout_differences
from novacron.model.waiting import WaitCode
from novacron.qemu import confine, layout, process, snapshots
from novacron.qemu.guest import GuestSilent
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)


MISSING = "it is not in the VM's disk"
NOT_STARTED = "prelaunch"
"""QEMU's run state before its guest boots."""
WAY_BACK = "before-"
"""Begins the name of a snapshot that keeps the guest as it is while it goes back to another one."""
REMOVALS_MAX, REMOVAL_S = 5, 60.0


class SnapshotFailed(Exception):
    """It was not done: says why. The VM is as it was. ``code`` None: that of its cause."""

    def __init__(self, message: str, code: WaitCode | None = None) -> None:
        super().__init__(message)
        self.code = code


class SnapshotOutcome(NamedTuple):
    """What was done about a snapshot."""

    pause_ms: float | None = None
    """For how long the guest stood still, if it did."""
    layout: MachineLayout | None = None
    """What the memory that was kept fits."""


NOTHING_TO_TELL = SnapshotOutcome()


async def work(
    machine: VirtualMachine, snapshot: wire.SnapshotWanted, run_state: str, key: DataKey | None
) -> SnapshotOutcome:
    """Make, restore or delete a snapshot. ``key`` is that of an encrypted disk.

    To go back to a snapshot without memory, QEMU is ended: the caller starts it again. Raises SnapshotFailed: the
    guest, if there was one, goes on as it was; a QEMU that had not begun (``prelaunch``) has been ended.
    """
    try:
        if machine.monitor is not None and run_state != "absent":
            if snapshot.phase is not SnapshotPhase.REVERTING or snapshot.memory:
                return await _running(machine, machine.monitor, snapshot, run_state, key)
            if snapshot.id not in await snapshots.stored(machine.monitor):
                raise SnapshotFailed(MISSING, WaitCode.FILE_LOST)  # before the guest is ended for it
            await machine.kill()
        elif snapshot.memory and snapshot.phase is not SnapshotPhase.DELETING:
            await _bring_back_disk(machine, snapshot, key)
            raise SnapshotFailed("the VM is no longer running", WaitCode.VM_OFF)
        await _stopped(machine, snapshot, key)
        return NOTHING_TO_TELL
    except (MonitorFailed, MachineFailed, OverlayFailed, GuestSilent, OSError, TimeoutError) as error:
        raise SnapshotFailed(str(error) or type(error).__name__) from error


class WaysBack:
    """Removes what attempts to go back kept and could not remove: looked for in each QEMU once, and after each work on
    a snapshot; a removal that fails is tried again a few times."""

    def __init__(self, machine: VirtualMachine, clock: Clock) -> None:
        self._machine, self._clock = machine, clock
        self._qemu: int | None = None
        self._attempts = 0
        self._next_at = 0.0

    def expect(self) -> None:
        """There may be some now."""
        self._qemu = None

    async def settle(self) -> None:
        """Remove them, if that is due. To be called while no attempt goes on."""
        machine, now = self._machine, self._clock.monotonic()
        if machine.pid != self._qemu:
            self._qemu, self._attempts, self._next_at = machine.pid, REMOVALS_MAX, now
        if machine.monitor is None or not machine.has_disk() or self._attempts == 0 or now < self._next_at:
            return
        self._attempts, self._next_at = self._attempts - 1, now + REMOVAL_S
        try:
            await _remove_ways_back(machine.monitor)
        except MonitorFailed as error:
            log.warning("a snapshot that a revert left stays", vm=machine.id, attempts=self._attempts, error=str(error))
        else:
            self._attempts = 0


async def _remove_ways_back(monitor: Monitor) -> None:
    for name in await snapshots.stored(monitor):
        if name.startswith(WAY_BACK):
            log.info("a snapshot that a revert left is removed", snapshot=name)
            await snapshots.delete(monitor, name)


async def _running(
    machine: VirtualMachine, monitor: Monitor, snapshot: wire.SnapshotWanted, run_state: str, key: DataKey | None
) -> SnapshotOutcome:
    await snapshots.settle(monitor)
    exists = snapshot.id in await snapshots.stored(monitor)
    match snapshot.phase:
        case SnapshotPhase.CREATING if snapshot.memory and key is not None:
            raise SnapshotFailed("QEMU can't write memory into an encrypted disk")
        case SnapshotPhase.CREATING if snapshot.quiesce:
            await _thaw(machine)  # an earlier agent may have been killed in between
            if exists:
                return await _made(monitor, snapshot)
            try:
                await machine.guest.freeze()
                return await _create(machine, monitor, snapshot)
            finally:
                await _thaw(machine)
        case SnapshotPhase.CREATING:
            return await (_made(monitor, snapshot) if exists else _create(machine, monitor, snapshot))
        case SnapshotPhase.REVERTING if run_state == NOT_STARTED:
            await _load_at_start(machine, monitor, snapshot, key)
        case SnapshotPhase.REVERTING:
            await _check_fits(monitor, snapshot)
            await _check_room(machine)
            await _load(monitor, snapshot, run_state)
        case SnapshotPhase.DELETING if exists:
            await snapshots.delete(monitor, snapshot.id)
    return NOTHING_TO_TELL


async def _check_fits(monitor: Monitor, snapshot: wire.SnapshotWanted) -> None:
    """Raise SnapshotFailed unless the snapshot's memory is there and fits the VM as it is. Nothing is changed."""
    kept = (await snapshots.stored(monitor)).get(snapshot.id)
    if kept is None:
        raise SnapshotFailed(MISSING, WaitCode.FILE_LOST)
    if not kept.memory_bytes:
        raise SnapshotFailed("its memory is not in the VM's disk", WaitCode.FILE_LOST)
    if snapshot.layout is None:  # taken by an earlier version
        return
    differences = layout_differences(snapshot.layout, await layout.look(monitor))
    if differences:
        raise SnapshotFailed(
            f"its memory does not fit the VM's current hardware: {'; '.join(differences)}. Nothing was changed:"
            " restore the VM's hardware (after hot-plugging memory: stop and start it), then revert again",
            WaitCode.DOES_NOT_FIT,
        )


async def _check_room(machine: VirtualMachine) -> None:
    """Raise SnapshotFailed unless the guest's memory has room beside its disk. Raises OSError."""
    if machine.pid is None:
        return
    memory_bytes = process.used(machine.pid).resident_bytes
    free_bytes = (await asyncio.to_thread(shutil.disk_usage, machine.directory)).free
    if free_bytes < memory_bytes:
        raise SnapshotFailed(
            f"the guest's memory needs up to {memory_bytes >> 20} MiB beside the VM's disk, but {free_bytes >> 20} MiB"
            " are free on the node. Nothing was changed: free some space, then try again",
            WaitCode.NO_SPACE,
        )


async def _load(monitor: Monitor, snapshot: wire.SnapshotWanted, run_state: str) -> None:
    """Let a guest go back to a snapshot with its memory. One that does not load, such as a damaged one, leaves the
    guest as it was. Raises SnapshotFailed, MonitorFailed."""
    before = WAY_BACK + snapshot.id
    if before not in await snapshots.stored(monitor):  # it is there if an earlier agent was killed in between
        await snapshots.create(monitor, before, memory=True)
    try:
        await snapshots.load(monitor, snapshot.id)
    except MonitorFailed as error:
        try:
            await snapshots.load(monitor, before)
            if run_state == "running":
                await monitor.execute("cont")
        except MonitorFailed as worse:
            raise SnapshotFailed(
                f"{error}; the guest is stopped, and its previous state could not be restored: {worse}"
            ) from error
        await _remove_way_back(monitor, before)
        raise SnapshotFailed(f"{error}; the guest continues as before") from error
    await _remove_way_back(monitor, before)


async def _load_at_start(
    machine: VirtualMachine, monitor: Monitor, snapshot: wire.SnapshotWanted, key: DataKey | None
) -> None:
    """Let a QEMU whose guest has not booted have the memory of a snapshot. Without success it is ended, and the disk is
    as it was. Raises SnapshotFailed, MonitorFailed, OverlayFailed."""
    before = WAY_BACK + snapshot.id
    try:
        await _check_fits(monitor, snapshot)
        if before not in await snapshots.stored(monitor):
            await snapshots.create(monitor, before, memory=False)
        await snapshots.load(monitor, snapshot.id)
    except (SnapshotFailed, MonitorFailed):
        await machine.kill()
        await _bring_back_disk(machine, snapshot, key)
        raise
    await _remove_way_back(monitor, before)


async def _remove_way_back(monitor: Monitor, name: str) -> None:
    """Remove what is not needed any more; the worker tries again what does not succeed."""
    try:
        await snapshots.delete(monitor, name)
    except MonitorFailed as error:
        log.warning("a snapshot that a revert needed stays for now", snapshot=name, error=str(error))


async def _bring_back_disk(
    machine: VirtualMachine, snapshot: wire.SnapshotWanted, key: DataKey | None
) -> None:  # fmt: skip
    """Let the disk of a VM that ended while it went back be as before. Raises OverlayFailed."""
    inside, before = _in_file(machine, key), WAY_BACK + snapshot.id
    if inside is not None and before in await inside.names():
        await inside.apply(before)
        await inside.delete(before)


def _in_file(machine: VirtualMachine, key: DataKey | None) -> InFile | None:
    """Return the snapshots in the file of a VM that does not run; None: it has never run."""
    path = machine.directory / DISK_LAYER
    if not path.exists():
        return None
    uid = machine.home.make()
    machine.home.give(DISK_LAYER)

    def wrap(command: list[str]) -> list[str]:
        return command if uid is None else confine.confined(command, confine.Account(uid))

    return InFile(path, wrap, key)


async def _thaw(machine: VirtualMachine) -> None:
    """Let the guest write again; what its agent says to that changes nothing about the snapshot."""
    try:
        await machine.guest.thaw()
    except GuestSilent as error:
        log.warning("a guest may not write to its disks", vm=machine.id, error=str(error))


async def _create(machine: VirtualMachine, monitor: Monitor, snapshot: wire.SnapshotWanted) -> SnapshotOutcome:
    if snapshot.memory:
        await _check_room(machine)
    machine.stood_still_s = 0.0
    started = time.monotonic()
    await snapshots.create(monitor, snapshot.id, memory=snapshot.memory)
    took_s = time.monotonic() - started
    pause_ms = 1e3 * (machine.stood_still_s if snapshot.memory else took_s)
    return (await _made(monitor, snapshot))._replace(pause_ms=pause_ms)


async def _made(monitor: Monitor, snapshot: wire.SnapshotWanted) -> SnapshotOutcome:
    """Return what there is to tell of a snapshot that exists."""
    return SnapshotOutcome(layout=await layout.look(monitor) if snapshot.memory else None)


async def _stopped(machine: VirtualMachine, snapshot: wire.SnapshotWanted, key: DataKey | None) -> None:
    inside = _in_file(machine, key)
    if inside is None:
        raise SnapshotFailed("the VM has never run: there is nothing to snapshot")
    names = await inside.names()
    exists = snapshot.id in names
    for left in sorted(name for name in names if name.startswith(WAY_BACK)):
        await inside.delete(left)  # no attempt goes on: what it needed is not needed any more
    match snapshot.phase:
        case SnapshotPhase.CREATING if not exists:
            await inside.create(snapshot.id)
        case SnapshotPhase.REVERTING:
            if not exists:
                raise SnapshotFailed(MISSING, WaitCode.FILE_LOST)
            await inside.apply(snapshot.id)
        case SnapshotPhase.DELETING if exists:
            await inside.delete(snapshot.id)
