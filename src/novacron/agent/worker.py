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
import structlog

from novacron.agent.actions import Action, doing
from novacron.agent.host.lease import NodeLease
from novacron.agent.host.networks import Networks
from novacron.agent.host.passthrough import Passthrough
from novacron.agent.host.volumes import Pools
from novacron.agent.identity import Identity
from novacron.agent.migration import source_stream
from novacron.agent.migration.known_pages import Neighbour, Pages, Tenant
from novacron.agent.migration.source import Giving
from novacron.agent.migration.target import Taking
from novacron.agent.settings import Settings
from novacron.agent.vm import clone_disk
from novacron.agent.vm.clone_reconciler import Cloning
from novacron.agent.vm.directory import DISK_LAYER
from novacron.agent.vm.journal import Journal, Record
from novacron.agent.vm.machine import Machine, MachineFailed
from novacron.agent.vm.reconciler import IDLE_S, RETRY_S, Owning
from novacron.agent.vm.start_queue import Turns
from novacron.disk.images import Image
from novacron.dwcp.connection import Pool
from novacron.dwcp.receiver import Listener
from novacron.model.cpu import CpuModel
from novacron.model.migration import Kind, Side
from novacron.model.node import AcceleratorKind
from novacron.model.ownership import Claim, OrderKind, Verdict, obey
from novacron.model.vm import Power, VmSpec, VmState, VmStatus
from novacron.net.tap import NetworkFailed
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.telemetry.values import counter, histogram
from novacron.wire import messages as wire

log = logs.get(__name__)

LOST_AFTER_S = 5.0
"""What an earlier agent was sending, and the target does not have by then, it will not get."""
KNOWN_S_MAX = 30.0


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


