"""The pre-copy of a migration at its source: reports progress, forecasts the rest, decides when the guest stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from novacron.agent.migration.disk_mirror import Leaving
from novacron.agent.migration.outgoing import OutgoingMigration
from novacron.agent.migration.phases import SourcePhase
from novacron.dwcp.page_ring import PAGE
from novacron.dwcp.sender import Sender
from novacron.model.forecast import SHRINKS, Forecast, Path, downtime_s, forecast
from novacron.model.migration import MigrationPolicy, Progress, Savings
from novacron.qemu import transfer
from novacron.qemu.stream import RamSplitter
from novacron.qemu.transfer import TransferStatus
from novacron.telemetry import logs

PROGRESS_INTERVAL_S = 0.5
LOOK_S, LOOK_CLOSELY_S = 0.1, 0.02
"""How often QEMU is asked how it stands: in the first pass, and near its end or after it."""
LOOK_CLOSELY_FROM_S = 0.5
"""How near to the end of the first pass, at the pace that it had when it did not wait for the link."""
NEAR_END_S = 0.15
"""So near to the end of the first pass, at the pace that it had when it did not wait for the link, nothing may queue
up any more."""
NEAR_END_BYTES = 96 << 20
"""With so little of the first pass left, nothing may queue up any more."""
RATIO_AFTER_BYTES, RATIO_GUESS = 16 << 20, 0.4
KINDS = ("zero", "session", "image", "sibling", "checkpoint", "difference")
PUMP_ENDS_S = 0.5
FOLLOWING_SHARE = 0.5
"""With only one pass, so much of a guest's memory may follow it (post-copy)."""
STUCK_PASSES = 4
AIM, SETTLED_PASSES = 0.6, 5
"""The first passes aim at this share of the downtime limit; after as many, the limit itself is enough."""

log = logs.get(__name__)


class TransferFailed(Exception):
    """The memory could not be sent: says on whose side, and why. The guest goes on at the source."""


