"""When VMs are due to be backed up: times of a policy's schedule, spread over its VMs, and tried again after a failure.

A VM is due when a time of the schedule has passed since its last backup. So a server that was away catches up, once,
and nothing has to be remembered but the backups themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

TRIES_MAX = 5
"""Failed backups of a VM for one time of the schedule."""
RETRY_S_MIN, RETRY_S_MAX = 60, 3600


def offset_s(policy: str, vm: str, jitter_s: int) -> int:
    """Return how long after each time of the schedule a VM's own moment is: always the same, evenly spread."""
    digest = hashlib.sha256(f"{policy} {vm}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (jitter_s + 1)


class VmHistory(NamedTuple):
    """What a policy has done about a VM."""

    since: datetime
    """From when on the policy covers it: earlier times of the schedule do not count."""
    asked_at: datetime | None
    """When its last backup that did not fail was asked for."""
    failed_at: Sequence[datetime] = ()
    """When those that failed were asked for, newest first."""


def due_since(
    times: Sequence[datetime], offset_s: int, history: VmHistory, now: datetime, start_within_s: int | None
) -> datetime | None:
    """Return since when a VM is to be backed up; None: it is not, or not yet again after a failure. ``times`` are those
    of ``Calendar.until``, newest first."""
    offset = timedelta(seconds=offset_s)
    at = next((time + offset for time in times if time + offset <= now), None)
    if at is None or at <= history.since or (history.asked_at is not None and history.asked_at >= at):
        return None
    if start_within_s is not None and now - at > timedelta(seconds=start_within_s):
        return None
    failed = [moment for moment in history.failed_at if moment >= at]
    if not failed:
        return at
    retry_s = min(RETRY_S_MIN * 2 ** (len(failed) - 1), RETRY_S_MAX)
    return at if len(failed) < TRIES_MAX and now - failed[0] >= timedelta(seconds=retry_s) else None


def asked_since(run_at: datetime | None, history: VmHistory) -> datetime | None:
    """Return since when somebody wants a backup of all VMs now, if there was no attempt for this one since."""
    attempts = [moment for moment in (history.asked_at, *history.failed_at[:1]) if moment is not None]
    return run_at if run_at is not None and all(moment < run_at for moment in attempts) else None
