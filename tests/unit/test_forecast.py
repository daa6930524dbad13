"""What is foreseen of a migration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.model.forecast import SWITCH_S, Forecast, ForecastError, Path, downtime_s, error, forecast

LINK = Path(rate=12.5e6, rtt_s=0.05, ratio=0.4)


def test_a_guest_that_writes_little_converges() -> None:
    result = forecast(400e6, 2e6, LINK, 0.2)
    assert result.converges and 12.8 < result.total_s < 15 and result.downtime_ms <= 200


def test_a_guest_that_writes_faster_than_the_link_does_not_converge_and_the_reason_is_given() -> None:
    result = forecast(400e6, 60e6, LINK, 0.2)
    assert not result.converges
    assert "writes 60.0 MB/s" in result.reason and "takes 31.2 MB/s" in result.reason and "200 ms" in result.reason


def test_with_one_pass_all_writes_during_it_count_as_downtime() -> None:
    assert forecast(400e6, 20e6, LINK, 0.2).converges
    single_pass = forecast(400e6, 20e6, LINK, 0.2, passes_max=1)
    assert not single_pass.converges and single_pass.downtime_ms == pytest.approx(
        downtime_s(20e6 * 12.8, LINK) * 1e3, 0.01
    )


def test_data_queued_for_the_link_adds_to_the_downtime() -> None:
    idle = downtime_s(0, LINK)
    assert idle == pytest.approx(SWITCH_S + 0.025)
    assert downtime_s(0, Path(12.5e6, 0.05, 0.4, backlog=12.5e6)) == pytest.approx(idle + 1.0)


def test_data_queued_for_the_link_adds_to_the_duration_and_is_sent_by_the_end() -> None:
    waits = forecast(400e6, 2e6, Path(12.5e6, 0.05, 0.4, backlog=12.5e6), 0.2)
    idle = forecast(400e6, 2e6, LINK, 0.2)
    assert waits.converges and waits.total_s == pytest.approx(idle.total_s + 1.0)
    assert waits.downtime_ms == idle.downtime_ms


def test_a_forecast_is_compared_with_the_migration() -> None:
    assert error(Forecast(True, 10.0, 150.0), 12.5, 100.0) == ForecastError(2.5, -50.0)


@given(
    st.floats(0, 1e12), st.floats(0, 1e10), st.floats(1, 1e10), st.floats(0, 1), st.floats(1e-4, 2), st.floats(0.01, 10)
)
def test_every_forecast_terminates_and_is_consistent(
    remaining: float, dirty: float, rate: float, rtt: float, ratio: float, limit: float
) -> None:
    result = forecast(remaining, dirty, Path(rate, rtt, ratio), limit)
    assert result.total_s >= 0
    if result.converges:
        assert result.downtime_ms <= limit * 1e3 + 0.1 and result.reason == ""
    else:
        assert result.reason
