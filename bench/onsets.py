"""When a node begins to be hot: what that was foreseen from when models were compared. The product foresees loads by
other means (docs/prediction.md)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from novacron.prediction.load import (
    Flags,
    Floats,
    Hours,
    earlier,
    features,
    known_or,
    over_days,
    same_hour,
)

SAMPLES_AN_HOUR = 12
ONSET_DAYS = 14
LOGIT_ROUNDS, LOGIT_RIDGE, SMALLEST_WEIGHT = 15, 3.0, 1e-6
ALARMS_MIN = 20
"""A precision that fewer alarms show is chance."""


def by_hour(samples: Floats) -> Hours:
    """Summarise samples ``[node, sample]``; an hour with a gap is NaN."""
    count = samples.shape[1] // SAMPLES_AN_HOUR
    cut = samples[:, : count * SAMPLES_AN_HOUR].reshape(len(samples), count, SAMPLES_AN_HOUR)
    quarter = cut[:, :, -SAMPLES_AN_HOUR // 4 :].mean(2)
    return Hours(cut.max(2), cut.mean(2), cut[:, :, -1], quarter, np.sort(cut, 2)[:, :, -2])


def onset_features(known: Hours, hot: Floats) -> Floats:
    """Return what onsets are foreseen from: the load as a share of ``hot``, and how often the hours to come were hot
    on earlier days. ``hot`` is ``[node, 1]``: the peak from which an hour is hot."""
    rows, level = features(known)
    shares = np.log((rows * level[..., None] + 1) / (hot[..., None] + 1))
    measured = np.isfinite(known.peak)
    is_hot = np.where(measured, known.peak >= hot, np.nan)
    before = earlier(known.peak, 1)
    began = np.where(measured & np.isfinite(before), (known.peak >= hot) & (before < hot), np.nan)
    next_hour = same_hour(is_hot, 1)
    often = over_days(np.nanmean, next_hour)
    habits = [
        often, over_days(np.nanmean, same_hour(is_hot, 0)), over_days(np.nanmean, same_hour(is_hot, 2)),
        known_or(next_hour[0], often), known_or(next_hour[-1], often),
        over_days(np.nanmean, same_hour(began, 1, ONSET_DAYS)),
    ]  # fmt: skip
    return np.concatenate([shares, np.stack(habits, axis=-1)], axis=-1)


class Logit(NamedTuple):
    """A logistic regression on columns that are scaled to the same mean and width."""

    mean: Floats
    width: Floats
    coefficients: Floats

    def chance(self, rows: Floats) -> Floats:
        scaled = (rows - self.mean) / self.width
        score: Floats = scaled @ self.coefficients[:-1] + self.coefficients[-1]
        return 1 / (1 + np.exp(-np.clip(score, -30, 30)))


def fit_logit(rows: Floats, came: Flags) -> Logit:
    """Fit by Newton's method, with a small ridge that keeps it bounded."""
    mean, width = rows.mean(0), rows.std(0) + 1e-9
    scaled = np.concatenate([(rows - mean) / width, np.ones((len(rows), 1))], axis=1)
    coefficients = np.zeros(scaled.shape[1])
    for _ in range(LOGIT_ROUNDS):
        chance = 1 / (1 + np.exp(-np.clip(scaled @ coefficients, -30, 30)))
        weights = np.maximum(chance * (1 - chance), SMALLEST_WEIGHT)
        curvature = (scaled * weights[:, None]).T @ scaled + LOGIT_RIDGE * np.eye(scaled.shape[1])
        slope = scaled.T @ (came - chance) - LOGIT_RIDGE * coefficients
        coefficients = coefficients + np.linalg.solve(curvature, slope)
    return Logit(mean, width, coefficients)


def threshold(chances: Floats, came: Flags, precision: float) -> float:
    """Return the lowest chance from which on alarms are right so often; more than 1 if none is."""
    order = np.argsort(-chances, kind="stable")
    share_right = np.cumsum(came[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(share_right >= precision)
    enough = enough[enough >= ALARMS_MIN - 1]
    return float(chances[order][enough[-1]]) if len(enough) else 1.1
