"""Forecasts of load as they are served, and whether a learned model is worth more than the naive answer. Pure."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum

import msgspec


class ForecastKind(StrEnum):
    """What is foreseen."""

    NODE_HOUR = "node-hour"
    """The next hour's CPU peak of a node."""
    VM_WEEK = "vm-week"
    """The next week's CPU maximum of a VM."""


class ForecastModel(StrEnum):
    """What made a forecast."""

    LEARNED = "learned"
    LAST = "last"
    """As in the last hour, or week, that is known."""


SCORED_MIN = 100
"""Fewer scored forecasts set no model aside."""
BETTER = 0.98
"""The share of the naive error that the learned one must be below, to be used again."""


class NodeForecast(msgspec.Struct, frozen=True):
    """The next hour of a node. CPUs are those that its VMs use together, as a peak of half a minute."""

    hour: datetime
    """When the hour begins that is foreseen."""
    cpu_peak: float
    cpu_peak_lower: float | None
    cpu_peak_upper: float | None
    """With ``cpu_peak_lower``, a 90 % interval; null: too little is known for one."""
    memory_mib: int | None
    """Memory of the VMs that are placed on it, as in the last hour."""
    model: ForecastModel
    known_hours: int
    """Of the last 28 days."""
    made_at: datetime
    why: str
    """What it was made from, in words."""


class VmForecast(msgspec.Struct, frozen=True):
    """The next seven days of a VM. CPUs are processors that it uses, as a peak of half a minute."""

    day: date
    """The first day (UTC)."""
    cpu_max: float
    cpu_max_lower: float | None
    cpu_max_upper: float | None
    """With ``cpu_max_lower``, a 90 % interval; null: too little is known for one."""
    model: ForecastModel
    known_days: int
    """Of the last five weeks."""
    made_at: datetime
    why: str
    """What it was made from, in words."""


class UnusualLoad(msgspec.Struct, frozen=True):
    """A VM that is unlike itself. CPUs are processors, on average of an hour."""

    since: datetime
    """When the first hour began in which it was."""
    hour: datetime
    """When the last hour began that is known."""
    cpu: float
    cpu_usual: float
    """What it usually uses at this hour of the day, in the last 14 days."""
    cpu_deviation: float
    """By how much that usually varies: a standard deviation."""
    noisy: bool
    """It uses more than usual on a node whose processors are nearly all in use, so that other VMs wait."""
    words: str


class ForecastAccuracy(msgspec.Struct, frozen=True):
    """How forecasts of a kind compare with actual values. Errors are sums of absolute errors as shares of these."""

    kind: ForecastKind
    since: datetime
    scored: int
    error: float | None
    """Of what was served."""
    last_error: float | None
    """Of "as in the last hour" or week."""
    learned_error: float | None
    """Of the learned model, also while it is not in use, where it had enough data."""
    coverage: float | None
    """Share of actual values inside the 90 % interval."""
    lead_s: float | None
    """How long before the end of what it foresees a forecast was there, on average."""
    aside_since: datetime | None
    """Since when the learned model has not been used."""
    words: str = ""


class ScoreSums(msgspec.Struct, frozen=True):
    """Sums over the scored forecasts of a kind. Those of ``learned_`` are over the ones that the learned model
    foresaw, too."""

    count: int = 0
    came: float = 0.0
    error: float = 0.0
    last_error: float = 0.0
    learned_count: int = 0
    learned_came: float = 0.0
    learned_error: float = 0.0
    learned_last_error: float = 0.0
    intervals: int = 0
    inside: int = 0
    lead_s: float = 0.0


def unusual_words(used: float, usual: float, deviation: float, *, noisy: bool) -> str:
    """Say how a VM is unlike itself. Loads are in processors."""
    low, high = max(0.0, usual - deviation), usual + deviation
    words = f"used {used:.2f} CPUs in the last hour, usually {low:.2f} to {high:.2f} at this time of the day"
    return f"{words}; its node is busy, so that other VMs wait" if noisy else words


class ModelVerdict(msgspec.Struct, frozen=True):
    """Whether the learned model is set aside, and why."""

    aside: bool
    reason: str


def judge(was_aside: bool, sums: ScoreSums) -> ModelVerdict:
    """Compare the learned model with the naive answer, over the same forecasts of the last week. It goes on being
    made and scored while it is set aside, so that it comes back once it is better again."""
    if sums.learned_count < SCORED_MIN:
        few = f"{sums.learned_count} of its forecasts came in the last week, {SCORED_MIN} are needed to judge it"
        return ModelVerdict(was_aside, few)
    bound = sums.learned_last_error * (BETTER if was_aside else 1.0)
    aside = sums.learned_error > bound
    learned, last = percent(sums.learned_error, sums.learned_came), percent(sums.learned_last_error, sums.learned_came)
    return ModelVerdict(aside, f"its error was {learned} in the last week, that of the naive answer {last}")


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole > 0 else "unknown"


def share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def accuracy(
    kind: ForecastKind, since: datetime, sums: ScoreSums, aside_since: datetime | None, reason: str
) -> ForecastAccuracy:
    """Return what sums say, also in words. ``reason``: what the learned model was judged by."""
    if not sums.count:
        words = "no forecast was compared with what came yet"
    else:
        words = (
            f"{sums.count} forecasts were off by {percent(sums.error, sums.came)}, the naive answer by"
            f" {percent(sums.last_error, sums.came)}; {percent(sums.inside, sums.intervals)} of what came was in its"
            " 90 % interval"
        )
    if aside_since is not None:
        words += f"; the learned model is set aside: {reason}"
    return ForecastAccuracy(
        kind, since, sums.count, share(sums.error, sums.came), share(sums.last_error, sums.came),
        share(sums.learned_error, sums.learned_came), share(sums.inside, sums.intervals),
        share(sums.lead_s, sums.count), aside_since, words,
    )  # fmt: skip


def why(kind: ForecastKind, model: ForecastModel, known: int, needed: int, learned: bool) -> str:
    """Say what a forecast was made from. ``known``: hours or days; ``learned``: the learned model had enough."""
    unit, span = ("hours", "hour") if kind is ForecastKind.NODE_HOUR else ("days", "week")
    if model is ForecastModel.LEARNED:
        return f"learned from what the fleet used; {known} {unit} of this one are known"
    if learned:
        return f"as in the last {span}: the learned model is set aside, see: novacron forecast accuracy"
    if known < needed:
        return f"as in the last {span} that is known: only {known} {unit} are known, {needed} are needed"
    return f"as in the last {span} that is known: there are gaps in what is known, or the fleet's history is too short"
