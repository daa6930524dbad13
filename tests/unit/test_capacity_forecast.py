"""When something is full: trends that odd days do not turn, dates that follow from them, and words."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.model.capacity_forecast import (
    KNOWN_DAYS_MIN,
    CapacityResource,
    GrowthRate,
    ResourceHistory,
    certificate,
    day_full,
    forecast_of,
)
from novacron.prediction.trend import trend

TODAY = date(2026, 3, 1)


def site(used: float = 4096, size: float | None = 8192, days: int = 30) -> ResourceHistory:
    return ResourceHistory(CapacityResource.SITE_MEMORY, "west", used, size, days, usual_node=1024)


def test_a_site_is_full_when_what_is_free_is_used_up_and_more_nodes_last_longer() -> None:
    said = forecast_of(site(), GrowthRate(100, 80, 128), TODAY)
    assert said.full_on == TODAY + timedelta(days=41)
    assert said.full_earliest == TODAY + timedelta(days=32) and said.full_latest == TODAY + timedelta(days=52)
    assert [(gain.nodes, gain.until) for gain in said.with_more_nodes] == [
        (1, TODAY + timedelta(days=52)), (2, TODAY + timedelta(days=62)),
    ]  # fmt: skip
    assert said.words == (
        "room for memory of site west is full on 11 April 2026 at this growth of 100.0 MiB a day (90 %: 2 April 2026 to"
        " 22 April 2026): 4.0 GiB of 8.0 GiB used; with nodes of the usual size (1.0 GiB): one more node until"
        " 22 April 2026, two more nodes until 2 May 2026"
    )


@pytest.mark.parametrize(
    ("known", "growth", "part"),
    [
        (site(days=KNOWN_DAYS_MIN - 1), GrowthRate(100, 80, 120), "13 of 14 days are known"),
        (site(used=8192), GrowthRate(100, 80, 120), "is full: 8.0 GiB of 8.0 GiB"),
        (site(), GrowthRate(0, -1, 1), "does not grow: 4.0 GiB of 8.0 GiB used"),
        (site(), GrowthRate(-5, -9, 100), "with the most growth that fits what is known: full on 11 April 2026"),
        (site(), GrowthRate(0.1, 0.05, 0.2), "not full within ten years"),
        (site(), GrowthRate(100, -1, 128), "(90 %: 2 April 2026 to never)"),
        (site(size=None), GrowthRate(100, 80, 120), "how much room it has is not known here"),
    ],
)
def test_what_is_not_foreseen_is_said(known: ResourceHistory, growth: GrowthRate | None, part: str) -> None:
    assert part in forecast_of(known, growth, TODAY).words


def test_huge_pages_are_memory_of_their_own() -> None:
    known = ResourceHistory(CapacityResource.SITE_HUGE_1G, "west", 4096, 8192, 30)
    said = forecast_of(known, GrowthRate(0, -1, 1), TODAY).words
    assert said == "room in huge pages of 1 GiB of site west does not grow: 4.0 GiB of 8.0 GiB used"


def test_the_certificate_that_ends_first_is_named() -> None:
    assert "ends on 3 March 2026, unless its agent renews it" in certificate("a", date(2026, 3, 3), TODAY).words
    assert "has not renewed" in certificate("a", date(2026, 2, 3), TODAY).words


@given(st.floats(-1e9, 1e12), st.floats(-1e9, 1e9))
def test_a_day_is_never_before_today_nor_beyond_the_horizon(free: float, a_day: float) -> None:
    full = day_full(free, a_day, TODAY)
    assert full is None or TODAY <= full <= TODAY + timedelta(days=3651)
    if full is not None and free > 0:
        assert (full - TODAY).days * a_day >= free * (1 - 1e-9) - 1e-9


def test_a_trend_is_that_of_most_days() -> None:
    days = np.arange(30.0)
    values = 50 + 3 * days
    values[[4, 11, 20]] += (900, -400, 5000)
    found = trend(days, values)
    assert found is not None and found.slope == pytest.approx(3)
    assert found.lower <= 3 <= found.upper and found.upper < 10


def test_a_trends_interval_holds_the_truth_nine_times_of_ten() -> None:
    random, held = np.random.default_rng(5), 0
    days = np.arange(40.0)
    for _ in range(400):
        found = trend(days, 2 * days + random.normal(0, 20, 40))
        assert found is not None
        held += found.lower <= 2 <= found.upper
    assert 0.86 <= held / 400 <= 0.95


@given(st.lists(st.floats(0, 1e15), min_size=2, max_size=30), st.integers(0, 2**32 - 1))
def test_a_trend_lies_in_its_interval_and_follows_scale(values: list[float], seed: int) -> None:
    days = np.sort(np.random.default_rng(seed).choice(90, len(values), replace=False)).astype(np.float64)
    found = trend(days, np.array(values))
    assert found is not None and found.lower <= found.slope <= found.upper
    doubled = trend(days, 2 * np.array(values))
    assert doubled is not None and doubled.slope == pytest.approx(2 * found.slope)


def test_one_day_has_no_trend_and_two_of_the_same_are_a_mistake() -> None:
    assert trend(np.array([1.0]), np.array([5.0])) is None
    with pytest.raises(ValueError, match="two values"):
        trend(np.array([1.0, 1.0]), np.array([5.0, 6.0]))
