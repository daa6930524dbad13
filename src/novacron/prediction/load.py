"""The next hour's peak of a node's load, the onsets of its hot hours, and the next week's maximum of a VM.

All arrays are ``[node, hour]``, or ``[node, hour, column]``, of any unit of load; hours without measurements are NaN.
Few parameters serve all nodes: each value is divided by the node's own level, so that a large node teaches a small
one. Everything is known when an hour ends, and foresees the hour after it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

DAYS = 7
WEEKS = 3
ROUNDS = 25
SMALLEST_RESIDUAL = 0.01
RIDGE = 1e-3


class Hours(NamedTuple):
    """What is known of each hour when it ends."""

    peak: Floats
    mean: Floats
    end: Floats
    """The last sample."""
    quarter: Floats
    """The mean of the last quarter of the hour."""
    second: Floats
    """The second largest sample: a peak that one sample makes is less likely to return."""


def earlier(values: Floats, hours: int) -> Floats:
    """Return for each hour the value of so many hours before; of later hours, if ``hours`` is negative."""
    shifted = np.full_like(values, np.nan)
    if hours >= 0:
        shifted[:, hours:] = values[:, : values.shape[1] - hours]
    else:
        shifted[:, :hours] = values[:, -hours:]
    return shifted


def same_hour(values: Floats, ahead: int, days: int = DAYS) -> Floats:
    """Return ``[day, node, hour]``: the values of earlier days, ``ahead`` hours later in the day than now."""
    return np.stack([earlier(values, 24 * day - ahead) for day in range(1, days + 1)])


def over_days(summary: Callable[..., Floats], values: Floats) -> Floats:
    """Summarise days, leaving out those without a measurement; NaN where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return summary(values, axis=0)


def known_or(values: Floats, otherwise: Floats) -> Floats:
    return np.where(np.isnan(values), otherwise, values)


def features(known: Hours) -> tuple[Floats, Floats]:
    """Return what the next hour is foreseen from, ``[node, hour, column]``, and each hour's level, by which it is
    divided. NaN where too little is known."""
    next_hour, this_hour = same_hour(known.peak, 1), same_hour(known.peak, 0)
    usual, usual_now = over_days(np.nanmedian, next_hour), over_days(np.nanmedian, this_hour)
    last_day = np.stack([earlier(known.peak, hours) for hours in range(24)])
    typical = np.median(last_day, 0)
    columns = [
        *known,
        earlier(known.peak, 1), earlier(known.peak, 2), earlier(known.mean, 1),
        usual, over_days(np.nanmax, next_hour), over_days(np.nanmin, next_hour),
        over_days(np.nanmean, same_hour(known.mean, 1)),
        usual_now, known_or(next_hour[0], usual), known_or(next_hour[-1], usual),
        np.maximum(usual - usual_now, 0), typical, last_day[:6].max(0), last_day.max(0),
    ]  # fmt: skip
    level = (typical + usual) / 2 + 1
    return np.stack([*columns, level], axis=-1) / level[..., None], level


def fit_quantile(rows: Floats, targets: Floats, weights: Floats, share: float) -> Floats:
    """Return the coefficients of a linear quantile regression (Koenker and Bassett 1978), by iteratively reweighted
    least squares."""
    coefficients = np.zeros(rows.shape[1])
    factors = weights
    for _ in range(ROUNDS):
        weighted = (rows * factors[:, None]).T
        ridge = RIDGE * factors.mean() * np.eye(rows.shape[1])
        coefficients = np.linalg.solve(weighted @ rows + ridge, weighted @ targets)
        residuals = targets - rows @ coefficients
        sides = np.where(residuals > 0, share, 1 - share)
        factors = weights * sides / np.maximum(np.abs(residuals), SMALLEST_RESIDUAL)
    return coefficients


def next_week(maxima: Floats) -> Floats:
    """Forecast the next week's maximum from those of weeks ``[vm, week]``: the median of the last three. An outlier in
    one week does not count, a change does after two."""
    answer: Floats = np.median(maxima[:, -WEEKS:], axis=1)
    return answer
