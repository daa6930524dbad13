"""Moves that wait for their time, and which time that is. Pure.

How fast a guest writes memory decides what its move costs. What it wrote at which hour is not recorded; how much
processor it used is. A guest that does little writes little: the hour in which it usually does least is the cheapest.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from novacron.model.errors import InvalidInput
from novacron.model.migration import MigrationPolicy

AHEAD_MAX = timedelta(days=30)
"""How far ahead a move may be scheduled."""
TRIED_FOR = timedelta(hours=24)
"""How long a move without a deadline is tried after its time."""
LOOK_AHEAD = timedelta(hours=24)
"""For how long the cheapest time is looked for where nobody sets a deadline: the hours of a day repeat."""
RESERVE_MIN, RESERVE_FACTOR = timedelta(minutes=1), 2.0
"""A move begins early enough for twice the time that it is foreseen to take."""
RESERVE_UNKNOWN = timedelta(minutes=10)
"""... or this, where nothing is foreseen: but never more than half of the time that there is."""
AS_CHEAP = 1.1
"""An earlier hour counts as just as cheap if the guest uses at most this times as much."""
IDLE_CPUS = 0.02
"""What a guest uses below this makes no difference."""


class ScheduledMove(msgspec.Struct, frozen=True, kw_only=True):
    """How and when a VM is to be moved. ``target`` None: to the node that is best then."""

    not_before: datetime
    deadline: datetime
    """When it should be over; it is not begun any more after it."""
    begins_at: datetime
    why: str
    """Why then, in a sentence."""
    actor: str
    target: str | None = None
    weight: int = 1
    rate_limit_bytes_per_s: int | None = None
    policy: MigrationPolicy = MigrationPolicy.THROTTLE
    warm: bool = False
    refusal: str | None = None
    """Why it could not begin when it was tried last."""


class MoveTime(NamedTuple):
    """When a move is cheapest, and why."""

    at: datetime
    why: str


class MoveWindow(NamedTuple):
    """When a move may begin, and when it should be over."""

    not_before: datetime
    deadline: datetime
    is_open_end: bool
    """Nobody has set the deadline."""


def window(not_before: datetime | None, deadline: datetime | None, now: datetime) -> MoveWindow:
    """Return when a move may begin. Raises InvalidInput."""
    _check("not_before", not_before, now)
    _check("deadline", deadline, now)
    if not_before is None and deadline is None:
        raise InvalidInput("neither not_before nor deadline is given", hint="name one of them, or migrate at once")
    begin = max(now, not_before or now)
    if deadline is not None and deadline <= begin:
        behind = "not_before" if not_before is not None and not_before > now else "the present"
        raise InvalidInput(f"it is not after {behind}", field="deadline", hint="name a later time")
    return MoveWindow(begin, deadline or begin + TRIED_FOR, deadline is None)


def _check(field: str, moment: datetime | None, now: datetime) -> None:
    """Raise InvalidInput unless a time is near enough, and in a zone."""
    if moment is None:
        return
    if moment.tzinfo is None:
        raise InvalidInput("it has no time zone", field=field, hint="write for example 2026-12-01T22:00:00Z")
    if moment > now + AHEAD_MAX:
        raise InvalidInput(f"it is more than {AHEAD_MAX.days} days ahead", field=field, hint="name an earlier time")


def cheapest(begin: datetime, end: datetime, usual: Sequence[float] | None, takes_s: float | None) -> MoveTime:
    """Return when a move is best begun that should be over before ``end``.

    ``usual``: processors that the guest uses at each hour of the day (UTC), None if that is not known. ``takes_s``: how
    long the move is foreseen to take.
    """
    reserve = RESERVE_UNKNOWN if takes_s is None else max(RESERVE_MIN, timedelta(seconds=RESERVE_FACTOR * takes_s))
    latest = max(begin, end - min(reserve, (end - begin) / 2 if takes_s is None else reserve))
    if usual is None:
        return MoveTime(begin, "too little is known of what the VM does at which hour: as early as it may")
    times = _hours(begin, latest)
    uses = [usual[at.hour] for at in times]
    least = min(uses)
    first = next(n for n, use in enumerate(uses) if use <= max(least * AS_CHEAP, IDLE_CPUS))
    if uses[first] >= usual[begin.hour]:
        return MoveTime(begin, f"the VM usually does no less until {latest:%H:%M} UTC")
    at = times[first]
    return MoveTime(
        at,
        f"the VM usually uses {uses[first]:.2f} processors in the hour from {at:%H}:00 UTC, the least until"
        f" {latest:%d %B %H:%M} UTC; in the hour from {begin:%H}:00 it uses {usual[begin.hour]:.2f}",
    )


def _hours(begin: datetime, latest: datetime) -> list[datetime]:
    """Return ``begin``, and when each later hour begins until ``latest``: of a day, for then they repeat."""
    begin = begin.astimezone(UTC)
    full = begin.replace(minute=0, second=0, microsecond=0)
    later = (full + timedelta(hours=n) for n in range(1, 25))
    return [begin, *(at for at in later if at <= latest)]
