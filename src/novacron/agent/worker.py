"""The worker of one VM on this node: looks at what it was told and at QEMU, does the next step, reports.

It may be killed at any point: everything that must outlive it is in the journal before it is acted on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec

from novacron.agent import incoming, outgoing
from novacron.agent.decide import STATES, Step, backoff_s, decide
from novacron.agent.identity import Identity
from novacron.agent.journal import Journal, Record
from novacron.agent.machine import Machine, MachineFailed
from novacron.agent.pages import Neighbour, Pages, Tenant
from novacron.agent.settings import Settings
from novacron.disk.images import Image
from novacron.dwcp.connection import Pool
from novacron.dwcp.receiver import Listener, Terms
from novacron.dwcp.sender import Options, Sender, SendFailed
from novacron.model.migration import Kind, Progress, Side
from novacron.model.node import AcceleratorKind
from novacron.model.ownership import Claim, OrderKind, Verdict, obey, release
from novacron.model.vm import Power, VmState, VmStatus
from novacron.net.tap import NetworkFailed
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

IDLE_S = 60.0
RETRY_S = 2.0
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
    endpoint: str
    pool: Pool
    pages: Pages
    neighbours: Callable[[], list[Neighbour]]
    """The VMs that run on this node."""
    send: Callable[[wire.Message], None]
    """Queue a message for the server; it is dropped while there is no connection."""


class Worker:
    """Owns everything that this node has of one VM."""

    def __init__(self, vm: str, record: Record, host: Host) -> None:
        self.vm = vm
        self.record = record
        self.machine = Machine(vm, host.settings, self._on_event)
        self.finished = False
        self._host = host
        self._statement: wire.Statement | None = None
        self._wake = asyncio.Event()
        self._migration_changed = asyncio.Event()
        self._transfer: asyncio.Task[None] | None = None
        self._sending: str | None = None
        self._sender: Sender | None = None
        self._memory_moves = False
        self._send_failure: str | None = None
        self._awaiting: str | None = None
        self._arriving: str | None = None
        self._stopping_at: float | None = None
        self._started_at = 0.0
        self._expected_exit = False
        self._reported: wire.Observed | None = None
        self._assignment: wire.Assignment | None = None
        self._opening: outgoing.Opening | None = None

    # what the agent uses

    def tell(self, statement: wire.Statement) -> None:
        """Take the server's latest word about this VM."""
        if statement != self._statement:
            self._statement = statement
            self._wake.set()

    def neighbour(self) -> Neighbour | None:
        """Return the VM as others see it, if it runs here."""
        wanted = self._assignment
        if wanted is None or self.record.held.claim is not Claim.OWNER or self.machine.pid is None:
            return None
        tenant = Tenant(wanted.project, wanted.page_key)
        return Neighbour(self.vm, tenant, wanted.spec.image, self.machine, wanted.spec.memory_mib << 20)

    def resync(self) -> None:
        """The link is new: say everything again."""
        self._reported = None
        self._wake.set()

    async def run(self) -> None:
        """Work until nothing is left of the VM here."""
        try:
            await self._adopt()
            while not self.finished:
                self._wake.clear()
                pause_s = await self._try_step()
                if pause_s > 0 and not self.finished:
                    try:
                        await asyncio.wait_for(self._wake.wait(), pause_s)
                    except TimeoutError:
                        self.machine.bound_console_log()
        finally:
            await self._cancel_transfer()
            await self.machine.detach()

    # steps

    async def _adopt(self) -> None:
        try:
            if await self.machine.adopt():
                log.info("adopted a running QEMU", vm=self.vm, pid=self.machine.pid)
        except MonitorFailed as error:
            log.warning("a QEMU does not answer", vm=self.vm, error=str(error))

    async def _try_step(self) -> float:
        try:
            return await self._step()
        except (MachineFailed, MonitorFailed, NetworkFailed, OSError, TimeoutError) as error:
            log.warning("step failed", vm=self.vm, error=str(error))
            if self.record.held.claim is Claim.OWNER:
                self._report(VmState.FAILED, str(error) or type(error).__name__)
            return RETRY_S
        except Exception:  # a defect met with one VM must not take the others' worker away
            log.exception("defect in a worker", vm=self.vm)
            return IDLE_S

    async def _step(self) -> float:
        statement = self._statement
        if statement is None:
            return IDLE_S
        moved = self.record.held.claim is Claim.RELEASED
        held, verdict = obey(self.record.held, statement.order)
        if held != self.record.held:
            later = held.epoch != self.record.held.epoch
            self._store(held=held)
            if later:
                await self._cancel_transfer()
        match verdict:
            case Verdict.RUN:
                return await self._run(statement)
            case Verdict.RECEIVE:
                return await self._receive(statement)
            case Verdict.DESTROY:
                await self._destroy(moved=moved)
                if statement.order.kind is OrderKind.GONE:
                    self._host.send(wire.Removed(self.vm))
                    self.finished = statement is self._statement
                return 0
            case Verdict.HOLD:
                self._repeat_promise(statement)
        return IDLE_S

    def _store(self, **changes: Any) -> None:
        """Remember durably; what could not be written, on a full disk for example, is not remembered at all."""
        record = msgspec.structs.replace(self.record, **changes)
        self._host.journal.store(self.vm, record)
        self.record = record

    async def _destroy(self, *, moved: bool = False) -> None:
        await self._cancel_transfer()
        self._expected_exit = True
        known = self._assignment
        if moved:
            await self.machine.leave()
            if known is not None:
                await self._host.pages.keep(
                    self.vm, self.machine, known.spec.memory_mib << 20, Tenant(known.project, known.page_key)
                )  # fmt: skip
        await self.machine.destroy()

    # owner

    async def _run(self, statement: wire.Statement) -> float:
        wanted = self._assignment = statement.assignment
        assert wanted is not None
        if wanted.deleting:
            await self._destroy()
            await self._host.pages.forget(self.vm, Tenant(wanted.project, wanted.page_key))
            self._store(held=msgspec.structs.replace(self.record.held, claim=Claim.NONE))
            self._report(VmState.ABSENT)
            return IDLE_S
        task = statement.task
        if task is not None and task.side is Side.SOURCE:
            if wanted.spec.power is Power.STOPPED and task.kind is Kind.LIVE:
                await self._fail_migration(task.migration, "the VM was stopped on request")
            elif await self._give(task):
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
        now = time.monotonic()
        step = decide(
            wanted.spec,
            run_state,
            halted_at_start=self.record.halted_at_start,
            reboots=self.record.reboots,
            stopping_s=None if self._stopping_at is None else now - self._stopping_at,
        )
        if step is not Step.NOTHING:
            log.info("step", vm=self.vm, step=step, run_state=run_state)
        match step:
            case Step.START:
                wait_s = backoff_s(self.record.crashes) - (now - self._started_at)
                if self._started_at and wait_s > 0:
                    self._report(VmState.FAILED, f"crashed; starts again in {wait_s:.0f} s")
                    return wait_s
                await self._start(wanted)
                return 0
            case Step.CONTINUE:
                self.machine.drop_late_frames()
                await self.machine.execute("cont")
                if self._arriving is not None:
                    self._host.send(wire.Resumed(self._arriving))
                    self._arriving = None
                return 0
            case Step.PAUSE:
                await self.machine.execute("stop")
                return 0
            case Step.RESET:
                self._store(reboots=wanted.spec.reboots)
                await self.machine.execute("system_reset")
                return 0
            case Step.POWER_DOWN:
                self._stopping_at = now
                await self.machine.execute("system_powerdown")
                self._report(VmState.STOPPING)
                return wanted.spec.stop_timeout_s
            case Step.KILL:
                if wanted.spec.power is not Power.STOPPED and run_state not in ("shutdown", "inmigrate"):
                    self._count_crash(f"QEMU is in state {run_state}")
                self._expected_exit = True
                await self.machine.kill()
                self._stopping_at = None
                return 0
            case Step.MARK_HALTED:
                self._store(halted_at_start=wanted.spec.starts)
                return 0
        if run_state == "absent":
            self._stopping_at = None
        state = VmState.STOPPING if self._stopping_at is not None else STATES.get(run_state, VmState.FAILED)
        halted = state is VmState.STOPPED and self.record.halted_at_start == wanted.spec.starts
        self._report(state, "powered off by the guest" if halted and wanted.spec.power is Power.RUNNING else "")
        if self._stopping_at is not None:
            return max(0.05, wanted.spec.stop_timeout_s - (now - self._stopping_at))
        return IDLE_S

    async def _start(self, wanted: wire.Assignment) -> None:
        image = self._image(wanted.spec.image)
        self._report(VmState.STARTING)
        self._expected_exit = False
        self._started_at = time.monotonic()
        machine_type = await self.machine.start(
            wanted.spec, image, self._host.accelerator, self.record.machine or wanted.machine, incoming=False
        )
        self._store(machine=machine_type, halted_at_start=None, reboots=wanted.spec.reboots)

    def _image(self, name: str) -> Image:
        image = self._host.images.get(name)
        if image is None:
            raise MachineFailed(f"this node does not hold image {name}")
        return image

    # source of a migration

    async def _give(self, task: wire.Task) -> bool:
        """Do the source's part; say whether QEMU must be left alone meanwhile."""
        if task.endpoint is None:
            if task.warm is not None and task.kind is Kind.LIVE and self.record.migration != task.migration:
                self._open(task, task.warm, early=True)
            return False
        if self._transfer is not None:
            if self._sender is not None:
                self._sender.limit(task.rate_bytes_per_s)
            return True
        if self.record.migration == task.migration:
            # It was begun before and nothing was promised: it is lost, and the guest goes on here.
            why = self._send_failure or "the agent restarted while it was sending"
            self._host.send(wire.MigrationFailed(task.migration, why))
            return False
        run_state = await self.machine.status()
        if task.kind is Kind.COLD:
            if run_state == "absent":
                self._store(held=release(self.record.held, task.epoch), migration=task.migration)
                self._host.send(wire.Voted(task.migration, Side.SOURCE, task.epoch))
                return True
            await self._fail_migration(task.migration, f"the VM is {run_state}, a cold migration needs it stopped")
            return False
        if run_state not in ("running", "paused"):
            await self._fail_migration(task.migration, f"the VM is {run_state}, a live migration needs it running")
            return False
        self._store(migration=task.migration)
        self._send_failure = None
        self._transfer = asyncio.create_task(self._send(task), name=f"send-{self.vm}")
        return True

    def _open(self, task: wire.Task, endpoint: str, *, early: bool) -> outgoing.Opening:
        """Begin to open the session of a migration, if that was not begun before."""
        if self._opening is None or self._opening.migration != task.migration:
            self._opening = outgoing.Opening(task, endpoint, self._host.pool, self._options, early=early)
        return self._opening

    async def _options(self) -> Options:
        wanted, settings = self._assignment, self._host.settings
        assert wanted is not None
        bases = []
        if wanted.spec.image in self._host.images:
            with contextlib.suppress(OSError):  # its pages are sent then
                tenant = Tenant(wanted.project, wanted.page_key)
                bases.append(await self._host.pages.of_image(self._image(wanted.spec.image), tenant))
        return Options(wanted.page_key, settings.rings_dir, bases, settings.outage_s, settings.streams)

    async def _session(self, task: wire.Task) -> Sender:
        """Return the migration's session, open. Raises SendFailed, TimeoutError."""
        assert task.endpoint is not None
        if self._opening is not None and self._opening.endpoint != task.endpoint:
            await self._opening.close()
            self._opening = None
        opening = self._open(task, task.endpoint, early=False)
        try:
            return await opening.session()
        finally:
            self._opening = None

    async def _send(self, task: wire.Task) -> None:
        async def report(progress: Progress) -> None:
            self._host.send(wire.Progressed(task.migration, progress))

        self._sending = task.migration
        try:
            sender = self._sender = await self._session(task)
            statement = self._statement
            now = task if statement is None or statement.task is None else statement.task
            sender.limit(now.rate_bytes_per_s)  # it may have changed while the session opened
            await outgoing.send(
                self.machine, sender, self._host.settings.downtime_limit_ms, report,
                self._migration_changed, lambda: self._promise(task),
            )  # fmt: skip
        except (outgoing.TransferFailed, SendFailed, TimeoutError) as error:
            log.warning("migration failed at the source", vm=self.vm, migration=task.migration, error=str(error))
            self._send_failure = str(error)
            self._host.send(wire.MigrationFailed(task.migration, str(error)))
        finally:
            self._sending = None
            self._transfer = self._sender = None
            self._wake.set()

    def _promise(self, task: wire.Task) -> None:
        """The guest stands still and QEMU has given everything: promise, durably, not to run it at this epoch."""
        self._store(held=release(self.record.held, task.epoch))
        log.info("everything is sent: promised not to run it", vm=self.vm, migration=task.migration)
        self._host.send(wire.Voted(task.migration, Side.SOURCE, task.epoch))

    async def _fail_migration(self, migration: str, why: str) -> None:
        await self._cancel_transfer()
        self._host.send(wire.MigrationFailed(migration, why))

    def _repeat_promise(self, statement: wire.Statement) -> None:
        """The server may not have heard it: a vote is repeated until a later epoch comes."""
        if self.record.held.claim is Claim.RELEASED and statement.task is not None:
            self._host.send(wire.Voted(statement.task.migration, Side.SOURCE, statement.task.epoch))
        elif (
            self.record.held.claim is Claim.NONE and statement.assignment is not None and statement.assignment.deleting
        ):
            self._report(VmState.ABSENT)

    # target of a migration

    async def _receive(self, statement: wire.Statement) -> float:
        task, wanted = statement.task, statement.assignment
        assert task is not None and wanted is not None
        if self._transfer is not None:
            if self._awaiting == task.migration:  # the server may not have heard it
                self._host.send(wire.TargetReady(task.migration, self._host.endpoint))
            return IDLE_S
        if task.kind is Kind.COLD:
            if wanted.spec.image not in self._host.images:
                self._host.send(wire.MigrationFailed(task.migration, f"this node holds no image {wanted.spec.image}"))
                return IDLE_S
            self._store(migration=task.migration, machine=wanted.machine, reboots=wanted.reboots,
                        halted_at_start=wanted.halted_at_start)  # fmt: skip
            self._host.send(wire.TargetReady(task.migration, self._host.endpoint))
            self._host.send(wire.Voted(task.migration, Side.TARGET, task.epoch))
            return IDLE_S
        if self.record.migration == task.migration:
            if await self.machine.status() in ("paused", "shutdown"):
                self._host.send(wire.Voted(task.migration, Side.TARGET, task.epoch))
                return IDLE_S
            await self._destroy()
            self._host.send(wire.MigrationFailed(task.migration, "the VM that was being loaded is gone"))
            return IDLE_S
        await self._destroy()
        self._store(migration=task.migration, machine=wanted.machine, reboots=wanted.reboots,
                    halted_at_start=wanted.halted_at_start, crashes=0)  # fmt: skip
        self._transfer = asyncio.create_task(self._load(task, wanted), name=f"load-{self.vm}")
        return IDLE_S

    async def _load(self, task: wire.Task, wanted: wire.Assignment) -> None:
        async def ready() -> None:
            self._awaiting = task.migration
            self._host.send(wire.TargetReady(task.migration, self._host.endpoint))

        async def loaded() -> None:
            self._arriving = task.migration
            log.info("everything is loaded", vm=self.vm, migration=task.migration)
            self._host.send(wire.Voted(task.migration, Side.TARGET, task.epoch))

        tenant = Tenant(wanted.project, wanted.page_key)
        try:
            image = self._image(wanted.spec.image)
            self._expected_exit = False
            starting = asyncio.create_task(
                self.machine.start(wanted.spec, image, self._host.accelerator, wanted.machine, incoming=True)
            )
            try:
                bases = await self._host.pages.for_arrival(self.vm, image, tenant, self._host.neighbours())
                settings = self._host.settings
                terms = Terms(wanted.page_key, settings.rings_dir, bases, settings.outage_s)
                with self._host.listener.expect(task.migration, task.peer, terms) as session:
                    await starting
                    await incoming.load(self.machine, session, ready, self._migration_changed, loaded)
            finally:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
            await self._host.pages.forget(self.vm, tenant)
        except (incoming.LoadFailed, MachineFailed) as error:
            log.warning("migration failed at the target", vm=self.vm, migration=task.migration, error=str(error))
            self._expected_exit = True
            await self.machine.destroy()
            self._host.send(wire.MigrationFailed(task.migration, str(error)))
        finally:
            self._awaiting = None
            self._transfer = None
            self._wake.set()

    async def _cancel_transfer(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            await opening.close()
        transfer = self._transfer
        if transfer is not None:
            transfer.cancel()
            await asyncio.gather(transfer, return_exceptions=True)

    # events and reports

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        if name in ("MIGRATION", "MIGRATION_PASS", "EXIT"):
            self._migration_changed.set()
        if name == "MIGRATION":
            self._memory_moves = data["status"] == "active"
        if name == "STOP" and self._sending is not None and self._memory_moves:
            log.info("guest stands still", vm=self.vm, migration=self._sending)
            self._host.send(wire.Stopped(self._sending))
            try:
                self.machine.keep_late_frames()
            except NetworkFailed as error:
                log.warning("what comes for the guest from now on is lost", vm=self.vm, error=str(error))
        if name == "EXIT" and not self._expected_exit and self.record.held.claim is Claim.OWNER:
            self._count_crash(f"QEMU ended by itself: {self.machine.last_words()}")
        self._wake.set()

    def _count_crash(self, what: str) -> None:
        """A VM that crashes again soon is started again later."""
        stable = time.monotonic() - self._started_at > STABLE_S
        crashes = 1 if stable else self.record.crashes + 1
        try:
            self._store(crashes=crashes)
        except OSError as error:
            # No promise hangs on this number, so it may live in memory alone.
            self.record = msgspec.structs.replace(self.record, crashes=crashes)
            log.error("a crash can't be written down", vm=self.vm, error=str(error))
        log.warning("a VM crashed", vm=self.vm, what=what, crashes=self.record.crashes)

    def _report(self, state: VmState, reason: str = "") -> None:
        status = VmStatus(
            state=state,
            reason=reason[:500],
            accelerator=self._host.accelerator,
            machine=self.record.machine,
            pid=self.machine.pid or 0,
            reboots=self.record.reboots,
            halted_at_start=self.record.halted_at_start,
            crashes=self.record.crashes,
        )
        # With the epoch: the server does not take what is said at an earlier one.
        report = wire.Observed(self.vm, self.record.held.epoch, status)
        if report != self._reported:
            self._reported = report
            self._host.send(report)