def trace_of(statement: wire.Statement) -> str:
    """Return to which trace belongs what was asked for last."""
    if statement.task is not None:
        return statement.task.trace
    return "" if statement.assignment is None else statement.assignment.trace


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
        self._giving, self.taking = Giving(self), Taking(self)
        self.expected_exit = False
        """QEMU's end, when it comes, was asked for."""
        self._reported: wire.Observed | None = None
        self.assignment: wire.Assignment | None = None
        """How the VM is to be, as far as it has been looked at."""
        self._began_at = time.monotonic()
        self._known = asyncio.Event()
        """A QEMU that an earlier agent left is found, and the server has said what is to be."""
        self.lock = asyncio.Lock()
        """Held while a step is done: the disk is in nobody else's hands then."""
        self._cloning = Cloning(self)
        self._owning = Owning(self)
        self.trace = ""
        """To which trace belongs what is done, until the VM is as it was asked for."""
        self._left = False
        """The guest has left, as far as the network goes; its memory is still needed."""

    # what the agent uses

    def tell(self, statement: wire.Statement) -> None:
        """Take the server's latest word about this VM."""
        if statement != self.statement:
            was, self.statement = self.statement, statement
            trace = trace_of(statement)
            if was is None or trace != trace_of(was) or statement.order != was.order:
                self.trace = trace
            self._wake.set()

    def neighbour(self) -> Neighbour | None:
        """Return the VM as others see it, if it runs here."""
        wanted = self.assignment
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

    def called(self) -> tuple[str, str]:
        """Return the VM's name and project, empty while it is not known."""
        told = self.assignment or (self.statement.assignment if self.statement is not None else None)
        return ("", "") if told is None else (told.name, told.project)

    def is_knocked(self, session: str, peer: str) -> None:
        """A node would begin a session with this one that is not expected."""
        self.taking.is_knocked(session, peer)

    def lease_is_over(self) -> None:
        """A VM that may be started elsewhere now is left alone here until the server says again whose it is."""
        if self.assignment is not None and self.assignment.spec.ha:
            self.statement = None

    def wake(self) -> None:
        """Something has changed: look again."""
        self._wake.set()

    def resync(self) -> None:
        """The link is new: say everything again."""
        self._reported = None
        self._owning.resync()
        self._wake.set()

    async def run(self) -> None:
        """Work until nothing is left of the VM here."""
        structlog.contextvars.bind_contextvars(vm=self.vm)  # of this task
        try:
            await self._adopt()
            while not self.finished:
                self._wake.clear()
                pause_s = await self._try_step()
                if pause_s >= IDLE_S:  # all is as it was asked for: what is done later has other reasons
                    self.trace = ""
                if pause_s > 0 and not self.finished:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), pause_s)
        finally:
            await self._cancel_transfer()
            await self._cloning.cancel()
            self._owning.stop()
            await self.machine.detach()

    # steps

    async def _adopt(self) -> None:
        try:
            if await self.machine.adopt():
                log.info("adopted a running QEMU", vm=self.vm, pid=self.machine.pid)
                if self.record.post_copy is None:
                    await source_stream.abandon(self.machine)
            if self.record.post_copy is None:  # else QEMU may wait for memory, and answers nobody
                await clone_disk.abandon(self.machine)
        except (MonitorFailed, TimeoutError) as error:
            log.warning("a QEMU does not answer", vm=self.vm, error=str(error))

    async def _try_step(self) -> float:
        began, outcome = time.perf_counter(), "failed"
        try:
            async with self.lock:
                pause_s = await self._step()
            outcome = "done"
            return pause_s
        except (MachineFailed, MonitorFailed, NetworkFailed, OSError, TimeoutError) as error:
            log.warning("step failed", vm=self.vm, error=str(error))
            if self.taking.pulls and self.machine.pid is not None and self.record.held.claim is Claim.OWNER:
                self.report(VmState.RUNNING, self.follows())  # QEMU may wait for memory: that is no failure
            elif self.record.held.claim is Claim.OWNER:
                self.report(VmState.FAILED, str(error) or type(error).__name__)
            return RETRY_S
        except Exception:  # a defect met with one VM must not take the others' worker away
            log.exception("defect in a worker", vm=self.vm)
            return IDLE_S
        finally:
            counter("novacron_agent_steps_total").add(outcome)
            histogram("novacron_agent_step_duration_seconds").observe(time.perf_counter() - began)

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
        self.taking.go_on()
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
                await self.taking.step(statement.task, statement.assignment)
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

    def doing(self, action: Action, **about: Any) -> contextlib.AbstractContextManager[None]:
        """Do something that was asked for, or that follows from what the VM should be."""
        name, project = self.called()
        return doing(action, trace=self.trace, vm=self.vm, vm_name=name, project=project, **about)

    def store(self, **changes: Any) -> None:
        """Remember durably; what could not be written, on a full disk for example, is not remembered at all."""
        record = msgspec.structs.replace(self.record, **changes)
        self.host.journal.store(self.vm, record)
        self.record = record

    async def destroy(self, *, moved: bool = False) -> None:
        """End QEMU and remove every trace of the VM; if it has ``moved``, what it had in memory here is kept."""
        with self.doing(Action.DESTROY) if self.machine.exists() else contextlib.nullcontext():
            await self._destroy(moved=moved)

    async def _destroy(self, *, moved: bool) -> None:
        await self._cancel_transfer()
        await self._cloning.cancel()
        self.expected_exit = True
        known = self.assignment
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
        wanted = self.assignment = statement.assignment
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
        await clone_disk.settle(self.machine)
        task = statement.task
        if task is not None and task.side is Side.SOURCE:
            if wanted.spec.power is Power.STOPPED and task.kind is not Kind.COLD:
                await self._giving.fail(task.migration, "the VM was stopped on request")
            elif await self._giving.step(task):
                return IDLE_S
        return await self._owning.step(wanted)

    def follows(self) -> str:
        """Say where memory of the VM still is, or nothing."""
        moving = self.record.post_copy
        return "" if moving is None else f"its memory is still on its way from node {moving.peer}"

    def image(self) -> Image:
        """Return the VM's image. Raises MachineFailed when this node does not hold it."""
        assert self.assignment is not None
        name = self.assignment.spec.image
        image = self.host.images.get(name)
        if image is None:
            raise MachineFailed(f"this node does not hold image {name}")
        return image if self.assignment.spec.own_disk else image.without_disk()

    def image_name(self) -> str | None:
        """Return of which image the VM is, as far as this node has been told."""
        told = self.statement.assignment if self.statement is not None else None
        return None if told is None else told.spec.image

    def spec(self) -> VmSpec:
        """Return what the VM is to be."""
        assert self.assignment is not None
        return self.assignment.spec

    def moving_files(self) -> list[Path]:
        """Return the files of the disks that move with the VM, as they lie here."""
        own = [self.machine.directory / DISK_LAYER, *self.machine.home.shared()]
        volumes = [self.host.pools.path(one.pool, one.id) for one in self.volumes() if one.moves]
        return [path for path in own + volumes if path.exists()]

    def volumes(self) -> tuple[wire.VolumeAttached, ...]:
        """Return the volumes that the VM has."""
        return () if self.assignment is None else self.assignment.volumes

    def disk_bytes(self, image: Image) -> int:
        """Return the size of the VM's disk, 0 for none."""
        assert self.assignment is not None
        return self.assignment.spec.disk_bytes(image.info.disk_bytes)

    def tenant(self) -> Tenant:
        """Return to whom the VM's pages belong."""
        assert self.assignment is not None
        return Tenant(self.assignment.project, self.assignment.page_key)

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
        elif not (self.taking.pulls and verdict is Verdict.RUN):
            await self._cancel_transfer()

    async def _cancel_transfer(self) -> None:
        await self._giving.cancel()
        await self.taking.cancel()

    # events and reports

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        if name in ("MIGRATION", "MIGRATION_PASS", "EXIT"):
            self.migration_changed.set()
        self._giving.on_event(name, data)
        self._owning.on_event(name)
        lost = self.machine.kept and not self.host.lease.valid()
        if name == "EXIT" and not self.expected_exit and not lost and self.record.held.claim is Claim.OWNER:
            self._owning.count_crash(f"QEMU ended by itself: {self.machine.last_words()}")
        self._wake.set()

    def _is_kept(self) -> bool:
        if self.machine.pid is not None:
            return self.machine.kept
        return self.assignment is not None and self.assignment.spec.ha

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
            guest=self._owning.guest.known,
            hardware=self.machine.hardware,
            kept=self._is_kept(),
        )
        # With the epoch: the server does not take what is said at an earlier one.
        report = wire.Observed(self.vm, self.record.held.epoch, status)
        if report != self._reported:
            self._reported = report
            self.host.send(report)
