"""The worker of one VM on this node: looks at what it was told and at QEMU, does the next step, reports.

It may be killed at any point: everything that must outlive it is in the journal before it is acted on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from novacron.agent import clones, guest, outgoing, snapshots
from novacron.agent.cloning import Cloning
from novacron.agent.decide import STATES, Step, backoff_s, decide
from novacron.agent.devices import Devices, opened
from novacron.agent.giving import Giving
from novacron.agent.guest import GuestWatch
from novacron.agent.home import DISK_LAYER
from novacron.agent.identity import Identity
from novacron.agent.journal import Journal, Record
from novacron.agent.lease import NodeLease
from novacron.agent.machine import Machine, MachineFailed
from novacron.agent.networks import Networks
from novacron.agent.pages import Neighbour, Pages, Tenant
from novacron.agent.passthrough import Passthrough
from novacron.agent.settings import Settings
from novacron.agent.snapshots import SnapshotFailed
from novacron.agent.taking import Taking
from novacron.agent.turns import Turns
from novacron.agent.volumes import Pools
from novacron.disk.images import Image
from novacron.dwcp.connection import Pool
from novacron.dwcp.receiver import Listener
from novacron.model import limits
from novacron.model.cpu import CpuModel
from novacron.model.migration import Kind, Side
from novacron.model.node import AcceleratorKind
from novacron.model.ownership import Claim, OrderKind, Verdict, obey
from novacron.model.snapshot import SnapshotPhase
from novacron.model.vm import Power, Restart, VmSpec, VmState, VmStatus
from novacron.net.tap import NetworkFailed
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

IDLE_S = 60.0
LOST_AFTER_S = 5.0
"""What an earlier agent was sending, and the target does not have by then, it will not get."""
RETRY_S = 2.0
KNOWN_S_MAX = 30.0
ROOM_BYTES = 64 << 20
"""With so much free again, a VM whose disk was full goes on."""
STABLE_S = 60.0
"""A VM that ran this long has not crashed "again" when it next does."""


class Host(msgspec.Struct):
    """What the workers of a node share."""

    settings: Settings
    identity: Identity
    journal: Journal
    listener: Listener
    images: dict[str, Image]
    accelerator: AcceleratorKind
    cpu: CpuModel | None
    endpoint: str
    pool: Pool
    pages: Pages
    worker: Callable[[str], Worker | None]
    """Of another VM on this node."""
    neighbours: Callable[[], list[Neighbour]]
    """The VMs that run on this node."""
    aside: Callable[[Coroutine[Any, Any, None]], None]
    """Start work that nobody waits for."""
    pools: Pools
    turns: Turns
    """Of VMs that start."""
    lease: NodeLease
    networks: Networks
    passthrough: Passthrough
    send: Callable[[wire.Message], None]
    """Queue a message for the server; it is dropped while there is no connection."""


class Worker:
    """Owns everything that this node has of one VM."""

    def __init__(self, vm: str, record: Record, host: Host) -> None:
        self.vm = vm
        self.record = record
        self.machine = Machine(vm, host.settings, host.networks, host.passthrough, self._on_event)
        self.finished = False
        self.host = host
        self.statement: wire.Statement | None = None
        """The server's latest word about this VM."""
        self._wake = asyncio.Event()
        self.migration_changed = asyncio.Event()
        """Set whenever QEMU says something about its migration."""
        self._giving, self._taking = Giving(self), Taking(self)
        self.guest = GuestWatch(self.machine, self.wake)
        self._devices = Devices(self.machine, host.pools, self._volume_handled)
        self._stopping_at: float | None = None
        self._resetting_at: float | None = None
        """When the guest was asked to begin anew."""
        self._started_at = 0.0
        self.expected_exit = False
        """QEMU's end, when it comes, was asked for."""
        self._reported: wire.Observed | None = None
        self._assignment: wire.Assignment | None = None
        self._began_at = time.monotonic()
        self._preparing: asyncio.Task[None] | None = None
        self._known = asyncio.Event()
        """A QEMU that an earlier agent left is found, and the server has said what is to be."""
        self.lock = asyncio.Lock()
        """Held while a step is done: the disk is in nobody else's hands then."""
        self._cloning = Cloning(self)
        self._snapshot_done: wire.SnapshotWanted | None = None
        """What was last done about a snapshot, and said."""
        self._grow_error = ""
        self._left = False
        """The guest has left, as far as the network goes; its memory is still needed."""

    # what the agent uses

    def tell(self, statement: wire.Statement) -> None:
        """Take the server's latest word about this VM."""
        if statement != self.statement:
            self.statement = statement
            self._wake.set()

    def neighbour(self) -> Neighbour | None:
        """Return the VM as others see it, if it runs here."""
        wanted = self._assignment
        if wanted is None or self.record.held.claim is not Claim.OWNER or self.machine.pid is None:
            return None
        if self.record.post_copy is not None:  # who reads a page that is not there yet would wait for it
            return None
        return Neighbour(self.vm, self.tenant(), wanted.spec.image, self.machine, self._memory_bytes(wanted))

    def _memory_bytes(self, wanted: wire.Assignment) -> int:
        """Return the size of the memory with which the guest was started."""
        has = self.machine.hardware
        return (has.memory_mib if has is not None else wanted.spec.memory_mib) << 20

    async def known(self) -> None:
        """Return once it is known whether the VM runs. Raises MachineFailed when that takes long."""
        try:
            await asyncio.wait_for(self._known.wait(), KNOWN_S_MAX)
        except TimeoutError:
            raise MachineFailed(f"it is not known how VM {self.vm} is") from None

    def is_knocked(self, session: str, peer: str) -> None:
        """A node would begin a session with this one that is not expected."""
        self._taking.is_knocked(session, peer)

    def lease_is_over(self) -> None:
        """A VM that may be started elsewhere now is left alone here until the server says again whose it is."""
        if self._assignment is not None and self._assignment.spec.ha:
            self.statement = None

    def wake(self) -> None:
        """Something has changed: look again."""
        self._wake.set()

    def resync(self) -> None:
        """The link is new: say everything again."""
        self._reported = self._snapshot_done = None
        self._devices.resync()
        self._wake.set()

    async def run(self) -> None:
        """Work until nothing is left of the VM here."""
        try:
            await self._adopt()
            while not self.finished:
                self._wake.clear()
                pause_s = await self._try_step()
                if pause_s > 0 and not self.finished:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), pause_s)
        finally:
            await self._cancel_transfer()
            await self._cloning.cancel()
            self.guest.stop()
            if self._preparing is not None:
                self._preparing.cancel()
            await self.machine.detach()

    # steps

    async def _adopt(self) -> None:
        try:
            if await self.machine.adopt():
                log.info("adopted a running QEMU", vm=self.vm, pid=self.machine.pid)
                if self.record.post_copy is None:
                    await outgoing.abandon(self.machine)
            if self.record.post_copy is None:  # else QEMU may wait for memory, and answers nobody
                await clones.abandon(self.machine)
        except (MonitorFailed, TimeoutError) as error:
            log.warning("a QEMU does not answer", vm=self.vm, error=str(error))

    async def _try_step(self) -> float:
        try:
            async with self.lock:
                return await self._step()
        except (MachineFailed, MonitorFailed, NetworkFailed, OSError, TimeoutError) as error:
            log.warning("step failed", vm=self.vm, error=str(error))
            if self._taking.pulls and self.machine.pid is not None and self.record.held.claim is Claim.OWNER:
                self.report(VmState.RUNNING, self._follows())  # QEMU may wait for memory: that is no failure
            elif self.record.held.claim is Claim.OWNER:
                self.report(VmState.FAILED, str(error) or type(error).__name__)
            return RETRY_S
        except Exception:  # a defect met with one VM must not take the others' worker away
            log.exception("defect in a worker", vm=self.vm)
            return IDLE_S

    async def _step(self) -> float:
        statement = self.statement
        if statement is None:
            return IDLE_S
        moved = self.record.held.claim is Claim.RELEASED
        held, verdict = obey(self.record.held, statement.order)
        if held != self.record.held:
            later = held.epoch != self.record.held.epoch
            self.store(held=held)
            if later:
                await self._end_transfers(verdict)
        if statement.deleted and self._giving.serves:
            await self._cancel_transfer()
            self.store(post_copy=None)
        self._giving.go_on()
        self._taking.go_on()
        match verdict:
            case Verdict.RUN:
                return await self._run(statement)
            case Verdict.RECEIVE if self._giving.serves:
                assert statement.task is not None
                why = "its memory is still on its way from here to where it runs"
                self.host.send(wire.MigrationFailed(statement.task.migration, why))
            case Verdict.DESTROY if self._giving.serves:
                if not self._left:
                    await self.machine.leave()
                    self._left = True
            case Verdict.RECEIVE:
                assert statement.task is not None and statement.assignment is not None
                await self._taking.step(statement.task, statement.assignment)
            case Verdict.DESTROY:
                await self.destroy(moved=moved or self._left)
                self._left = False
                if statement.order.kind is OrderKind.GONE:
                    self.host.send(wire.Removed(self.vm))
                    self.finished = statement is self.statement
                return 0
            case Verdict.HOLD:
                return self._repeat_promise(statement)
        return IDLE_S

    def store(self, **changes: Any) -> None:
        """Remember durably; what could not be written, on a full disk for example, is not remembered at all."""
        record = msgspec.structs.replace(self.record, **changes)
        self.host.journal.store(self.vm, record)
        self.record = record

    async def destroy(self, *, moved: bool = False) -> None:
        """End QEMU and remove every trace of the VM; if it has ``moved``, what it had in memory here is kept."""
        await self._cancel_transfer()
        await self._cloning.cancel()
        self.expected_exit = True
        known = self._assignment
        if moved:
            await self.machine.leave()
            if known is not None:
                await self.host.pages.keep(self.vm, self.machine, self._memory_bytes(known), self.tenant())
                self._giving.tell_left()
        await self.machine.destroy()
        if self.record.post_copy is not None:
            self.store(post_copy=None)

    # owner

    async def _run(self, statement: wire.Statement) -> float:
        wanted = self._assignment = statement.assignment
        assert wanted is not None
        self._known.set()
        if wanted.deleting:
            await self.destroy()
            await self.host.pages.forget(self.vm, self.tenant(), deleted=True)
            self.store(held=msgspec.structs.replace(self.record.held, claim=Claim.NONE))
            self.report(VmState.ABSENT)
            return IDLE_S
        if wanted.clone_of is not None:
            self._cloning.go_on(wanted.clone_of)
            return IDLE_S
        await clones.settle(self.machine)
        task = statement.task
        if task is not None and task.side is Side.SOURCE:
            if wanted.spec.power is Power.STOPPED and task.kind is not Kind.COLD:
                await self._giving.fail(task.migration, "the VM was stopped on request")
            elif await self._giving.step(task):
                return IDLE_S
        return await self._power(wanted)

    async def _power(self, wanted: wire.Assignment) -> float:
        try:
            run_state = await self.machine.status()
        except MonitorFailed as error:
            if wanted.spec.power is not Power.STOPPED:
                raise
            # It hangs and is to be off: nothing that could be asked of it is worth waiting for.
            log.warning("a QEMU that does not answer is killed to stop it", vm=self.vm, error=str(error))
            run_state = "unresponsive"
        if run_state == "running" and self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(), name=f"prepare-{self.vm}")
        if run_state == "running" and self._taking.arriving is not None:
            self.host.send(wire.Resumed(self._taking.arriving))
            self.host.networks.arrived(self.vm)
            self._taking.arriving = None
        if run_state == "absent":  # also of a VM that can't start for one
            await self._devices.settle(wanted)
        self.guest.look(run_state)
        now = time.monotonic()
        step = decide(
            wanted.spec,
            run_state,
            halted_at_start=self.record.halted_at_start,
            reboots=self.record.reboots,
            resets=self.record.resets,
            rebooting_s=None if self._resetting_at is None else now - self._resetting_at,
            stopping_s=None if self._stopping_at is None else now - self._stopping_at,
        )
        if step is not Step.NOTHING:
            log.info("step", vm=self.vm, step=step, run_state=run_state)
        match step:
            case Step.START:
                wait_s = backoff_s(self.record.crashes) - (now - self._started_at)
                if self._started_at and wait_s > 0:
                    self.report(VmState.FAILED, f"crashed; starts again in {wait_s:.0f} s")
                    return wait_s
                return await self._start(wanted)
            case Step.CONTINUE:
                self.machine.drop_late_frames()
                await self.machine.execute("cont")
                if run_state == "paused":
                    self.host.aside(guest.set_time(self.machine))
                return 0
            case Step.PAUSE:
                await self.machine.execute("stop")
                return 0
            case Step.REBOOT:
                self.store(reboots=wanted.spec.reboots)
                if await guest.ask_to_end(self.machine, "reboot"):
                    self._resetting_at = now
                else:
                    await self.machine.execute("system_reset")
                return 0
            case Step.RESET:
                self._resetting_at = None
                self.store(reboots=wanted.spec.reboots, resets=wanted.spec.resets)
                await self.machine.execute("system_reset")
                return 0
            case Step.POWER_DOWN:
                self._stopping_at = now
                self.host.aside(guest.power_off(self.machine))
                await self.machine.execute("system_powerdown")
                self.report(VmState.STOPPING)
                return wanted.spec.stop_timeout_s
            case Step.KILL:
                if not self._is_to_be_off(wanted) and run_state != "inmigrate":
                    self._count_crash(f"QEMU is in state {run_state}")
                self.expected_exit = True
                await self.machine.kill()
                self._stopping_at = None
                return 0
            case Step.MAKE_ROOM:
                if (full := self._devices.full(wanted, ROOM_BYTES)) is not None:
                    self.report(VmState.PAUSED, full)
                    return RETRY_S
                await self.machine.execute("cont")
                return 0
            case Step.MARK_HALTED:
                self.store(halted_at_start=wanted.spec.starts, crashes=0)
                return 0
        if run_state in ("running", "paused"):
            await self._devices.settle(wanted)
            self._grow_error = await self._grow(wanted)
        if run_state in ("running", "paused") and (image := self.host.images.get(wanted.spec.image)) is not None:
            await self.machine.grow(wanted.spec.disk_bytes(image.info.disk_bytes))
        if wanted.snapshots and self._stopping_at is None and await self._work_on(wanted.snapshots[0], run_state):
            return 0
        if run_state == "absent":
            self._stopping_at = None
        state = VmState.STOPPING if self._stopping_at is not None else STATES.get(run_state, VmState.FAILED)
        halted = state is VmState.STOPPED and self.record.halted_at_start == wanted.spec.starts
        reason = ""
        if halted and wanted.spec.power is Power.RUNNING:
            reason = "crashed, and is not to be started again" if self.record.crashes else "powered off by the guest"
        if self.record.post_copy is not None:
            reason = self._follows()
        self.report(state, reason or (self._grow_error if run_state == "running" else ""))
        if self._resetting_at is not None:
            return max(0.05, limits.REBOOT_S_MAX - (now - self._resetting_at))
        if self._stopping_at is not None:
            return max(0.05, wanted.spec.stop_timeout_s - (now - self._stopping_at))
        return IDLE_S

    async def _work_on(self, wanted: wire.SnapshotWanted, run_state: str) -> bool:
        """Do what there is to do about a snapshot, once; say whether there was anything."""
        if self._snapshot_done == wanted:
            return False
        error, pause_ms = "", None
        self.expected_exit = wanted.phase is SnapshotPhase.REVERTING and not wanted.memory
        try:
            pause_ms = await snapshots.work(self.machine, wanted, run_state)
        except SnapshotFailed as failure:
            error = str(failure)
        self._snapshot_done = wanted
        log.info("a snapshot was worked on", vm=self.vm, snapshot=wanted.id, phase=wanted.phase, error=error)
        self.host.send(wire.SnapshotStands(self.vm, self.record.held.epoch, wanted.id, wanted.phase, error, pause_ms))
        return True

    async def _grow(self, wanted: wire.Assignment) -> str:
        """Give the guest what it should have of processors and memory; return why it does not get it."""
        try:
            if await self.machine.grow_hardware(wanted.spec, self.host.accelerator):
                self.host.aside(guest.take_hardware(self.machine))
        except MonitorFailed as error:
            log.warning("a guest can't grow", vm=self.vm, error=str(error))
            return f"it can't grow while it runs: {error}"
        return ""

    def _is_to_be_off(self, wanted: wire.Assignment) -> bool:
        return wanted.spec.power is Power.STOPPED or self.record.halted_at_start == wanted.spec.starts

    def _follows(self) -> str:
        moving = self.record.post_copy
        return "" if moving is None else f"its memory is still on its way from node {moving.peer}"

    async def _start(self, wanted: wire.Assignment) -> float:
        if wanted.spec.image not in self.host.images:
            self.host.send(wire.ImageMissing(wanted.spec.image))
            self.report(VmState.STARTING, f"waits for image {wanted.spec.image} from another node")
            return RETRY_S
        if wanted.spec.ha and not self.host.lease.valid():
            self.report(VmState.STARTING, "waits for this node's lease")
            return RETRY_S
        image = self.image()
        if wanted.machine and not self.record.machine and image.disk is not None and not self.machine.has_disk():
            self.report(VmState.FAILED, "its disk is not here: this host has taken the place of the one that had it")
            return RETRY_S
        self.report(VmState.STARTING)
        self.expected_exit = False
        self._started_at = time.monotonic()
        wanted = msgspec.structs.replace(wanted, cpu=wanted.cpu or self.record.cpu or self.host.cpu)
        async with self.host.turns.turn(wanted.spec.start_order):
            machine_type = await self.machine.start(
                wanted, image, self.host.accelerator, self.record.machine or wanted.machine,
                lambda: opened(self.host.pools, wanted.volumes), incoming=False,
            )  # fmt: skip
        self.store(
            machine=machine_type, cpu=wanted.cpu, halted_at_start=None, reboots=wanted.spec.reboots,
            resets=wanted.spec.resets,
        )  # fmt: skip
        return 0

    def _volume_handled(self, id: str, released: bool, error: str) -> None:
        self.host.send(wire.VolumeHandled(self.vm, self.record.held.epoch, id, released, error))

    async def _prepare(self) -> None:
        """Make what a migration of this VM will need of its image."""
        with contextlib.suppress(MachineFailed, OSError):  # it is made then
            await self.host.pages.prepare(self.image(), self.tenant())

    def image(self) -> Image:
        """Return the VM's image. Raises MachineFailed when this node does not hold it."""
        assert self._assignment is not None
        name = self._assignment.spec.image
        image = self.host.images.get(name)
        if image is None:
            raise MachineFailed(f"this node does not hold image {name}")
        return image if self._assignment.spec.own_disk else image.without_disk()

    def image_name(self) -> str | None:
        """Return of which image the VM is, as far as this node has been told."""
        told = self.statement.assignment if self.statement is not None else None
        return None if told is None else told.spec.image

    def spec(self) -> VmSpec:
        """Return what the VM is to be."""
        assert self._assignment is not None
        return self._assignment.spec

    def moving_files(self) -> list[Path]:
        """Return the files of the disks that move with the VM, as they lie here."""
        own = [self.machine.directory / DISK_LAYER, *self.machine.home.shared()]
        volumes = [self.host.pools.path(one.pool, one.id) for one in self.volumes() if one.moves]
        return [path for path in own + volumes if path.exists()]

    def volumes(self) -> tuple[wire.VolumeAttached, ...]:
        """Return the volumes that the VM has."""
        return () if self._assignment is None else self._assignment.volumes

    def disk_bytes(self, image: Image) -> int:
        """Return the size of the VM's disk, 0 for none."""
        assert self._assignment is not None
        return self._assignment.spec.disk_bytes(image.info.disk_bytes)

    def tenant(self) -> Tenant:
        """Return to whom the VM's pages belong."""
        assert self._assignment is not None
        return Tenant(self._assignment.project, self._assignment.page_key)

    def _repeat_promise(self, statement: wire.Statement) -> float:
        """The server may not have heard it: a vote is repeated until a later epoch comes. Return when to look again."""
        if self.record.held.claim is Claim.RELEASED and statement.task is not None:
            task = statement.task
            self.host.send(wire.Voted(task.migration, Side.SOURCE, task.epoch))
            lost = not self._giving.gave(task.migration) and self.record.post_copy is None
            if lost and time.monotonic() - self._began_at > LOST_AFTER_S:
                # By then the target would have said that it has everything; and the epoch moves on only once.
                why = "its agent restarted when it had promised, and what was on its way is lost"
                self.host.send(wire.MigrationFailed(task.migration, why))
            return RETRY_S
        if self.record.held.claim is Claim.NONE and statement.assignment is not None and statement.assignment.deleting:
            self.report(VmState.ABSENT)
        return IDLE_S

    async def _end_transfers(self, verdict: Verdict) -> None:
        """End what belongs to an earlier epoch, but not memory that a guest that has left, or come, still needs."""
        if self._giving.serves:
            if verdict is Verdict.RUN:
                await self._giving.take_back()
        elif not (self._taking.pulls and verdict is Verdict.RUN):
            await self._cancel_transfer()

    async def _cancel_transfer(self) -> None:
        await self._giving.cancel()
        await self._taking.cancel()

    # events and reports

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        if name in ("MIGRATION", "MIGRATION_PASS", "EXIT"):
            self.migration_changed.set()
        self._giving.on_event(name, data)
        if name in ("RESET", "EXIT"):
            self._resetting_at = None
        lost = self.machine.kept and not self.host.lease.valid()
        if name == "EXIT" and not self.expected_exit and not lost and self.record.held.claim is Claim.OWNER:
            self._count_crash(f"QEMU ended by itself: {self.machine.last_words()}")
        self._wake.set()

    def _count_crash(self, what: str) -> None:
        """A VM that ends unasked again soon is started again later, or never."""
        stable = time.monotonic() - self._started_at > STABLE_S
        changes: dict[str, Any] = {"crashes": 1 if stable else self.record.crashes + 1}
        wanted = self._assignment
        if wanted is not None and wanted.spec.restart is Restart.NEVER:
            changes["halted_at_start"] = wanted.spec.starts
        try:
            self.store(**changes)
        except OSError as error:
            # No promise hangs on this, so it may live in memory alone.
            self.record = msgspec.structs.replace(self.record, **changes)
            log.error("a crash can't be written down", vm=self.vm, error=str(error))
        log.warning("a VM crashed", vm=self.vm, what=what, crashes=self.record.crashes)

    def _is_kept(self) -> bool:
        if self.machine.pid is not None:
            return self.machine.kept
        return self._assignment is not None and self._assignment.spec.ha

    def report(self, state: VmState, reason: str = "") -> None:
        """Tell the server how the VM is, unless that is what it was told last."""
        told = self.statement.assignment if self.statement is not None else None
        was_started_as = "" if told is None else told.machine  # by a host whose place this one has taken
        status = VmStatus(
            state=state,
            reason=reason[:500],
            accelerator=self.host.accelerator,
            machine=self.record.machine or was_started_as,
            cpu=self.record.cpu,
            pid=self.machine.pid or 0,
            reboots=self.record.reboots,
            halted_at_start=self.record.halted_at_start,
            crashes=self.record.crashes,
            resets=self.record.resets,
            guest=self.guest.known,
            hardware=self.machine.hardware,
            kept=self._is_kept(),
        )
        # With the epoch: the server does not take what is said at an earlier one.
        report = wire.Observed(self.vm, self.record.held.epoch, status)
        if report != self._reported:
            self._reported = report
            self.host.send(report)
