"""QEMU's side of a live restore: a disk whose lowest layer is read over NBD, and a job that copies that into the VM's
own layer while the guest runs (docs/interop/qemu-qmp-ref: block-stream)."""

from __future__ import annotations

import msgspec

from novacron.qemu import block
from novacron.qemu.command import DISK, RESTORED
from novacron.qemu.monitor import Monitor, MonitorFailed

JOB = "restore0"


class RestoreStatus(msgspec.Struct, frozen=True):
    """How far QEMU is. Sizes in bytes."""

    is_copied: bool
    """Nothing is read over NBD any more: all of the disk is in the VM's own layer, as QEMU has it in memory."""
    runs: bool = False
    """The job goes on."""
    done_bytes: int = 0
    total_bytes: int = 0


class GuestReads(msgspec.Struct, frozen=True):
    """What the guest has read of its disk since QEMU began, and for how long it waited for that."""

    count: int
    waited_s: float

    def mean_s_since(self, before: GuestReads) -> float:
        """Return how long a read took since ``before``; 0 if there was none."""
        count = self.count - before.count
        return (self.waited_s - before.waited_s) / count if count > 0 else 0.0


async def look(monitor: Monitor) -> RestoreStatus:
    """Return how the restore stands. Raises MonitorFailed."""
    job = next((job for job in await monitor.execute("query-jobs") if job["id"] == JOB), None)
    if job is not None:
        return RestoreStatus(False, True, job["current-progress"], job["total-progress"])
    return RestoreStatus(RESTORED not in await block.nodes(monitor))


async def begin(monitor: Monitor, bytes_per_s: int) -> None:
    """Begin to copy what the VM's own layer lacks, and what the guest reads. Raises MonitorFailed.

    The job is gone as soon as it has ended: of one that waits to be dismissed, QEMU 7.2 keeps a node without a child,
    and whoever asks for all nodes then crashes it.
    """
    job = {"job-id": JOB, "device": await block.top(monitor), "speed": bytes_per_s}
    await monitor.execute("block-stream", job)


async def limit(monitor: Monitor, bytes_per_s: int) -> None:
    """Limit what the job copies. Raises MonitorFailed."""
    await monitor.execute("block-job-set-speed", {"device": JOB, "speed": bytes_per_s})


async def guest_reads(monitor: Monitor) -> GuestReads:
    """Return what the guest has read of its disk; the job's reads do not count. Raises MonitorFailed."""
    for device in await monitor.execute("query-blockstats"):
        if f"{DISK}-device" in str(device.get("qdev", "")).split("/"):
            stats = device["stats"]
            return GuestReads(stats["rd_operations"], stats["rd_total_time_ns"] / 1e9)
    raise MonitorFailed(f"QEMU has no disk {DISK}")


async def write_out(monitor: Monitor) -> None:
    """Have QEMU write what it keeps of the disk in memory to its file. Raises MonitorFailed."""
    said = await monitor.execute("human-monitor-command", {"command-line": f"qemu-io {DISK} flush"})
    if said.strip():
        raise MonitorFailed(f"the disk can't be written out: {said.strip()[:200]}")
