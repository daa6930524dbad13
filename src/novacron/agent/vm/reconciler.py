"""The owner's part of one VM: it runs, or does not, with the volumes, processors and memory that it should have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

import msgspec

from novacron.agent.actions import Action
from novacron.agent.vm import guest_agent, snapshots
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.devices import Devices, opened
from novacron.agent.vm.drives import Drives
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.agent.vm.image_requests import ImageRequests
from novacron.agent.vm.journal import AnewAsked
from novacron.agent.vm.keys import KeyMissing
from novacron.agent.vm.launch import StartRequest
from novacron.agent.vm.media import MediaMissing
from novacron.agent.vm.nics import Nics
from novacron.agent.vm.power import LEFT, STATES, SUSPENDED, PowerRequests, Step, backoff_s, decide
from novacron.agent.vm.snapshots import SnapshotFailed
from novacron.agent.vm.start_queue import StartDelayed
from novacron.agent.vm.tenant import Tenant
from novacron.disk.images import LocalImage
from novacron.model.snapshot import SnapshotPhase
from novacron.model.vm import Power, Restart, VmSpec, VmState
from novacron.model.waiting import WaitCode, code_of
from novacron.qemu import boot
from novacron.qemu.firmware import machine_of
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

IDLE_S = 60.0
RETRY_S = 2.0
LOOK_AGAIN_S_MIN = 0.05
ROOM_BYTES = 64 << 20
"""With so much free again, a VM whose disk was full goes on."""
CLOCK_BEHIND_S = 0.5
"""A guest that stood still this long is asked to set its clock."""
STABLE_S = 60.0
"""A VM that ran this long has not crashed "again" when it next does."""
REVERT_WAITS = "reverts to its snapshot after its disk is copied for a replica, a backup or a clone"

BEGINS = frozenset((Step.START, Step.CONTINUE))
"""Steps that let a guest run which did not."""


class Reconciler:
    """Lets the VM be as its spec says. ``prepare_pages`` makes what a migration will need of an image."""

    def __init__(self, context: VmContext, prepare_pages: Callable[[LocalImage, Tenant], Awaitable[None]]) -> None:
        self._context = context
        self._services, self._machine = context.services, context.machine
        self._prepare_pages = prepare_pages
        self._clock = context.services.clock
        self._devices = Devices(self._machine, self._services.storage_pools, context.doing, self._volume_handled)
        self._requests = PowerRequests()
        self._started_at = 0.0
        self._images = ImageRequests(context)
        self._preparing: asyncio.Task[None] | None = None
        self._snapshot_done: wire.SnapshotWanted | None = None
        """What was last done about a snapshot, and said."""
        self._ways_back = snapshots.WaysBack(self._machine, self._clock)
        self._drives = Drives(self._machine, self._services, context.doing)
        self._nics = Nics(self._machine, self._services.networks, context.doing, self._clock)
        self._grow_error = self._drives_wait = ""
        self._balloon = context.balloon
        self._shrink_error = ""
        self._crashes: list[tuple[str, bool]] = []
        """What happened, and whether the VM had run for long: to be counted."""

    def resync(self) -> None:
        """Say everything again."""
        self._snapshot_done = None
        self._images.resync()
        self._devices.resync()

    def stop(self) -> None:
        """The worker ends."""
        self._context.guest.stop()
        if self._preparing is not None:
            self._preparing.cancel()

    def on_event(self, name: str) -> None:
        """QEMU says that something has happened."""
        self._requests.on_event(name)
        if name == "RESUME" and self._machine.stood_still_s >= CLOCK_BEHIND_S:
            self._context.guest.stood_still(self._machine.stood_still_s)
        elif name == "RESET":
            self._context.guest.booted()

    @property
    def reboots(self) -> bool:
        """The guest was asked to begin anew, and may do so by itself at any moment: it is not to leave before."""
        return self._requests.rebooting and not self._requests.overdue(self._clock.monotonic())

    def note_crash(self, what: str) -> None:
        """QEMU has ended, or hangs, unasked: the next step counts it."""
        self._crashes.append((what, self._clock.monotonic() - self._started_at > STABLE_S))

    async def _count_crashes(self) -> None:
        """A VM that ends unasked again soon is started again later, or never."""
        context = self._context
        while self._crashes:
            what, stable = self._crashes.pop(0)
            changes: dict[str, Any] = {"crashes": 1 if stable else context.record.crashes + 1}
            assignment = context.assignment
            if assignment is not None and assignment.spec.restart is Restart.NEVER:
                changes["halted_at_start"] = assignment.spec.starts
            await self._store_if_possible(**changes)
            log.warning("a VM crashed", vm=context.vm, what=what, crashes=context.record.crashes)

    async def step(self, assignment: wire.Assignment) -> float:
        """Do the next step; return when to look again, in seconds.

        Raises MachineFailed, MonitorFailed, NetworkFailed, OSError.
        """
        await self._count_crashes()
        run_state = await self._run_state(assignment)
        if run_state == "running":
            self._note_running()
        if run_state == "absent":  # also of a VM that can't start for one
            self._balloon.ended()
            await self._devices.settle(assignment)
        self._context.guest.look(run_state)
        now = self._clock.monotonic()
        await self._look_at_requests(assignment.spec, run_state, now)
        step = decide(assignment.spec, self._requests.situation(run_state, self._context.record, now))
        if step is Step.CONTINUE and run_state == snapshots.NOT_STARTED and self._is_to_load(assignment):
            step = Step.NOTHING  # the guest does not boot: it goes on from the snapshot
        if assignment.withheld and step in BEGINS and self._context.arrived_by is None:
            state = VmState.STARTING if step is Step.START else STATES.get(run_state, VmState.UNKNOWN)
            self._context.report(state, assignment.withheld, WaitCode.MAY_BE_ELSEWHERE)
            return IDLE_S
        if step is not Step.NOTHING:
            log.info("step", vm=self._context.vm, step=step, run_state=run_state)
            with self._context.doing(Action(step)):
                pause_s = await self._do(step, assignment, run_state, now)
            if pause_s is not None:
                return pause_s
        if run_state in ("running", "paused"):
            await self._settle_running(assignment)
        snapshots_wait = assignment.snapshots and not self._requests.stopping
        if snapshots_wait and (pause_s := await self._work_on(assignment.snapshots[0], run_state)) is not None:
            return pause_s
        self._report(assignment, run_state)
        return self._pause_s(assignment, now)

    async def _look_at_requests(self, spec: VmSpec, run_state: str, now: float) -> None:
        context, requests = self._context, self._requests
        requests.recall(context.record.anew_asked, now, self._clock.time())
        requests.look(spec, run_state, now)
        if (done := requests.begun_anew) is not None:
            changes: dict[str, Any] = {"reboots": max(context.record.reboots, done.reboots), "anew_asked": None}
            await self._store_if_possible(**changes)
            requests.recall(None, now, self._clock.time())

    async def _store_if_possible(self, **changes: object) -> None:
        """Remember what no promise hangs on: on a disk that is full it lives in memory alone."""
        context = self._context
        try:
            await context.store(**changes)
        except OSError as error:
            context.record = msgspec.structs.replace(context.record, **changes)
            log.error("what a VM did can't be recorded", vm=context.vm, what=sorted(changes), error=str(error))

    async def _run_state(self, assignment: wire.Assignment) -> str:
        try:
            return await self._machine.status()
        except MonitorFailed as error:
            if assignment.spec.power is not Power.STOPPED:
                raise
            # It hangs and is to be off: nothing that could be asked of it is worth waiting for.
            log.warning("a QEMU that does not answer is killed to stop it", vm=self._context.vm, error=str(error))
            return "unresponsive"

    def _note_running(self) -> None:
        """The guest runs: prepare for a migration, and say so if one has just ended."""
        context = self._context
        if self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(), name=f"prepare-{context.vm}")
        if context.arrived_by is not None:
            self._services.send(wire.Resumed(context.arrived_by))
            self._services.networks.arrived(context.vm)
            context.guest.stood_still(0.0)
            context.arrived_by = None

    async def _settle_running(self, assignment: wire.Assignment) -> None:
        """Let a VM that runs have the volumes, processors, memory and disk that it should have."""
        await self._devices.settle(assignment)
        self._drives_wait = await self._drives.settle(assignment)
        if not assignment.snapshots:
            await self._ways_back.settle()
        self._grow_error = await self._grow(assignment)
        machine = self._machine
        if machine.monitor is not None and machine.hardware is not None:
            wanted_mib = assignment.spec.balloon_mib
            self._shrink_error = await self._balloon.settle(machine.monitor, machine.pid, machine.hardware, wanted_mib)
        image = self._services.images.get(assignment.spec.image)
        if image is not None:
            await self._machine.grow(assignment.spec.disk_bytes(image.info.disk_bytes), self._context.doing)
        await self._nics.settle(assignment)

    def _lacks(self, spec: VmSpec) -> tuple[str, WaitCode | None]:
        """Return what a running guest does not get or do, and why."""
        guest = self._context.guest
        reasons = (
            self._requests.lacks(spec, self._clock.monotonic()),
            (self._context.repository_away, WaitCode.REPOSITORY_AWAY),
            (self._grow_error, WaitCode.CANT_GROW),
            (self._shrink_error, WaitCode.CANT_SHRINK),
            (self._drives_wait, WaitCode.IMAGE_MISSING),
            self._nics.lacks,
            (guest.unused, WaitCode.CANT_GROW),
            (guest.clock, WaitCode.GUEST_CLOCK_BEHIND),
        )
        return next(((words, code) for words, code in reasons if words), ("", None))

    def _report(self, assignment: wire.Assignment, run_state: str) -> None:
        context, spec = self._context, assignment.spec
        state = VmState.STOPPING if self._requests.stopping else STATES.get(run_state, VmState.UNKNOWN)
        halted = state is VmState.STOPPED and context.record.halted_at_start == spec.starts
        reason, code = self._lacks(spec) if run_state == "running" else ("", None)
        if run_state in ("running", "paused") and (closed := self._services.networks.closed.get(context.vm)):
            reason, code = closed, WaitCode.INTERFACE_CLOSED
        if context.record.post_copy is not None:
            reason, code = context.missing_memory_reason(), WaitCode.MEMORY_FOLLOWS
        elif halted and spec.power is Power.RUNNING:
            reason = (
                "crashed, and its restart policy does not start it again"
                if context.record.crashes
                else "powered off by the guest"
            )
        context.report(state, reason, code)

    def _pause_s(self, assignment: wire.Assignment, now: float) -> float:
        """Return when to look again, though nothing happens."""
        looks = (self._requests.next_look_s(assignment.spec, now), self._balloon.look_s, self._nics.look_s)
        return max(LOOK_AGAIN_S_MIN, min((look_s for look_s in looks if look_s is not None), default=IDLE_S))

    async def _do(self, step: Step, assignment: wire.Assignment, run_state: str, now: float) -> float | None:
        """Do a step; return when to look again, or None where there may be more to do at once."""
        context = self._context
        self._requests.asks(step, now)  # before: the guest may do it at once
        match step:
            case Step.START:
                wait_s = backoff_s(context.record.crashes) - (now - self._started_at)
                if self._started_at and wait_s > 0:
                    context.report(VmState.FAILED, f"crashed; starts again in {wait_s:.0f} s", WaitCode.CRASH_BACK_OFF)
                    return wait_s
                try:
                    return await self._start(assignment)
                except StartDelayed as delayed:
                    context.report(VmState.STARTING, str(delayed), WaitCode.START_QUEUED)
                    return delayed.wait_s
            case Step.CONTINUE:
                await self._note_start(assignment, run_state)
                await self._continue()
                return 0
            case Step.PAUSE:
                await self._machine.execute("stop")
                return 0
            case Step.REBOOT:
                await self._note_anew(AnewAsked(assignment.spec.reboots, self._clock.time()), now)
                confirmed = await guest_agent.ask_to_end(self._machine, "reboot")
                if not confirmed and self._requests.rebooting:
                    await self._reset()
                return 0
            case Step.RESET:
                await self._note_anew(AnewAsked(assignment.spec.reboots, 0.0), now, resets=assignment.spec.resets)
                await self._reset()
                return 0
            case Step.WAKE:
                await self._machine.execute("system_wakeup")
                return 0
            case Step.POWER_DOWN:
                return await self._power_down(assignment, run_state, now)
            case Step.KILL:
                if not self._is_to_be_off(assignment) and run_state not in ("inmigrate", LEFT):
                    self.note_crash(f"QEMU is in state {run_state}")
                context.exit_expected = True
                await self._machine.kill()
                return 0
            case Step.MAKE_ROOM:
                if (lacks := self._no_disk(assignment)) is not None:
                    context.report(VmState.PAUSED, *lacks)
                    return RETRY_S
                await self._continue()
                return 0
            case Step.MARK_HALTED:
                await context.store(halted_at_start=assignment.spec.starts, crashes=0)
                return 0
        return None

    async def _power_down(self, assignment: wire.Assignment, run_state: str, now: float) -> float | None:
        """Ask the guest to power itself off; return when to look again. Raises MonitorFailed."""
        if run_state == SUSPENDED:  # asleep, it would not notice
            await self._machine.execute("system_wakeup")
        self._services.run_in_background(guest_agent.power_off(self._machine))
        await self._machine.execute("system_powerdown")
        self._context.report(VmState.STOPPING)
        return self._requests.next_look_s(assignment.spec, now)

    def _no_disk(self, assignment: wire.Assignment) -> tuple[str, WaitCode] | None:
        """Return why a guest that stands still for its disk can't go on yet, or None if it can."""
        if away := self._context.repository_away:
            return away, WaitCode.REPOSITORY_AWAY
        full = self._devices.full(assignment, ROOM_BYTES)
        return None if full is None else (full, WaitCode.DISK_FULL)

    def _spec_for_start(self, assignment: wire.Assignment) -> VmSpec:
        return boot.for_start(assignment.spec, self._context.booted_once_at(assignment))

    async def _note_start(self, assignment: wire.Assignment, run_state: str) -> None:
        """Remember, before a guest begins from ``boot_once``, that it has: whatever ends it, it does so once."""
        self._context.check_may_run()
        begins = run_state == snapshots.NOT_STARTED
        if begins and boot.boots_once_from(self._spec_for_start(assignment)) is not None:
            await self._context.store(booted_once_at=assignment.spec.starts)

    async def _continue(self) -> None:
        """Let the guest execute. Raises MayNotRun, MonitorFailed."""
        self._context.check_may_run()
        self._machine.interfaces.drop_late_frames()
        await self._machine.execute("cont")

    async def _note_anew(self, asked: AnewAsked, now: float, **counts: int) -> None:
        """Remember that the guest is to begin anew, until it has: whatever ends this agent meanwhile, it will."""
        await self._context.store(anew_asked=asked, **counts)
        self._requests.recall(asked, now, self._clock.time())

    async def _reset(self) -> None:
        """Let the guest begin anew. Memory that was added becomes part of what it begins with: a guest does not use
        modules by itself when it boots. Raises MonitorFailed."""
        hardware, withheld = self._machine.hardware, self._context.assigned().withheld
        if hardware is None or not hardware.dimms_mib or withheld:  # what is withheld could not be started again
            await self._machine.execute("system_reset")
            self._requests.was_reset()
            return
        await self._machine.execute("stop")  # QEMU writes out what it holds of the disks
        self._context.exit_expected = True
        await self._machine.kill()  # the next step starts it

    async def _work_on(self, snapshot: wire.SnapshotWanted, run_state: str) -> float | None:
        """Work on a snapshot, once; return when to look again, or None where there was nothing to do."""
        context, copying = self._context, self._machine.copying
        if self._snapshot_done == snapshot:
            return None
        if snapshot.phase is not SnapshotPhase.REVERTING:
            return await self._work_alone(snapshot, run_state)
        # The copy would be of no moment that the disk ever had. Nobody waits here: who copies may wait for this worker.
        if copying.locked():
            log.info("a revert waits until the disk is copied", vm=context.vm, snapshot=snapshot.id)
            context.report(STATES.get(run_state, VmState.UNKNOWN), REVERT_WAITS, WaitCode.DISK_BEING_COPIED)
            return RETRY_S
        async with copying:
            return await self._work_alone(snapshot, run_state)

    async def _work_alone(self, snapshot: wire.SnapshotWanted, run_state: str) -> float:
        context = self._context
        error, code, done = "", "", snapshots.NOTHING_TO_TELL
        reverting, starting = snapshot.phase is SnapshotPhase.REVERTING, run_state == snapshots.NOT_STARTED
        context.exit_expected = reverting and (starting or not snapshot.memory)
        try:
            with context.doing(Action.SNAPSHOT, snapshot=snapshot.id, phase=snapshot.phase):
                context.check_may_run()  # to go back to a snapshot lets the guest go on
                done = await snapshots.work(self._machine, snapshot, run_state, context.disk_key())
            if reverting and snapshot.memory:
                context.guest.stood_still(inf)
        except (SnapshotFailed, KeyMissing) as failure:
            error, code = str(failure), code_of(failure)
            if reverting and starting and snapshot.starts_vm:  # it was off, and is off
                await context.store(halted_at_start=self._context.spec().starts)
        self._snapshot_done = snapshot
        self._ways_back.expect()
        log.info("a snapshot was worked on", vm=context.vm, snapshot=snapshot.id, phase=snapshot.phase, error=error)
        self._services.send(
            wire.SnapshotStands(
                context.vm,
                context.record.held.epoch,
                snapshot.id,
                snapshot.phase,
                error,
                done.pause_ms,
                done.layout,
                code,
            )
        )
        return 0

    def _is_to_load(self, assignment: wire.Assignment) -> bool:
        """Say whether the VM is to have the memory of a snapshot next."""
        first = next(iter(assignment.snapshots), None)
        is_to = first is not None and first.memory and first.phase is SnapshotPhase.REVERTING
        return is_to and first != self._snapshot_done

    async def _grow(self, assignment: wire.Assignment) -> str:
        """Give the guest what it should have of processors and memory; return why it does not get it."""
        try:
            if await self._machine.grow_hardware(assignment.spec, self._services.accelerator, self._context.doing):
                self._context.guest.was_given_hardware()
        except MonitorFailed as error:
            log.warning("a guest can't grow", vm=self._context.vm, error=str(error))
            return f"it can't grow while it runs: {error}"
        return ""

    def _is_to_be_off(self, assignment: wire.Assignment) -> bool:
        return assignment.spec.power is Power.STOPPED or self._context.record.halted_at_start == assignment.spec.starts

    async def _start(self, assignment: wire.Assignment) -> float:
        context = self._context
        if (why := self._images.lacks(assignment.spec.image, assignment.image_digest)) is not None:
            context.report(VmState.STARTING, why, WaitCode.IMAGE_MISSING)
            return RETRY_S
        if assignment.spec.ha and not self._services.lease.valid():
            why = "waits for its node's lease: the control plane has not acknowledged a heartbeat recently"
            context.report(VmState.STARTING, why, WaitCode.LEASE_ENDED)
            return RETRY_S
        try:
            media = context.media()
        except MediaMissing as missing:
            self._images.ask(missing.name)
            context.report(VmState.STARTING, str(missing), WaitCode.IMAGE_MISSING)
            return RETRY_S
        if any(volume.making for volume in assignment.volumes):
            context.report(VmState.STARTING, "waits until its other disks are created", WaitCode.DISK_BEING_MADE)
            return RETRY_S
        self._images.reset()
        image = context.image()
        if assignment.machine and image.disk is not None and not self._machine.has_disk():
            why = "its disk is missing on its node, although it has run before; see: novacron vm recover"
            context.report(VmState.FAILED, why, WaitCode.DISK_LOST)
            return RETRY_S
        if not context.failures:  # else it stays failed with the reason: no events for each attempt
            context.report(VmState.STARTING, *self._start_waits(assignment))
        context.exit_expected = False
        self._started_at = self._clock.monotonic()
        kept, machine = context.kept_hardware(assignment)
        cpu, spec = assignment.cpu or kept or self._services.cpu, self._spec_for_start(assignment)
        assignment = msgspec.structs.replace(assignment, cpu=cpu, spec=spec)
        async with self._services.start_queue.slot(assignment.project, spec.start_order, spec.start_delay_s):
            context.check_may_run()
            machine_type = await self._machine.start(
                StartRequest(
                    assignment,
                    image,
                    self._services.accelerator,
                    assignment.spec.machine or machine_of(machine, assignment.spec.firmware),
                    lambda: opened(self._services.storage_pools, assignment.volumes),
                    incoming=False,
                    paused=self._is_to_load(assignment) or boot.boots_once_from(spec) is not None,
                    media=media,
                )
            )
        await context.store(
            machine=machine_type, cpu=assignment.cpu, halted_at_start=None, reboots=assignment.spec.reboots,
            resets=assignment.spec.resets, hardware_renewals=assignment.spec.hardware_renewals, anew_asked=None,
        )  # fmt: skip
        return 0

    def _start_waits(self, assignment: wire.Assignment) -> tuple[str, WaitCode | None]:
        """Return what a start will wait for, if that is known already."""
        for nic in assignment.spec.nics:
            trouble = self._services.networks.trouble(nic.network)
            if trouble is not None:
                return f"waits for network {nic.network}: {trouble}", WaitCode.NETWORK_NOT_READY
        if self._services.start_queue.full(assignment.project, assignment.spec.start_order):
            return "waits until other VMs on its node have started", WaitCode.START_QUEUED
        return "", None

    def _volume_handled(self, id: str, released: bool, error: str, code: str) -> None:
        epoch = self._context.record.held.epoch
        self._services.send(wire.VolumeHandled(self._context.vm, epoch, id, released, error, code))

    async def _prepare(self) -> None:
        """Make what a migration of this VM will need of its image."""
        with contextlib.suppress(MachineFailed, OSError):  # it is made then
            await self._prepare_pages(self._context.image(), self._context.tenant())
