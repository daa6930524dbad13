"""Which backups of a VM to keep: the newest of each of the last hours, days, weeks, months, years, as restic does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer


@dataclasses.dataclass(frozen=True)
class KeepCounts:
    """How many to keep by each rule. A backup is kept if any rule keeps it."""

    keep_last: Annotated[int, typer.Option(min=0, help="keep so many of the newest")] = 0
    keep_hourly: Annotated[int, typer.Option(min=0, help="keep the newest of each of so many hours")] = 0
    keep_daily: Annotated[int, typer.Option(min=0, help="keep the newest of each of so many days, in UTC")] = 0
    keep_weekly: Annotated[int, typer.Option(min=0, help="keep the newest of each of so many weeks")] = 0
    keep_monthly: Annotated[int, typer.Option(min=0, help="keep the newest of each of so many months")] = 0
    keep_yearly: Annotated[int, typer.Option(min=0, help="keep the newest of each of so many years")] = 0


PERIODS: dict[str, Callable[[datetime], object]] = {
    "keep_hourly": lambda at: (at.date(), at.hour),
    "keep_daily": lambda at: at.date(),
    "keep_weekly": lambda at: at.isocalendar()[:2],
    "keep_monthly": lambda at: (at.year, at.month),
    "keep_yearly": lambda at: at.year,
}
"""The period of a time, for each rule. Periods without a backup do not count."""


def kept(made_at: Mapping[str, datetime], counts: KeepCounts) -> dict[str, list[str]]:
    """Return the backups to keep, of those that were made at these times, with the rules that keep each."""
    newest_first = sorted(made_at, key=lambda id: (made_at[id], id), reverse=True)
    keeping: dict[str, list[str]] = {id: ["last"] for id in newest_first[: counts.keep_last]}
    for rule, period in PERIODS.items():
        seen = set[object]()
        for id in newest_first:
            if len(seen) == getattr(counts, rule):
                break
            if (at := period(made_at[id].astimezone(UTC))) not in seen:
                seen.add(at)
                keeping.setdefault(id, []).append(rule.removeprefix("keep_"))
    return keeping