class PreCopy:
    """Watches one migration's memory at its source: reports how it stands, and decides when the guest stops.

    ``passes_max`` is 1 where QEMU may miss writes while the guest runs: then there is no second pass.
    """

    def __init__(self, migration: OutgoingMigration, passes_max: int) -> None:
        self.splitter = RamSplitter()
        self._migration = migration
        self._policy = migration.policy
        self._monitor = migration.monitor
        self._disk = migration.disk
        self._sender: Sender | None = None
        self._reported_at = 0.0
        self._limit_s = migration.downtime_limit_s
        self._passes_max = passes_max
        self._started = self._pass_at = self._last_at = self._first_at = time.monotonic()
        self._passes = self._last_wire = 0
        self._first: Forecast | None = None
        self._forecast: Forecast | None = None
        self._throttling = self._disk_finished = False
        self._left_at_pass: list[int] = []
        self._dirty_rate = 0.0
        self._left_s = 0.0
        """What the first pass still takes at least."""

    async def report(self, status: TransferStatus | None = None) -> None:
        """Report how it stands, unless that was reported just before and the memory is not all sent."""
        now = time.monotonic()
        status = status or TransferStatus("none")
        if status.status == "completed" or now - self._reported_at > PROGRESS_INTERVAL_S:
            self._reported_at = now
            self._migration.report(self._progress(status, now))

    async def run(self, sender: Sender, pump: asyncio.Task[None]) -> None:
        """Follow the memory until QEMU has completed. Raises TransferFailed when it fails, or a session breaks."""
        self._sender = sender
        self._pass_at = time.monotonic()
        while True:
            self._migration.changed.clear()
            status = await transfer.status(self._monitor)
            if status.status not in transfer.ENDED:
                await self._act(sender, status)
            await self.report(status)
            if status.status == "completed":
                return
            if status.status == transfer.POST_COPY and self.splitter.packaged:
                # QEMU does not let the guest go on here by itself any more.
                await self._migration.promise(memory_follows=True)
            await _raise_failure(status, pump)
            await self._wait(status, pump)

    async def _act(self, sender: Sender, status: TransferStatus) -> None:
        if self._disk is not None:
            await self._mind_disk(self._disk, status)
        if self._migration.phase is SourcePhase.PRE_COPY:
            await self._steer(sender, status, time.monotonic())

    async def _wait(self, status: TransferStatus, pump: asyncio.Task[None]) -> None:
        """Wait until QEMU says something, the session ends, or it is time to look again."""
        close = (
            status.remaining_bytes < NEAR_END_BYTES or status.passes > 1 or self._policy is MigrationPolicy.POST_COPY
        )
        if close and status.status not in transfer.ENDED:
            self._migration.guest_may_stop()
        near = close and (status.passes > 1 or self._left_s < LOOK_CLOSELY_FROM_S)
        pause_s = LOOK_CLOSELY_S if near and self._migration.phase is SourcePhase.PRE_COPY else LOOK_S
        changed = asyncio.create_task(self._migration.changed.wait())
        waiting = {changed} if pump.done() else {changed, pump}
        await asyncio.wait(waiting, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()

    async def _mind_disk(self, disk: Leaving, status: TransferStatus) -> None:
        """See how the disk stands; hand its rest on when the guest has stopped."""
        if self._disk_finished:
            if disk.sent.done():
                disk.sent.result()
            return
        await disk.look()
        if status.passes > 1 or 0 < status.remaining_bytes < NEAR_END_BYTES:
            disk.sender.shallow()
        if status.status == transfer.PAUSED:
            await disk.finish()
            self._disk_finished = True
            await transfer.go_on(self._monitor)

    async def _steer(self, sender: Sender, status: TransferStatus, now: float) -> None:
        """Forecast the rest; stop the guest once that is short enough, slow it down if it would never be."""
        if status.passes > 1:
            sender.shallow()
        elif status.remaining_bytes > 0:
            self._narrow(sender, status, now)
        self._note_pass(status, now)
        path = self._path(sender)
        dirty_rate = max(self._dirty_rate, status.dirty_bytes_per_s)
        remaining_bytes = status.remaining_bytes + dirty_rate * (now - self._pass_at) * (status.passes > 1)
        self._forecast = forecast(remaining_bytes, dirty_rate, path, self._limit_s, self._passes_max)
        if self._first is None and sender.counters.raw_bytes > RATIO_AFTER_BYTES:
            self._first, self._first_at = self._forecast, now
        if self._policy is MigrationPolicy.POST_COPY and self._passes_max == 1:
            sender.shallow(urgent=True)  # what waits is sent before the devices, while the guest stands still
        if self._policy is MigrationPolicy.POST_COPY and self._must_follow(status):
            log.info("the guest writes too fast: its memory will follow it", dirty=status.dirty_bytes_per_s)
            self._migration.enter(SourcePhase.SWITCHOVER)
            await transfer.start_post_copy(self._monitor)
        elif status.passes > 1:
            await self._switch_or_throttle(status, downtime_s(remaining_bytes, path))

    def _note_pass(self, status: TransferStatus, now: float) -> None:
        """Remember where a pass begins, and how much the guest wrote in the one before."""
        if status.passes != self._passes:
            if self._passes > 0:  # what a pass begins with was written in the one before
                self._dirty_rate = status.remaining_bytes / max(now - self._pass_at, 1e-3)
            self._passes, self._pass_at = status.passes, now
            self._left_at_pass.append(status.remaining_bytes)

    def _path(self, sender: Sender) -> Path:
        """Return what the link does just now, and what already waits for it."""
        counters = sender.counters
        ratio = counters.wire_bytes / counters.raw_bytes if counters.raw_bytes > RATIO_AFTER_BYTES else RATIO_GUESS
        backlog = sender.backlog_bytes
        if self._disk is not None:
            backlog += self._disk.sender.backlog_bytes + self._disk.status.left_bytes * ratio
        return Path(sender.rate_bytes_per_s, counters.rtt_ms / 1e3, ratio, backlog)

    async def _switch_or_throttle(self, status: TransferStatus, down_s: float) -> None:
        """After the first pass: stop the guest where that takes ``down_s`` and is allowed to, or slow it down."""
        settled = self._throttling or status.passes >= SETTLED_PASSES
        if down_s <= (self._limit_s if settled else self._limit_s * AIM):
            self._forecast = Forecast(True, 0.0, round(down_s * 1e3, 1))
            self._migration.enter(SourcePhase.SWITCHOVER)
            await transfer.switch(self._monitor)
        elif self._policy is MigrationPolicy.THROTTLE and not self._throttling and self._stuck():
            self._throttling = True
            log.info(
                "the guest writes faster than the link takes it: it is slowed down", dirty=status.dirty_bytes_per_s
            )
            await transfer.throttle(self._monitor)

    def _narrow(self, sender: Sender, status: TransferStatus, now: float) -> None:
        """In the first pass: let wait only what can be sent until its end, and nothing near it."""
        remaining = status.remaining_bytes
        working_s = now - self._pass_at - sender.counters.blocked_s
        left_s = self._left_s = working_s * remaining / max(1, status.total_bytes - remaining)
        if left_s < NEAR_END_S and remaining < NEAR_END_BYTES:
            sender.shallow()
        else:
            sender.narrow(max(0.0, left_s - NEAR_END_S))

    def _must_follow(self, status: TransferStatus) -> bool:
        """Say whether the guest has to run at the target before its memory is there."""
        if self._passes_max == 1:  # what is written in the one pass could only be sent while the guest stands still
            return 0 < status.remaining_bytes < status.total_bytes * FOLLOWING_SHARE
        return status.passes > 1 and self._forecast is not None and not self._forecast.converges

    def _stuck(self) -> bool:
        """Say whether the last passes did not become shorter."""
        last = self._left_at_pass[-STUCK_PASSES:]
        return len(last) == STUCK_PASSES and last[-1] > last[0] * SHRINKS

    def _progress(self, status: TransferStatus, now: float) -> Progress:
        senders = [] if self._disk is None else [self._disk.sender]
        if self._sender is not None:
            senders.append(self._sender)
        all_counters = [sender.counters for sender in senders]
        wire_bytes = sum(each.wire_bytes for each in all_counters)
        rate = int((wire_bytes - self._last_wire) / max(now - self._last_at, 1e-3))
        self._last_wire, self._last_at = wire_bytes, now
        disk = None if self._disk is None else self._disk.status
        return Progress(
            total_bytes=status.total_bytes,
            remaining_bytes=status.remaining_bytes,
            disk_bytes=0 if disk is None else disk.total_bytes,
            disk_remaining_bytes=0 if disk is None else disk.left_bytes,
            raw_bytes=sum(each.raw_bytes for each in all_counters),
            wire_bytes=wire_bytes,
            dirty_bytes_per_s=status.dirty_bytes_per_s,
            rate_bytes_per_s=rate,
            passes=status.passes,
            streams=sum(each.streams for each in all_counters),
            rtt_ms=max(each.rtt_ms for each in all_counters),
            retransmits=sum(each.retransmits for each in all_counters),
            resumed=sum(each.resumed for each in all_counters),
            repaired_pages=sum(each.repaired_pages for each in all_counters),
            savings=_savings(senders),
            elapsed_s=round(now - self._started, 3),
            throttle_percent=status.throttle_percent,
            first_forecast=self._first,
            first_forecast_at_s=round(self._first_at - self._started, 3),
            forecast=self._forecast,
        )


async def _raise_failure(status: TransferStatus, pump: asyncio.Task[None]) -> None:
    """Raise TransferFailed when QEMU's migration has failed, and what ended the session where that is why."""
    if status.status == transfer.INTERRUPTED:
        if pump.done():
            pump.result()
        raise TransferFailed("QEMU's post-copy was interrupted")
    if status.status in transfer.ENDED and status.status != "none":
        await asyncio.wait({pump}, timeout=PUMP_ENDS_S)
        if pump.done():
            pump.result()  # why QEMU could go no further
        raise TransferFailed(f"QEMU gave up: {status.error or status.status}")
    if pump.done() and pump.exception() is not None:
        pump.result()


def _savings(senders: Sequence[Sender]) -> Savings:
    savings = [sender.savings for sender in senders]
    pages = {kind: sum(getattr(each, kind) for each in savings) * PAGE for kind in KINDS}
    compressed = sum(max(0, each.before_compression - each.after_compression) for each in savings)
    return Savings(**pages, compression=compressed)
