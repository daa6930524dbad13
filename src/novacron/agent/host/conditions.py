"""Conditions of this host that only its agent can know, looked at from time to time and reported when they change."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from novacron.model.condition import (
    ConditionReason,
    ConditionStatus,
    ConditionType,
    PeersSeen,
    ReportedCondition,
)
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

LOOK_S = 5.0
DISK_S_MAX = 10.0
"""A disk that has not taken a small file after so long hangs."""
FULL_BYTES, FULL_UNTIL_BYTES = 16 << 20, 64 << 20
"""The disk is full below the first, until there is the second again."""
NEARLY_SHARE, NEARLY_BYTES_MAX, NEARLY_UNTIL = 0.05, 10 << 30, 1.25
"""It is nearly full below this share of it, or so many bytes if that is less, until there is so much more."""
MEMORY_SHARE, MEMORY_UNTIL = 0.05, 1.5
"""Memory is low below this share of it, until so much more is available."""
STALLED_PERCENT, STALLED_UNTIL_PERCENT = 20.0, 10.0
"""It is under pressure when all tasks waited for memory for this share of the last ten seconds (PSI)."""
MEMORY_SETTLES_S = 15.0
"""Memory must be low, or available again, for so long before that is said."""
CHECK_FILE = ".disk-check"
CHECK_BYTES = 4096
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

R = ConditionReason
SEVERITY = (
    R.DISK_WRITABLE, R.DISK_NEARLY_FULL, R.DISK_FULL, R.DISK_READ_ONLY, R.DISK_FAILS, R.DISK_HANGS,
)  # fmt: skip
"""Of several disks, the worst is said."""


class DiskLook(NamedTuple):
    """What a look at the disk found. ``error``: why a small file could not be written, None if it could."""

    free_bytes: int
    total_bytes: int
    error: OSError | None = None
    hangs: bool = False


class MemoryLook(NamedTuple):
    available_bytes: int
    total_bytes: int
    stalled_percent: float


def look_at_disk(directory: Path) -> DiskLook:
    """Measure the room in a directory, and try to write there."""
    error, free, total = None, 0, 0
    path = directory / CHECK_FILE
    try:
        room = os.statvfs(directory)
        free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, bytes(CHECK_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileExistsError:
        pass  # nodes share the directory, of images for example, and another one is just writing there
    except OSError as failure:
        error = failure
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return DiskLook(free, total, error)


def look_at_memory() -> MemoryLook:
    """Read what is available, and how long all tasks waited for memory. Raises OSError."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    stalled = 0.0
    with contextlib.suppress(OSError, ValueError, IndexError):  # kernels without PSI
        full = Path("/proc/pressure/memory").read_text().splitlines()[1]
        stalled = float(full.split()[1].removeprefix("avg10="))
    return MemoryLook(int(fields["MemAvailable"].split()[0]) << 10, int(fields["MemTotal"].split()[0]) << 10, stalled)


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def judge_disk(look: DiskLook, before: ConditionReason, directory: Path) -> ReportedCondition:
    """Return the disk's condition; one that was said to be full is so until there is clearly more room."""
    reason, disk = _disk_reason(look, before), f"the disk of {directory}"
    room = f"{_size(look.free_bytes)} of {_size(look.total_bytes)} free"
    free = "remove images or move VMs away (novacron node drain), or make the disk larger"
    words = {
        R.DISK_WRITABLE: f"{disk} is writable and has free space",
        R.DISK_NEARLY_FULL: f"{disk} is nearly full: {room}; {free}",
        R.DISK_FULL: f"{disk} is full: {room}; {free}",
        R.DISK_READ_ONLY: f"{disk} is read-only: see dmesg there, repair it and mount it again",
        R.DISK_FAILS: f"{disk} can't be written to: {_text(look.error)}; see dmesg there",
        R.DISK_HANGS: f"{disk} has completed no write for {DISK_S_MAX:.0f} s: see dmesg there",
    }
    status = ConditionStatus.TRUE if reason is R.DISK_WRITABLE else ConditionStatus.FALSE
    return ReportedCondition(ConditionType.DISK, status, reason, words[reason])


def _text(error: OSError | None) -> str:
    return "" if error is None else error.strerror or str(error)


