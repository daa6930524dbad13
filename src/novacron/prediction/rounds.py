"""A round of forecasts for all nodes and VMs, with intervals: fitted to what is known, and naive where that is little.

Intervals are of 90 %. Those of the quantile regression are widened by what they missed in the newest fifth of the time,
which they were not fitted to (Romano, Patterson and Candès, "Conformalized Quantile Regression", 2019). Others are the
5 % and 95 % quantiles of what came divided by what was foreseen, over all nodes or VMs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from novacron.prediction import load
from novacron.prediction.load import Flags, Floats, Hours

LOWER, UPPER = 0.05, 0.95
COVERS = UPPER - LOWER
TRAINED_NODES_MAX = 400
"""Nodes, drawn at random, to which the model is fitted: few coefficients need no more."""
TRAINED_HOURS_MIN, TRAINED_HOURS_MAX = 500, 100_000
KNOWN_HOURS_MIN = 72
"""A node with fewer known hours is foreseen as in the last hour."""
LATER_SHARE = 0.2
LOOK_BACK_HOURS = (load.DAYS + 1) * 24
PAIRS_MIN = 100
"""Fewer pairs of forecast and outcome say nothing of an interval."""
SMALLEST = 1.0
"""In percent of a processor: added to both sides of a ratio."""
NEWEST_HOURS_MAX = 6
"""The last known hour may be so old, where the last one is not known."""


class Outlook(NamedTuple):
    """What is foreseen of each node or VM. NaN: not known."""

    last: Floats
    """As in the last hour or week."""
    learned: Floats
    lower: Floats
    upper: Floats
    """Of the learned forecast where there is one, else of the naive one."""
    last_lower: Floats
    last_upper: Floats


class Ratios(NamedTuple):
    """How what came compares with what was foreseen; NaN: too few pairs."""

    lower: float
    upper: float

    @classmethod
    def of(cls, foreseen: Floats, came: Floats) -> Ratios:
        known = np.isfinite(foreseen) & np.isfinite(came)
        if known.sum() < PAIRS_MIN:
            return cls(np.nan, np.nan)
        ratios = (came[known] + SMALLEST) / (foreseen[known] + SMALLEST)
        lower, upper = np.quantile(ratios, (LOWER, UPPER))
        return cls(min(1.0, float(lower)), max(1.0, float(upper)))

    def around(self, foreseen: Floats) -> tuple[Floats, Floats]:
        return (
            np.maximum((foreseen + SMALLEST) * self.lower - SMALLEST, 0),
            (foreseen + SMALLEST) * self.upper - SMALLEST,
        )


class PeakModel(NamedTuple):
    """Coefficients of the next hour's peak, and how much the interval is widened, as a share of the level."""

    lower: Floats
    middle: Floats
    upper: Floats
    wider: float


def fit_peaks(known: Hours, seed: int = 1) -> PeakModel | None:
    """Fit the model to some nodes; None if too little is known."""
    random = np.random.default_rng(seed)
    nodes, hours = known.peak.shape
    if hours < LOOK_BACK_HOURS:
        return None
    if nodes > TRAINED_NODES_MAX:
        drawn = random.choice(nodes, TRAINED_NODES_MAX, replace=False)
        known = Hours(*(values[drawn] for values in known))
    rows, level = load.features(known)
    target = load.earlier(known.peak, -1)
    usable = np.isfinite(rows).all(-1) & np.isfinite(target)
    if usable.sum() < TRAINED_HOURS_MIN:
        return None
    usable &= random.random(usable.shape) < TRAINED_HOURS_MAX / usable.sum()
    times = np.broadcast_to(np.arange(target.shape[1]), target.shape)
    split = np.quantile(times[usable], 1 - LATER_SHARE)
    earlier, later = usable & (times <= split), usable & (times > split)

    def fit(where: Flags, share: float) -> Floats:
        weights = (level / level[usable].mean())[where]
        return load.fit_quantile(rows[where], (target / level)[where], weights, share)

    lower, upper = fit(earlier, LOWER), fit(earlier, UPPER)
    share = (target / level)[later]
    missed = np.maximum(rows[later] @ lower - share, share - rows[later] @ upper)
    wider = float(np.quantile(missed, COVERS)) if len(missed) else 0.0
    return PeakModel(lower, fit(usable, 0.5), upper, wider)


def forecast_peaks(known: Hours, model: PeakModel | None) -> Outlook:
    """Forecast the hour after the last one of ``known`` (``[node, hour]``, in percent of a processor)."""
    recent = Hours(*(values[:, -LOOK_BACK_HOURS:] for values in known))
    last = newest(known.peak[:, -NEWEST_HOURS_MAX:])
    before = load.earlier(recent.peak, 1)
    last_lower, last_upper = Ratios.of(before, recent.peak).around(last)
    if model is None or recent.peak.shape[1] < LOOK_BACK_HOURS:
        nothing = np.full_like(last, np.nan)
        return Outlook(last, nothing, last_lower, last_upper, last_lower, last_upper)
    rows, level = load.features(recent)
    rows, level = rows[:, -1], level[:, -1]
    enough = np.isfinite(known.peak).sum(1) >= KNOWN_HOURS_MIN
    learned = np.where(enough, np.maximum(rows @ model.middle * level, 0), np.nan)
    lower = np.clip((rows @ model.lower - model.wider) * level, 0, learned)
    upper = np.maximum((rows @ model.upper + model.wider) * level, learned)
    there = np.isfinite(learned)
    return Outlook(
        last, learned, np.where(there, lower, last_lower), np.where(there, upper, last_upper), last_lower, last_upper
    )


def newest(values: Floats) -> Floats:
    """Return the newest known value of each row; NaN where there is none."""
    latest = np.full(len(values), np.nan)
    for column in values.T:
        latest = np.where(np.isfinite(column), column, latest)
    return latest


def forecast_weeks(maxima: Floats) -> Outlook:
    """Forecast the next week's maximum from those of weeks ``[vm, week]``, the newest last; NaN: not known."""
    last, weeks = newest(maxima), maxima.shape[1]
    nothing = np.full_like(last, np.nan)
    learned = load.next_week(maxima) if weeks >= load.WEEKS else nothing
    foreseen, came, naive = [nothing[:0]], [nothing[:0]], [nothing[:0]]
    for week in range(1, weeks):
        enough = week >= load.WEEKS
        foreseen.append(load.next_week(maxima[:, :week]) if enough else np.full_like(last, np.nan))
        naive.append(maxima[:, week - 1])
        came.append(maxima[:, week])
    outcome = np.concatenate(came)
    lower, upper = Ratios.of(np.concatenate(foreseen), outcome).around(learned)
    last_lower, last_upper = Ratios.of(np.concatenate(naive), outcome).around(last)
    there = np.isfinite(learned)
    return Outlook(
        last, learned, np.where(there, lower, last_lower), np.where(there, upper, last_upper), last_lower, last_upper
    )
