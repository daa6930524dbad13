"""The worker of one VM on this node: takes what the server says of it, looks at QEMU, does the next step, reports.

It composes the VM's parts, which do not know it: the reconciler, the clone reconciler, both sides of migrations. It may
be killed at any point: everything that must outlive it is in the journal before it is acted on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, cast

import msgspec
import structlog

from novacron.agent.actions import Action
from novacron.agent.host.clock import wait_at_most
from novacron.agent.host.network_problems import InterfaceClosed
from novacron.agent.migration.known_pages import LocalVm
from novacron.agent.migration.services import NodeServices
from novacron.agent.migration.source import MigrationSource
from novacron.agent.migration.target import MigrationTarget
from novacron.agent.vm import clone_disk
from novacron.agent.vm.clone_reconciler import CloneReconciler
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER
from novacron.agent.vm.hypervisor import AnotherQemu, MachineFailed
from novacron.agent.vm.journal import Record, obey_order
from novacron.agent.vm.live_restore import LiveRestore
from novacron.agent.vm.reconciler import IDLE_S, RETRY_S, Reconciler
from novacron.dwcp.backoff import Backoff
from novacron.model.migration import MigrationKind, Side
from novacron.model.ownership import Claim, OrderKind, OrderVerdict
from novacron.model.unreconciled import DescribedVolume, VmDescription
from novacron.model.vm import Power, VmState
from novacron.model.waiting import WaitCode, code_of
from novacron.net.tap import NetworkFailed
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.telemetry.values import counter, histogram
from novacron.wire import messages as wire

log = logs.get(__name__)

RETRY_S_MAX = 30.0
"""A step that fails again and again is tried again ever later, until the server says something new of the VM."""
LOST_AFTER_S = 5.0
"""What an earlier agent was sending, and the target does not have by then, it will not get."""
DAMAGED = "this node's record of the VM is damaged, so it leaves the VM as it is; to continue: novacron vm start {name}"


def trace_of(statement: wire.Statement) -> str:
    """Return the trace to which belongs what was asked for last."""
    if statement.task is not None:
        return statement.task.trace
    return "" if statement.assignment is None else statement.assignment.trace


def _description(statement: wire.Statement) -> dict[str, Any] | None:
    """Return what a statement says that a VM is, as it is written down and read again."""
    assignment = statement.assignment
    if assignment is None:
        return None
    volumes = tuple(msgspec.convert(volume, DescribedVolume, from_attributes=True) for volume in assignment.volumes)
    description = VmDescription(assignment.name, assignment.project, assignment.spec, volumes, assignment.machine)
    return cast(dict[str, Any], msgspec.json.decode(msgspec.json.encode(description)))


def _is_new(statement: wire.Statement, record: Record) -> bool:
    """Say whether the node is to own a VM from now on, and has not noted that yet."""
    return statement.order.kind is OrderKind.OWN and statement.order.epoch > record.held.epoch


def has_voted(statement: wire.Statement) -> bool:
    """Say whether the server has this node's vote to give a VM up."""
    return statement.task is not None and statement.task.side is Side.SOURCE and statement.task.voted


def _obey_statement(record: Record, statement: wire.Statement) -> tuple[Record, OrderVerdict]:
    return obey_order(
        record, statement.order, voted=has_voted(statement), deleted=statement.deleted, proof=statement.proof
    )


