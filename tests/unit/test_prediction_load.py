"""Forecasts of load: what they are made from is known when the hour ends, and the fits find what is there."""

from __future__ import annotations

import numpy as np
import pytest

from bench import onsets
from bench.prediction import quarter
from novacron.prediction import load
from novacron.prediction.load import Floats

DAYS = 20
HOT_HOUR = 9


def samples(seed: int = 1) -> Floats:
    """Two nodes with a hot hour each day, and noise."""
    random = np.random.default_rng(seed)
    hours = np.arange(DAYS * 24) % 24
    level = np.where(hours == HOT_HOUR, 900.0, 100.0)
    values: Floats = np.repeat(np.stack([level, 3 * level]), onsets.SAMPLES_AN_HOUR, axis=1)
    return values * random.uniform(0.95, 1.05, values.shape)


def test_an_hour_with_a_gap_is_not_known() -> None:
    gapped = samples()
    gapped[0, 5] = np.nan
    known = onsets.by_hour(gapped)
    assert np.isnan(known.peak[0, 0]) and np.isfinite(known.peak[0, 1:]).all()
    assert known.peak[1, 0] >= known.second[1, 0] >= known.mean[1, 0]


def test_forecasts_use_nothing_that_is_measured_later() -> None:
    """Whatever comes after an hour changes nothing of what the hour after it is foreseen from."""
    now = 15 * 24
    changed = samples()
    changed[:, (now + 1) * onsets.SAMPLES_AN_HOUR :] *= 50
    hot = np.array([[500.0], [1500.0]])
    for before, after in (
        (load.features(onsets.by_hour(samples()))[0], load.features(onsets.by_hour(changed))[0]),
        (onsets.onset_features(onsets.by_hour(samples()), hot), onsets.onset_features(onsets.by_hour(changed), hot)),
    ):
        assert np.isfinite(before[:, now]).all()
        assert np.array_equal(before[:, : now + 1], after[:, : now + 1], equal_nan=True)


@pytest.mark.parametrize("hours", [-2, 0, 1, 24])
def test_hours_are_shifted_and_none_wraps_around(hours: int) -> None:
    values = np.arange(48.0).reshape(1, 48)
    shifted = load.earlier(values, hours)
    for hour in range(48):
        expected = hour - hours
        assert (shifted[0, hour] == expected) if 0 <= expected < 48 else np.isnan(shifted[0, hour])


def test_a_quantile_regression_finds_its_quantile() -> None:
    random = np.random.default_rng(2)
    rows = np.stack([np.ones(4000), random.uniform(1, 2, 4000)], axis=1)
    targets = rows @ np.array([1.0, 2.0]) + random.uniform(-1, 1, 4000)
    for share in (0.05, 0.5, 0.95):
        found = load.fit_quantile(rows, targets, np.ones(4000), share)
        assert (targets <= rows @ found).mean() == pytest.approx(share, abs=0.02)


def test_a_daily_peak_is_foreseen_where_the_last_hour_says_nothing_of_it() -> None:
    known = onsets.by_hour(samples())
    rows, level = load.features(known)
    target = load.earlier(known.peak, -1)
    usable = np.isfinite(rows).all(-1) & np.isfinite(target)
    found = load.fit_quantile(rows[usable], (target / level)[usable], np.ones(usable.sum()), 0.5)
    error = np.abs((rows @ found) * level - target)[usable].sum() / target[usable].sum()
    naive = np.abs(known.peak - target)[usable].sum() / target[usable].sum()
    assert error < 0.15 < naive


def test_onsets_that_come_daily_are_foreseen() -> None:
    known = onsets.by_hour(samples())
    hot = np.array([[500.0], [1500.0]])
    rows = onsets.onset_features(known, hot)
    target = load.earlier(known.peak, -1)
    cold = np.isfinite(rows).all(-1) & np.isfinite(target) & (known.peak < hot)
    came = (target >= hot)[cold]
    chances = onsets.fit_logit(rows[cold], came).chance(rows[cold])
    assert came.sum() > 0
    assert chances[came].min() > chances[~came].max()


def test_a_threshold_has_the_precision_that_was_asked_for() -> None:
    random = np.random.default_rng(3)
    chances = random.uniform(0, 1, 5000)
    came = random.uniform(0, 1, 5000) < chances
    limit = onsets.threshold(chances, came, 0.8)
    assert came[chances >= limit].mean() == pytest.approx(0.8, abs=0.01)
    assert onsets.threshold(chances, np.zeros(5000, dtype=bool), 0.8) > 1, "no alarm where none would be right"


def test_one_outlying_week_changes_no_forecast_of_the_next() -> None:
    maxima = np.array([[10.0, 95.0, 12.0], [10.0, 95.0, 95.0]])
    assert quarter(load.next_week(maxima), np.array([100.0, 100.0])).tolist() == [0, 3]
