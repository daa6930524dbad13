"""Metrics of forecasts say what is known of them, and nothing of what is not."""

from __future__ import annotations

from datetime import UTC, datetime

from novacron.control.forecasts import measure
from novacron.model.load_forecast import ForecastAccuracy, ForecastKind
from novacron.telemetry.values import gauge

SINCE = datetime(2026, 11, 1, tzinfo=UTC)


def read(name: str) -> dict[tuple[str, ...], float]:
    found = gauge(name).read
    assert found is not None
    return dict(found())


def test_what_is_not_known_of_forecasts_is_not_exposed() -> None:
    nodes = ForecastAccuracy(ForecastKind.NODE_HOUR, SINCE, 12, 0.18, 0.2, None, 0.9, 3600.0, None)
    vms = ForecastAccuracy(ForecastKind.VM_WEEK, SINCE, 0, None, None, None, None, None, SINCE)
    measure([nodes, vms])
    hour = ForecastKind.NODE_HOUR.value
    assert read("novacron_forecast_error_ratio") == {(hour, "served"): 0.18, (hour, "last"): 0.2}
    assert read("novacron_forecast_coverage_ratio") == {(hour,): 0.9}
    assert read("novacron_forecast_lead_seconds") == {(hour,): 3600.0}
    measure([vms])
    assert read("novacron_forecast_error_ratio") == {}, "what was known once is not said for ever"