class Worker:
    """Owns everything that this node has of one VM."""

    def __init__(self, vm: str, record: Record, services: NodeServices) -> None:
        self.vm = vm
        self.finished = False
        """Nothing is left of the VM here."""
        self._services = services
        self._wake = asyncio.Event()
        self.context = VmContext(vm, record, services, self.wake, self._on_event)
        self.machine = self.context.machine
        self._source = MigrationSource(self.context, services)
        self._target = MigrationTarget(self.context, services, self.destroy)
        self._clone = CloneReconciler(self.context)
        self._live = LiveRestore(self.context)
        self._reconciler = Reconciler(self.context, services.pages.prepare)
        self._backoff = Backoff(RETRY_S, RETRY_S_MAX)
        self._began_at = self._services.clock.monotonic()
        self._has_left = False
        """The guest has left, as far as the network goes; its memory is still needed."""
        self._has_owned = False
        """The VM's disk that is here is one that it ran with, and not what a move has brought of it so far."""
        self._contradicted: wire.Contradicted | None = None
        """What was said last of what the server does not know."""

    # what the agent uses

    def set_desired(self, statement: wire.Statement) -> None:
        """Take the server's latest word about this VM."""
        before = self.context.statement
        if statement == before:
            return
        self.context.statement = statement
        self._backoff.reset()  # what failed may do now
        trace = trace_of(statement)
        if before is None or trace != trace_of(before) or statement.order != before.order:
            self.context.trace = trace
        self.wake()

    def neighbour(self) -> LocalVm | None:
        """Return the VM as others see it, if it runs here."""
        context = self.context
        if context.assignment is None or not context.owns() or self.machine.pid is None:
            return None
        if context.record.post_copy is not None:  # a read of a missing page would wait for it
            return None
        image = context.assignment.spec.image
        return LocalVm(self.vm, context.tenant(), image, self.machine, context.memory_bytes())

    def on_unexpected_session(self, session: str, peer: str) -> None:
        """A node wants to begin a session with this one that is not expected."""
        self._target.on_unexpected_session(session, peer)

    def on_lease_lost(self) -> None:
        """A VM that may be started elsewhere now is left alone here until the server says again whose it is."""
        if self.context.assignment is not None and self.context.assignment.spec.ha:
            self.context.statement = None

    def wake(self) -> None:
        """Something has changed: look again."""
        self._wake.set()

    def held(self) -> wire.HeldVm:
        """Return what this node remembers of the VM, for the server."""
        record = self.context.record
        if not record.damaged:
            return wire.HeldVm(self.vm, record.held, record.proof)
        return wire.HeldVm(self.vm, None, record.proof, None if record.held.claim is Claim.NONE else record.held)

    def contradict(self) -> None:
        """The server has said something else than what this node knows of the VM, or nothing: tell it, once."""
        record = self.context.record
        description = None if record.held.claim is Claim.NONE else record.description
        said = wire.Contradicted(self.vm, record.held, description, record.proof)
        if not record.damaged and said != self._contradicted:
            self._contradicted = said
            self._services.send(said)

    def resync(self) -> None:
        """The link is new: report everything again."""
        self.context.forget_reports()
        self._contradicted = None
        self._reconciler.resync()
        self.wake()

    async def run(self) -> None:
        """Work until nothing is left of the VM here."""
        structlog.contextvars.bind_contextvars(vm=self.vm)  # of this task
        try:
            await self._adopt()
            while not self.finished:
                self._wake.clear()
                pause_s = await self._try_step()
                if pause_s >= IDLE_S:  # the desired state is reached: later steps have other reasons
                    self.context.trace = ""
                if pause_s > 0 and not self.finished:
                    await wait_at_most(self._services.clock, self._wake, pause_s)
        finally:
            await self._cancel_transfers()
            await self._clone.cancel()
            await self._live.cancel()
            self._reconciler.stop()
            await self.machine.detach()

    # steps

    async def _adopt(self) -> None:
        """Take over what an earlier agent left running."""
        moves = self.context.record.post_copy is not None  # then QEMU may wait for memory, and answers nobody
        try:
            if await self.machine.adopt():
                log.info("adopted a running QEMU", vm=self.vm, pid=self.machine.pid)
                if not moves:
                    await self._services.transport.abandon(self.machine)
            if not moves:
                await clone_disk.abandon(self.machine)
        except (MonitorFailed, TimeoutError) as error:
            log.warning("a QEMU does not answer", vm=self.vm, error=str(error))

    async def _try_step(self) -> float:
        began, outcome = time.perf_counter(), "failed"
        context = self.context
        try:
            async with context.lock:
                pause_s = await self._step()
            outcome = "done"
            context.failures = 0
            self._backoff.reset()
            return pause_s
        except (MachineFailed, MonitorFailed, NetworkFailed, OSError, TimeoutError) as error:
            context.failures += 1
            log.warning("step failed", vm=self.vm, error=str(error), failures=context.failures)
            self._report_failure(error)
            return self._backoff.next_s()
        except Exception:  # a defect met with one VM must not take the others' workers away
            log.exception("defect in a worker", vm=self.vm)
            return IDLE_S
        finally:
            counter("novacron_agent_steps_total").add(outcome)
            histogram("novacron_agent_step_duration_seconds").observe(time.perf_counter() - began)

    def _report_failure(self, error: Exception) -> None:
        """Say what keeps the VM from being as it was asked to be."""
        context, statement = self.context, self.context.statement
        tried = f"; tried {context.failures} times" if context.failures > 1 else ""
        why = (str(error) or type(error).__name__) + tried
        if context.owns() and self._target.awaits_memory and self.machine.pid is not None:
            # QEMU may wait for memory: that is no failure.
            context.report(VmState.RUNNING, context.missing_memory_reason(), WaitCode.MEMORY_FOLLOWS)
        elif context.owns():
            may_run = self.machine.pid is not None or isinstance(error, AnotherQemu)
            state = VmState.UNKNOWN if may_run else VmState.FAILED
            code = code_of(error)
            if isinstance(error, NetworkFailed):
                is_closed = isinstance(error, InterfaceClosed)
                code = WaitCode.INTERFACE_CLOSED if is_closed else WaitCode.NETWORK_NOT_READY
            context.report(state, why, code)
        elif statement is not None and _is_new(statement, context.record) and self.machine.pid is None:
            why = f"its node can't record that it runs the VM: {why}; check its disk: novacron node show"
            context.report(VmState.PENDING, why, WaitCode.NODE_CANT_STORE, statement.order.epoch)

    async def _step(self) -> float:
        context, statement = self.context, self.context.statement
        if statement is None:
            return IDLE_S
        was_released = context.record.held.claim is Claim.RELEASED and not context.record.damaged
        verdict = await self._obey(statement)
        if statement.deleted and self._source.serves_memory:
            await self._cancel_transfers()
            await context.store(post_copy=None)
        self._source.resume()
        self._target.resume()
        match verdict:
            case OrderVerdict.RUN:
                return await self._run(statement)
            case OrderVerdict.RECEIVE if self._source.serves_memory:
                assert statement.task is not None
                why = "its memory is still on its way from here to where it runs"
                context.services.send(wire.MigrationFailed(statement.task.migration, why))
            case OrderVerdict.DESTROY if self._source.serves_memory:
                if not self._has_left:
                    await self.machine.leave()
                    self._has_left = True
            case OrderVerdict.RECEIVE:
                assert statement.task is not None and statement.assignment is not None
                await self._target.step(statement.task, statement.assignment)
            case OrderVerdict.DESTROY:
                await self._remove(statement, moved=was_released or self._has_left)
                return 0
            case OrderVerdict.HOLD:
                return self._repeat_promise(statement)
            case OrderVerdict.IGNORE:
                self.contradict()
        return IDLE_S

    async def _obey(self, statement: wire.Statement) -> OrderVerdict:
        """Note, durably, the epoch of what the server says; return what may be done now."""
        context, before = self.context, self.context.record
        if before.held.claim is not Claim.NONE:  # else what is left of it is being removed
            self._has_owned = before.held.claim is not Claim.INCOMING and not before.damaged
        after, verdict = _obey_statement(before, statement)
        if after == before:
            if verdict is OrderVerdict.RUN:
                await self._remember_description(statement)
            return verdict

        def obey(record: Record) -> Record:
            nonlocal verdict
            after, verdict = _obey_statement(record, statement)
            if after.held == record.held and verdict is not OrderVerdict.RUN:
                return after  # another proof of what it was told before
            return msgspec.structs.replace(after, description=_description(statement))

        await context.update(obey)
        if context.record.held.epoch != before.held.epoch:
            await self._end_transfers(verdict)
        return verdict

    async def _remember_description(self, statement: wire.Statement) -> None:
        """Remember what the server says of the VM, for one that does not know it any more."""
        description = _description(statement)
        if description == self.context.record.description:
            return
        try:
            await self.context.store(description=description)
        except OSError as error:  # no promise hangs on this
            log.warning("what the VM is to be can't be written down", vm=self.vm, error=str(error))

    async def _remove(self, statement: wire.Statement, *, moved: bool) -> None:
        """Remove every trace of the VM from this node."""
        await self.destroy(moved=moved, former=self._has_owned and not statement.deleted)
        self._has_left = self._has_owned = False
        if statement.order.kind is OrderKind.GONE:
            self.context.services.send(wire.Removed(self.vm))
            self.finished = statement is self.context.statement

    async def destroy(self, *, moved: bool = False, former: bool = False) -> None:
        """End QEMU and remove every trace of the VM; if it has ``moved``, what it had in memory here is kept, and if it
        is the ``former`` node of a VM of which a replica is to come, its disk."""
        with self.context.doing(Action.DESTROY) if self.machine.exists() else contextlib.nullcontext():
            await self._destroy(moved=moved, former=former)

    async def _destroy(self, *, moved: bool, former: bool) -> None:
        context = self.context
        await self._cancel_transfers()
        await self._clone.cancel()
        await self._live.cancel()
        context.exit_expected = True
        if moved:
            await self.machine.leave()
            if context.assignment is not None:
                pages = self._services.pages
                await pages.keep(self.vm, self.machine, context.memory_bytes(), context.tenant())
                self._source.send_checkpoint_index()
        if former and self.machine.has_disk():
            await self._keep_former()
        await self.machine.destroy()
        if context.record.post_copy is not None:
            await context.store(post_copy=None)

    async def _keep_former(self) -> None:
        """Keep the VM's disk for a replica that is to come; without it, that only costs more."""
        await self.machine.kill()
        layers = [*self.machine.home.shared(), self.machine.directory / DISK_LAYER]
        try:
            if await asyncio.to_thread(self._services.replicas.keep_former, self.vm, layers):
                log.info("a VM's disk is kept for its replica here", vm=self.vm)
        except OSError as error:
            log.warning("a VM's disk can't be kept for its replica here", vm=self.vm, error=str(error))

    async def _run(self, statement: wire.Statement) -> float:
        """Do the next step with a VM that this node owns; return when to look again."""
        context, assignment = self.context, statement.assignment
        assert assignment is not None
        context.assignment = assignment
        context.is_known.set()
        if assignment.deleting:
            await self.destroy()
            await self._services.pages.forget(self.vm, context.tenant(), deleted=True)
            await context.store(held=msgspec.structs.replace(context.record.held, claim=Claim.NONE))
            context.report(VmState.ABSENT)
            return IDLE_S
        of = assignment.clone_of
        if of is not None and not (of.live and (self._live.step(of) or self.machine.pid is not None)):
            if not of.live:
                self._clone.step(of)
            return IDLE_S
        await clone_disk.settle(self.machine, assignment.spec.encryption_key)
        task = statement.task
        if task is not None and task.side is Side.SOURCE:
            if assignment.spec.power is Power.STOPPED and task.kind is not MigrationKind.COLD:
                await self._source.fail(task.migration, "the VM was stopped on request")
            elif not self._reconciler.reboots and await self._source.step(task):
                return IDLE_S
        return await self._reconciler.step(assignment)

    def _repeat_promise(self, statement: wire.Statement) -> float:
        """The server may not have heard it: a vote is repeated until a later epoch comes. Return when to look again."""
        context = self.context
        held, task = context.record.held, statement.task
        if context.record.damaged:
            return self._refuse_damaged(statement)
        if held.claim in (Claim.RELEASED, Claim.NONE) and task is not None and task.side is Side.SOURCE:
            # What was removed here runs here no more, either.
            context.services.send(wire.Voted(task.migration, Side.SOURCE, task.epoch))
            lost = not self._source.has_sent_all(task.migration) and context.record.post_copy is None
            if lost and self._services.clock.monotonic() - self._began_at > LOST_AFTER_S:
                # By then the target would have said that it has everything; and the epoch moves on only once.
                why = "its agent restarted after it had voted, and data in transit is lost"
                context.services.send(wire.MigrationFailed(task.migration, why))
            return RETRY_S
        if held.claim is Claim.NONE and statement.assignment is not None and statement.assignment.deleting:
            context.report(VmState.ABSENT)
        self.contradict()
        return IDLE_S

    def _refuse_damaged(self, statement: wire.Statement) -> float:
        """What was promised is not known: neither run the VM nor vote. Return when to look again."""
        context, task = self.context, statement.task
        reason = DAMAGED.format(name=self.vm if statement.assignment is None else statement.assignment.name)
        if task is not None:  # it ends, and moves the VM to a later epoch, which this node may obey again
            context.services.send(wire.MigrationFailed(task.migration, reason))
        state = VmState.FAILED if self.machine.pid is None else VmState.RUNNING
        context.report(state, reason, WaitCode.RECORD_DAMAGED)
        return IDLE_S

    async def _end_transfers(self, verdict: OrderVerdict) -> None:
        """End what belongs to an earlier epoch, but not memory that a guest that has left, or come, still needs."""
        if self._source.serves_memory:
            if verdict is OrderVerdict.RUN:
                await self._source.take_guest_back()
        elif not (self._target.awaits_memory and verdict is OrderVerdict.RUN):
            await self._cancel_transfers()

    async def _cancel_transfers(self) -> None:
        await self._source.cancel()
        await self._target.cancel()

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        """QEMU says that something has happened."""
        context = self.context
        if name in ("MIGRATION", "MIGRATION_PASS", "EXIT"):
            context.migration_changed.set()
        self._source.on_event(name, data)
        self._reconciler.on_event(name)
        lease_lost = self.machine.kept and not context.services.lease.valid()
        if name == "EXIT" and not context.exit_expected and not lease_lost and context.owns():
            self._reconciler.note_crash(f"QEMU ended by itself: {self.machine.last_words()}")
        self.wake()
