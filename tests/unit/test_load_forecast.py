"""Rounds of forecasts on made-up days with known answers, and when a model is set aside."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import onsets
from novacron.model.load_forecast import (
    BETTER,
    SCORED_MIN,
    ForecastKind,
    ForecastModel,
    ScoreSums,
    accuracy,
    judge,
    why,
)
from novacron.prediction import rounds
from novacron.prediction.load import Floats, Hours

DAYS, HOT_HOUR, NODES = 28, 9, 30
SUMS = ScoreSums(1000, 500.0, 50.0, 100.0, 1000, 500.0, 50.0, 100.0, 1000, 900, 3.6e6)


def days(seed: int = 1, nodes: int = NODES) -> Hours:
    """Nodes with a hot hour each day, of different sizes, and noise of a tenth. It ends before a hot hour."""
    random = np.random.default_rng(seed)
    hours = np.arange((DAYS - 1) * 24 + HOT_HOUR) % 24
    level = np.where(hours == HOT_HOUR, 900.0, 100.0) * random.uniform(0.5, 8, (nodes, 1))
    samples = np.repeat(level, onsets.SAMPLES_AN_HOUR, axis=1)
    return onsets.by_hour(samples * random.uniform(0.9, 1.1, samples.shape))


def test_a_daily_hot_hour_is_foreseen_of_nodes_of_any_size() -> None:
    known = days()
    outlook = rounds.forecast_peaks(known, rounds.fit_peaks(known))
    expected = 1.1 * 9 * known.mean[:, -23:].mean(1)
    assert np.abs(outlook.learned / expected - 1).max() < 0.15, "the hour before says a ninth of it"
    assert np.abs(outlook.last / expected - 1 / 9).max() < 0.1
    assert (outlook.lower <= outlook.learned).all() and (outlook.learned <= outlook.upper).all()


def test_the_interval_covers_nine_tenths_of_what_comes() -> None:
    """Fitted to three weeks of noisy loads, asked of the hours after."""
    random = np.random.default_rng(3)
    peak: Floats = 100 * np.exp(random.normal(0, 0.4, (200, 28 * 24))) * random.uniform(1, 9, (200, 1))
    known = Hours(peak, peak * 0.8, peak * 0.9, peak * 0.85, peak * 0.95)
    model = rounds.fit_peaks(Hours(*(values[:, : 21 * 24] for values in known)))
    inside = []
    for hour in range(21 * 24, 28 * 24, 7):
        outlook = rounds.forecast_peaks(Hours(*(values[:, :hour] for values in known)), model)
        inside.append((outlook.lower <= peak[:, hour]) & (peak[:, hour] <= outlook.upper))
    assert 0.86 <= float(np.mean(inside)) <= 0.94


def test_a_forecast_uses_nothing_but_what_is_known() -> None:
    """A node of which little is known is foreseen as in the last hour; one that was silent lately, not at all."""
    known = days()
    for values in known:
        values[0, : -rounds.KNOWN_HOURS_MIN + 1] = np.nan
        values[1, -rounds.NEWEST_HOURS_MAX :] = np.nan
    outlook = rounds.forecast_peaks(known, rounds.fit_peaks(known))
    assert np.isnan(outlook.learned[0]) and outlook.last[0] == known.peak[0, -1]
    assert np.isfinite(outlook.lower[0]) and np.isfinite(outlook.upper[0]), "from the other nodes' changes"
    assert np.isnan(outlook.last[1]) and np.isnan(outlook.learned[1])


def test_a_young_fleet_has_no_model() -> None:
    known = Hours(*(values[:2, -30:] for values in days()))
    assert rounds.fit_peaks(known) is None
    outlook = rounds.forecast_peaks(known, None)
    assert np.isnan(outlook.learned).all() and (outlook.last == known.peak[:, -1]).all()
    assert np.isnan(outlook.upper).all(), "too few pairs for an interval"


def test_a_vms_week_is_the_median_of_three_with_an_interval_from_all_vms() -> None:
    random = np.random.default_rng(4)
    maxima = 100 * random.uniform(1, 8, (2000, 1)) * random.uniform(0.8, 1.2, (2000, 5))
    outlook = rounds.forecast_weeks(maxima)
    assert (outlook.learned == np.median(maxima[:, -3:], axis=1)).all() and (outlook.last == maxima[:, -1]).all()
    came = maxima.mean(1) * random.uniform(0.8, 1.2, 2000)
    assert 0.85 <= float(((outlook.lower <= came) & (came <= outlook.upper)).mean()) <= 0.97
    young = maxima.copy()
    young[:, :4] = np.nan
    assert np.isnan(rounds.forecast_weeks(young).learned).all()
    assert (rounds.forecast_weeks(young).last == maxima[:, -1]).all()


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_weeks_with_any_gaps_have_ordered_intervals(weeks: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    maxima = np.where(random.random((150, weeks)) < 0.3, np.nan, random.uniform(0, 3000, (150, weeks)))
    outlook = rounds.forecast_weeks(maxima)
    for lower, middle, upper in (
        (outlook.last_lower, outlook.last, outlook.last_upper), (outlook.lower, outlook.learned, outlook.upper)
    ):  # fmt: skip
        there = np.isfinite(lower) & np.isfinite(middle)
        assert (lower[there] <= middle[there] + 1e-9).all() and (middle[there] <= upper[there] + 1e-9).all()
        assert (lower[np.isfinite(lower)] >= 0).all()


@pytest.mark.parametrize(
    ("was_aside", "learned", "aside"),
    [(False, 99.0, False), (False, 101.0, True), (True, 99.0, True), (True, 100 * BETTER, False)],
)
def test_a_model_is_set_aside_while_it_is_worse_and_comes_back_once_it_is_clearly_better(
    was_aside: bool, learned: float, aside: bool
) -> None:
    sums = ScoreSums(learned_count=SCORED_MIN, learned_came=500, learned_error=learned, learned_last_error=100.0)
    verdict = judge(was_aside, sums)
    assert verdict.aside is aside and "20.0 %" in verdict.reason


@pytest.mark.parametrize("was_aside", [False, True])
def test_few_scores_change_nothing(was_aside: bool) -> None:
    sums = ScoreSums(learned_count=SCORED_MIN - 1, learned_came=1, learned_error=100.0, learned_last_error=1.0)
    assert judge(was_aside, sums).aside is was_aside


def test_accuracy_is_said_in_words() -> None:
    now = datetime(2026, 3, 2, tzinfo=UTC)
    said = accuracy(ForecastKind.NODE_HOUR, now, SUMS, None, "")
    assert (said.error, said.last_error, said.coverage, said.lead_s) == (0.1, 0.2, 0.9, 3600.0)
    assert said.words.startswith("1000 forecasts were off by 10.0 %, the naive answer by 20.0 %; 90.0 % of what came")
    assert accuracy(ForecastKind.NODE_HOUR, now, SUMS, now, "worse").words.endswith("set aside: worse")
    assert accuracy(ForecastKind.NODE_HOUR, now, ScoreSums(), None, "").error is None


def test_a_forecast_says_what_it_was_made_from() -> None:
    hour, week = ForecastKind.NODE_HOUR, ForecastKind.VM_WEEK
    assert why(hour, ForecastModel.LEARNED, 600, 72, learned=True).startswith("learned")
    assert "set aside" in why(hour, ForecastModel.LAST, 600, 72, learned=True)
    assert "only 5 hours are known, 72 are needed" in why(hour, ForecastModel.LAST, 5, 72, learned=False)
    assert "gaps" in why(week, ForecastModel.LAST, 30, 15, learned=False)
