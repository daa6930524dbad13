"""How much of a VM's disk has to be read for a backup: what QEMU recorded as written since the last one, or all of it.

QEMU begins a record with the moment that a backup copies, under the backup's name. Once the snapshot is in the
repository, the record gets its name, and only then the record since the backup before is ended. So a backup that fails
loses nothing. A record ends with its QEMU; whatever else would make it wrong ends it, or takes it off the disk's node.
"""

from __future__ import annotations

from collections.abc import Sequence

from novacron.agent.repositories.contents import EarlierDisk
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.qemu import block, dirty_bitmaps
from novacron.qemu.block import CopyPlan
from novacron.qemu.dirty_bitmaps import RECORDS_MAX, WriteRecord
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.telemetry import logs

log = logs.get(__name__)

RECORDED_BYTES_MAX = 32 << 30
"""Of an increment: for more, reading the disk costs little more, and less memory."""

REPOSITORIES = "repo-"
"""How ids of repositories begin: replicas have records of their own."""

FIRST = "it is the VM's first backup in this repository"
OFF = "the VM was off, and only a running QEMU records writes"
RECORD_ENDED = "the record of writes since the last backup ended when QEMU ended or the VM was reverted"
NEW_LAYER = "the disk has a new layer since the last backup: the VM was cloned"
PARENT_GONE = "the backup at which QEMU's record of writes starts is no longer complete in the repository"
RESIZED = "the disk was resized since the last backup"
NOT_WHOLE = "QEMU's record of writes is incomplete"
MUCH = f"more than {RECORDED_BYTES_MAX >> 30} GiB were written since the last backup"


def choose(
    records: Sequence[WriteRecord], node: str, earlier: EarlierDisk | None, disk_bytes: int
) -> tuple[WriteRecord | None, str]:  # fmt: skip
    """Return the record of a repository that says what changed since ``earlier``, or None; and why. ``records``: those
    of the repository; ``node``: that of the disk, which has ``disk_bytes``."""
    if not records:
        return None, RECORD_ENDED
    if earlier is None:
        return None, PARENT_GONE
    of_earlier = [record for record in records if record.since in (earlier.snapshot, earlier.backup)]
    here = [record for record in of_earlier if record.node == node]
    if not here:
        return None, NEW_LAYER if of_earlier else RECORD_ENDED
    record = min(here, key=lambda record: record.dirty_bytes)
    if not record.works:
        return None, NOT_WHOLE
    if earlier.file.size != disk_bytes:
        return None, RESIZED
    if record.dirty_bytes > RECORDED_BYTES_MAX:
        return None, MUCH
    return record, f"QEMU recorded the writes since {earlier.backup}"


class Increment:
    """What one backup reads of a VM's disk."""

    def __init__(self, machine: VirtualMachine, repository: str, backup: str) -> None:
        self._machine, self._repository, self._backup = machine, repository, backup
        self._is_first = False
        self.record: WriteRecord | None = None
        """What the copy of the disk has; None: all of it."""
        self.reason = OFF
        self.earlier: EarlierDisk | None = None

    async def points(self) -> frozenset[str]:
        """Return the snapshots and backups of the repository since which QEMU has records."""
        return frozenset(record.since for record in await self._records())

    def expect(self, earlier: EarlierDisk | None, *, is_first: bool) -> None:
        """Take what the repository knows of these."""
        self.earlier, self._is_first = earlier, is_first
        if is_first:
            self.reason = FIRST

    async def plan(self, monitor: Monitor, node: str) -> CopyPlan:
        """Decide what to copy, and begin a record with that. Raises MonitorFailed."""
        records = [record for record in await dirty_bitmaps.records(monitor) if record.repository == self._repository]
        left = [record for record in records if record.since == self._backup]
        await dirty_bitmaps.end(monitor, left)  # of an earlier attempt at this backup
        disk_bytes = await block.size_bytes(monitor)
        usable = [record for record in records if record not in left]
        self.record, why = choose(usable, node, self.earlier, disk_bytes)
        self.reason = FIRST if self._is_first and self.record is None else why
        begins = dirty_bitmaps.name_of(self._repository, self._backup)
        return CopyPlan("" if self.record is None else self.record.name, begins)

    async def keep(self, snapshot: str) -> None:
        """The backup is in the repository: the next one needs what was written since."""
        monitor = self._machine.monitor
        try:
            records = await self._records()
            begun = next((record for record in records if record.since == self._backup), None)
            if monitor is None or begun is None:
                return
            name = dirty_bitmaps.name_of(self._repository, snapshot)
            await dirty_bitmaps.end(monitor, [record for record in records if record.name == name])
            await dirty_bitmaps.rename(monitor, begun.node, begun.name, name)
            await dirty_bitmaps.end(monitor, [record for record in records if record.name not in (begun.name, name)])
            await self._limit(monitor)
        except MonitorFailed as error:  # the next backup reads all of the disk then, and says so
            log.warning("what is written to a VM's disk is not recorded", vm=self._machine.id, error=str(error))

    async def _limit(self, monitor: Monitor) -> None:
        """End the records of repositories of which there was no backup for the longest, as far as that shows."""
        others = [
            record
            for record in await dirty_bitmaps.records(monitor)
            if record.repository != self._repository and record.repository.startswith(REPOSITORIES)
        ]
        others.sort(key=lambda record: record.dirty_bytes, reverse=True)
        await dirty_bitmaps.end(monitor, others[: max(0, len(others) + 1 - RECORDS_MAX)])

    async def give_up(self) -> None:
        """The backup was not made: the record since the one before goes on as it was."""
        try:
            begun = [record for record in await self._records() if record.since == self._backup]
            if self._machine.monitor is not None:
                await dirty_bitmaps.end(self._machine.monitor, begun)
        except MonitorFailed as error:
            log.warning("the record of a backup that failed stays", vm=self._machine.id, error=str(error))

    async def _records(self) -> list[WriteRecord]:
        monitor = self._machine.monitor
        if monitor is None or self._machine.pid is None:
            return []
        return [record for record in await dirty_bitmaps.records(monitor) if record.repository == self._repository]