def _disk_reason(look: DiskLook, before: ConditionReason) -> ConditionReason:
    if look.hangs:
        return R.DISK_HANGS
    code = None if look.error is None else look.error.errno
    full = FULL_UNTIL_BYTES if before is R.DISK_FULL else FULL_BYTES
    if code in NO_ROOM or (code is None and look.free_bytes < min(full, look.total_bytes // 4)):
        return R.DISK_FULL
    if code is not None:
        return R.DISK_READ_ONLY if code == errno.EROFS else R.DISK_FAILS
    nearly = min(look.total_bytes * NEARLY_SHARE, NEARLY_BYTES_MAX)
    if before in (R.DISK_NEARLY_FULL, R.DISK_FULL):
        nearly *= NEARLY_UNTIL
    return R.DISK_NEARLY_FULL if look.free_bytes < nearly else R.DISK_WRITABLE


class MemoryJudge:
    """Says how memory is, once it has been so for a while."""

    def __init__(self) -> None:
        self.reason = R.MEMORY_AVAILABLE
        self._next, self._since = R.MEMORY_AVAILABLE, 0.0

    def judge(self, look: MemoryLook, now: float) -> ReportedCondition:
        """Return memory's condition."""
        reason = self._reason(look)
        if reason is not self._next:
            self._next, self._since = reason, now
        if reason is not self.reason and now - self._since >= MEMORY_SETTLES_S:
            self.reason = reason
        free = f"{_size(look.available_bytes)} of {_size(look.total_bytes)} available"
        then = "move VMs away before the kernel kills some: novacron vm migrate"
        words = {
            R.MEMORY_AVAILABLE: "memory is available",
            R.MEMORY_LOW: f"memory is low: {free}; {then}",
            R.MEMORY_PRESSURE: f"tasks stall on memory {look.stalled_percent:.0f} % of the time: {free}; {then}",
        }
        status = ConditionStatus.TRUE if self.reason is R.MEMORY_AVAILABLE else ConditionStatus.FALSE
        return ReportedCondition(ConditionType.MEMORY, status, self.reason, words[self.reason])

    def _reason(self, look: MemoryLook) -> ConditionReason:
        """Pressure comes first: it is worse, and where it is there is little memory, too."""
        bad = self.reason is not R.MEMORY_AVAILABLE
        if look.stalled_percent > (STALLED_UNTIL_PERCENT if bad else STALLED_PERCENT):
            return R.MEMORY_PRESSURE
        low = look.available_bytes < look.total_bytes * MEMORY_SHARE * (MEMORY_UNTIL if bad else 1.0)
        return R.MEMORY_LOW if low else R.MEMORY_AVAILABLE


class WatchedDisk:
    """The disk of one directory. ``condition``: how it was found last; None: it was not looked at."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.condition: ReportedCondition | None = None
        self._looking: asyncio.Future[DiskLook] | None = None

    async def look(self) -> ReportedCondition:
        """Look in a thread; one that hangs is left alone, and no second one is begun."""
        if self._looking is None:
            self._looking = asyncio.ensure_future(asyncio.to_thread(look_at_disk, self._directory))
        try:
            look = await asyncio.wait_for(asyncio.shield(self._looking), DISK_S_MAX)
            self._looking = None
        except TimeoutError:
            look = DiskLook(0, 0, hangs=True)
        before = R.DISK_WRITABLE if self.condition is None else self.condition.reason
        self.condition = judge_disk(look, before, self._directory)
        return self.condition


def on_different_disks(directories: Iterable[Path]) -> list[Path]:
    """Return the first directory, and of the others that are there already one for each further file system."""
    first, *others = directories
    chosen, known = [first], set[int]()
    for directory in (first, *others):
        with contextlib.suppress(OSError):
            device = directory.stat().st_dev
            if device not in known and directory is not first:
                chosen.append(directory)
            known.add(device)
    return chosen


class HostConditions:
    """Looks at the host, and reports its conditions when one changes. ``run`` must run."""

    def __init__(
        self,
        directories: Iterable[Path],
        peers: Callable[[], PeersSeen],
        overlay: Callable[[], ReportedCondition],
        send: Callable[[wire.ConditionsFound], None],
    ) -> None:
        """``directories``: the agent can do little unless it can write to each; the first holds its state. ``peers``
        says which other nodes answer; ``overlay``, who sends frames of its networks."""
        self._disks = [WatchedDisk(directory) for directory in on_different_disks(directories)]
        self._peers, self._find_overlay, self._send = peers, overlay, send
        self._disk: ReportedCondition | None = None
        self._memory: ReportedCondition | None = None
        self._overlay: ReportedCondition | None = None
        self._memory_judge = MemoryJudge()
        self._sent: wire.ConditionsFound | None = None
        self._anew = asyncio.Event()

    def resync(self) -> None:
        """The link is new: say everything again."""
        self._sent = None
        self._anew.set()

    async def run(self) -> None:
        """Look and report until cancelled."""
        while True:
            self._anew.clear()
            await self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._anew.wait()

    async def look(self) -> None:
        """Look once, and report what has changed."""
        disks = [await disk.look() for disk in self._disks]
        self._disk = _changed(self._disk, max(disks, key=lambda disk: SEVERITY.index(disk.reason)))
        with contextlib.suppress(OSError):  # without /proc there is nothing to say
            memory = await asyncio.to_thread(look_at_memory)
            self._memory = _changed(self._memory, self._memory_judge.judge(memory, time.monotonic()))
        overlay = self._find_overlay()
        _changed(self._overlay, overlay)
        self._overlay = overlay  # who sends such frames is said as it is now
        judged = (self._disk, self._memory, self._overlay)
        conditions = tuple(condition for condition in judged if condition is not None)
        message = wire.ConditionsFound(conditions, self._peers())
        if message != self._sent:
            self._sent = message
            self._send(message)


def _changed(before: ReportedCondition | None, now: ReportedCondition) -> ReportedCondition:
    """Return the condition that is to be said: figures in the words of one that stays are those of its beginning."""
    if before is not None and before.reason is now.reason:
        return before
    if before is not None or now.status is not ConditionStatus.TRUE:
        say = log.info if now.status is ConditionStatus.TRUE else log.warning
        say("a condition of this host has changed", condition=now.type, reason=now.reason, found=now.message)
    return now
