"""Which backups of a VM to keep: the newest of each of the last hours, days, weeks, months, years, as restic does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=10_000)]


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many to keep by each rule. A backup is kept if any rule keeps it."""

    last: Count = 0
    """So many of the newest."""
    hourly: Count = 0
    """The newest of each of so many hours; likewise below. Hours, days and so on are in UTC."""
    daily: Count = 0
    weekly: Count = 0
    monthly: Count = 0
    yearly: Count = 0

    @property
    def has_rules(self) -> bool:
        return any(getattr(self, rule) for rule in self.__struct_fields__)


PERIODS: dict[str, Callable[[datetime], object]] = {
    "hourly": lambda at: (at.date(), at.hour),
    "daily": lambda at: at.date(),
    "weekly": lambda at: at.isocalendar()[:2],
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: at.year,
}
"""The period of a time, for each rule. Periods without a backup do not count."""


def to_keep(made_at: Mapping[str, datetime], keep: Keep) -> dict[str, list[str]]:
    """Return the backups to keep, of those that were made at these times, with the rules that keep each."""
    newest_first = sorted(made_at, key=lambda id: (made_at[id], id), reverse=True)
    keeping: dict[str, list[str]] = {id: ["last"] for id in newest_first[: keep.last]}
    for rule, period in PERIODS.items():
        seen = set[object]()
        for id in newest_first:
            if len(seen) == getattr(keep, rule):
                break
            if (at := period(made_at[id].astimezone(UTC))) not in seen:
                seen.add(at)
                keeping.setdefault(id, []).append(rule)
    return keeping
