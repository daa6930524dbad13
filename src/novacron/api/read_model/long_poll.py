"""``?wait=``: a write answers when its object has settled, or when the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from novacron.api.read_model.watch_cache import Cache
from novacron.model.backup import Backup
from novacron.model.export import Export
from novacron.model.image import Import
from novacron.model.migration import Migration
from novacron.model.snapshot import Snapshot
from novacron.model.vm import Vm
from novacron.model.volume import Volume

Object = dict[str, Any]


def _vm_settled(vm: Object) -> bool:
    """Say whether a VM has reached its desired state, or will not without help."""
    power, state = vm["spec"]["power"], vm["status"]["state"]
    of = vm["clone_of"]
    if vm["deleting"] or vm["migration"] is not None or (of is not None and not of.get("live")):
        return False
    return bool(state == {"running": "running", "stopped": "stopped", "paused": "paused"}[power] or state == "failed")


SETTLED: dict[type, tuple[str, Callable[[Object], bool]]] = {
    Vm: ("vm", _vm_settled),
    Migration: ("migration", lambda body: body["finished_at"] is not None),
    Import: ("import", lambda body: body["finished_at"] is not None),
    Export: ("export", lambda body: body["phase"] in ("ready", "failed")),
    Backup: ("backup", lambda body: body["phase"] in ("kept", "damaged", "failed")),
    Snapshot: ("snapshot", lambda body: body["phase"] in ("ready", "failed")),
    Volume: ("volume", lambda body: body["phase"] in ("ready", "failed") and not body["detaching"]),
}

Settling = Vm | Migration | Import | Export | Backup | Snapshot | Volume
"""What a write can wait for."""


async def settled(cache: Cache, result: object, body: bytes, etag: str, wait_s: float) -> tuple[bytes, str]:
    """Return the JSON and ETag of an object once it has settled, or when the time is over."""
    if not isinstance(result, Settling):
        return body, etag
    kind, is_settled = SETTLED[type(result)]
    deadline, revision = time.monotonic() + wait_s, 0
    while True:
        entry = cache.get(kind, result.id)
        if entry is None:  # deleted, as requested
            return body, etag
        body, etag, revision = entry.json, f'"{entry.revision}"', entry.revision
        left_s = deadline - time.monotonic()
        if is_settled(entry.body) or left_s <= 0:
            return body, etag
        await cache.changed(kind, result.id, revision, left_s)
