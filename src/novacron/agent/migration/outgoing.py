"""One migration at its source: its phase, its sessions, its rate, and what it promises and reports."""

from __future__ import annotations

import contextlib

import msgspec

from novacron.agent.migration.disk_mirror import Leaving
from novacron.agent.migration.phases import AFTER_PROMISE, SourcePhase, check_transition
from novacron.agent.migration.session_opening import SessionOpener
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.journal import PostCopy, Record
from novacron.dwcp.sender import Sender
from novacron.model.migration import MigrationPolicy, Progress, Side
from novacron.model.ownership import release
from novacron.net.tap import NetworkFailed
from novacron.qemu.monitor import Monitor
from novacron.telemetry import logs, traces
from novacron.wire import messages as wire

log = logs.get(__name__)


class OutgoingMigration:
    """The state of one migration; ``source_stream`` and ``pre_copy`` move it from phase to phase."""

    def __init__(self, task: wire.Task, context: VmContext, opener: SessionOpener) -> None:
        self.task = task
        self.machine = context.machine
        self.changed = context.migration_changed
        """Set whenever QEMU says something about its migration."""
        self.downtime_limit_s = context.services.settings.downtime_limit_ms / 1e3
        self.phase = SourcePhase.OPENING
        self.disk: Leaving | None = None
        """The disks that are mirrored, if any are."""
        self._memory: Sender | None = None
        self._context = context
        self._opener = opener
        log.info("migration begins", vm=context.vm, migration=task.migration, kind=task.kind, phase=self.phase)

    @property
    def policy(self) -> MigrationPolicy:
        return self.task.policy

    @property
    def post_copies(self) -> bool:
        """The guest may run at the target before all of its memory is there."""
        return self.task.policy is MigrationPolicy.POST_COPY

    @property
    def monitor(self) -> Monitor:
        """QEMU's monitor; only to be asked while QEMU runs."""
        assert self.machine.monitor is not None
        return self.machine.monitor

    # phases

    def enter(self, phase: SourcePhase) -> None:
        """Go on to another phase. Raises WrongTransition."""
        check_transition(self.phase, phase)
        log.info("migration phase", vm=self._context.vm, migration=self.task.migration, phase=phase, after=self.phase)
        traces.note("migration phase", phase=phase, after=self.phase)
        self.phase = phase

    def end(self) -> None:
        """It has ended, perhaps before its end. What fails after a promise is the target's to report."""
        if self.promised and not self.ended:
            self.enter(SourcePhase.DONE)
        elif not self.ended:
            self.enter(SourcePhase.FAILED)

    @property
    def ended(self) -> bool:
        """Nothing is sent for it any more."""
        return self.phase in (SourcePhase.DONE, SourcePhase.FAILED)

    @property
    def promised(self) -> bool:
        """This node may not run the VM any more at the migration's epoch."""
        return self.phase in AFTER_PROMISE

    async def promise(self, *, memory_follows: bool) -> None:
        """The guest stands still and everything is sent, or all but memory that follows: promise, durably, not to run
        it at this epoch. Done once. Raises OSError when the promise can't be written down: then none is given."""
        if self.promised:
            return
        check_transition(self.phase, SourcePhase.PROMISED)
        context, task = self._context, self.task
        moving = None
        if memory_follows:
            moving = PostCopy(task.migration, Side.SOURCE, task.peer, task.endpoint or "")

        def release_vm(record: Record) -> Record:
            held = release(record.held, task.epoch)  # refuses where a later epoch has come meanwhile
            return msgspec.structs.replace(record, held=held, migration=task.migration, post_copy=moving)

        await context.update(release_vm)
        log.info("promised not to run it", vm=context.vm, migration=task.migration)
        self.enter(SourcePhase.PROMISED)
        self._context.services.send(wire.Voted(task.migration, Side.SOURCE, task.epoch))
        if memory_follows:
            self.enter(SourcePhase.POST_COPY)

    # sessions and rate

    async def open_memory_session(self) -> Sender:
        """Return the session for the memory, open, at the rate of this moment. Raises SendFailed, TimeoutError."""
        self._memory = await self._opener.open(self.task)
        self.limit(self.rate_now())  # it may have changed while the session opened
        return self._memory

    def rate_now(self) -> int | None:
        """Return how much of the link the server now lets this migration use, in bytes a second; None: all of it."""
        statement = self._context.statement
        task = self.task if statement is None or statement.task is None else statement.task
        return task.rate_bytes_per_s

    def limit(self, rate_bytes_per_s: int | None) -> None:
        """Use so much of the link from now on, or all there is."""
        if self.disk is not None:
            rate_bytes_per_s = self.disk.limit(rate_bytes_per_s)
        if self._memory is not None:
            self._memory.limit(rate_bytes_per_s)

    # reports

    def report(self, progress: Progress) -> None:
        """Tell the server how it stands."""
        self._context.services.send(wire.Progressed(self.task.migration, progress))

    def guest_stopped(self) -> None:
        """The guest stands still: keep frames for it from now on, and tell the server, which measures downtime."""
        context = self._context
        log.info("guest stands still", vm=context.vm, migration=self.task.migration)
        self._context.services.send(wire.Stopped(self.task.migration))
        try:
            self.machine.interfaces.keep_late_frames()
        except NetworkFailed as error:
            log.warning("frames for the stopped guest can't be kept", vm=context.vm, error=str(error))

    def guest_may_stop(self) -> None:
        """The guest may stop at any moment: frames that come just now may be for the target."""
        with contextlib.suppress(NetworkFailed):  # said when it stops
            self.machine.interfaces.expect_late_frames()
