"""What QEMU records of a disk: the blocks that were written since a backup (QEMU's docs/interop/bitmaps).

A record is a dirty bitmap that QEMU has in memory: it outlives agents, and ends with QEMU. Its name says of which disk
it is, in which repository the backup is, and which backup that is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from novacron.qemu.command import DISK
from novacron.qemu.monitor import Monitor, MonitorFailed

PREFIX = "novacron"
GRANULARITY_BYTES = 64 << 10
"""Of one bit: a block of a repository."""
RECORDS_MAX = 16
"""Of one disk. A record of 1 TiB has 2 MiB."""


class WriteRecord(NamedTuple):
    """A record, and how it is."""

    node: str
    """The node of QEMU's block layer that has it."""
    name: str
    repository: str
    since: str
    """What of the repository it began with: the snapshot's id, or the backup's, as long as that is being made."""
    dirty_bytes: int
    works: bool
    """It has recorded every write, and still does."""


def name_of(repository: str, since: str) -> str:
    return "/".join((PREFIX, DISK, repository, since))


async def records(monitor: Monitor) -> list[WriteRecord]:
    """Return all records, of each node of the block layer. Raises MonitorFailed."""
    try:
        return [
            _record(str(node["node-name"]), bitmap)
            for node in await monitor.execute("query-named-block-nodes", {"flat": True})
            for bitmap in node.get("dirty-bitmaps", ())
            if str(bitmap.get("name", "")).startswith(f"{PREFIX}/{DISK}/") and str(bitmap["name"]).count("/") == 3
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # its guest may have taken it over
        raise MonitorFailed(f"QEMU says of its disks what can't be: {type(error).__name__}") from error


def _record(node: str, bitmap: dict[str, Any]) -> WriteRecord:
    name = str(bitmap["name"])
    _, _, repository, since = name.split("/")
    works = bool(bitmap["recording"]) and not bitmap["busy"] and not bitmap.get("inconsistent")
    as_made = bitmap["granularity"] == GRANULARITY_BYTES
    return WriteRecord(node, name, repository, since, int(bitmap["count"]), works and as_made)


def begin(node: str, name: str) -> dict[str, object]:
    """Return the action of a transaction that begins a record with its moment."""
    data = {"node": node, "name": name, "granularity": GRANULARITY_BYTES, "persistent": False}
    return {"type": "block-dirty-bitmap-add", "data": data}


async def rename(monitor: Monitor, node: str, name: str, new_name: str) -> None:
    """Let a record have another name; no write is missed. Raises MonitorFailed."""
    merge = {"node": node, "target": new_name, "bitmaps": [name]}
    await monitor.execute("transaction", {"actions": [
        begin(node, new_name),
        {"type": "block-dirty-bitmap-merge", "data": merge},
        {"type": "block-dirty-bitmap-remove", "data": {"node": node, "name": name}},
    ]})  # fmt: skip


async def end(monitor: Monitor, ended: Iterable[WriteRecord]) -> None:
    """Let QEMU forget records. Raises MonitorFailed."""
    for record in ended:
        await monitor.execute("block-dirty-bitmap-remove", {"node": record.node, "name": record.name})


async def end_all(monitor: Monitor) -> None:
    """Let QEMU forget all: the disk is about to change in a way that is not recorded. Raises MonitorFailed."""
    await end(monitor, await records(monitor))
