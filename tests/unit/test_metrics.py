"""Migrations as Prometheus sees them."""

from __future__ import annotations

from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from novacron.model.migration import Progress, Savings
from novacron.telemetry.metrics import FOLLOWED_MAX, Metrics

Body = dict[str, Any]


def migration(phase: str, **progress: Any) -> Body:
    told = msgspec.to_builtins(msgspec.structs.replace(Progress(), **progress))
    return {"phase": phase, "kind": "live", "source": "a", "target": "b", "progress": told}


def values(metrics: Metrics) -> dict[str, float]:
    """Return what is rendered, by name and labels."""
    return {
        sample.name + "".join(f" {sample.labels[label]}" for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_a_migration_counts_once_and_its_downtime_when_it_is_known() -> None:
    metrics = Metrics(list, lambda: 0.0)
    end = {"raw_bytes": 1000, "wire_bytes": 100, "elapsed_s": 3.0, "retransmits": 5, "savings": Savings(zero=4096)}
    for body in (
        migration("pending"), migration("transferring", raw_bytes=500), migration("completed", **end),
        migration("completed", **end), migration("completed", **end, downtime_ms=150.0),
        migration("completed", **end, downtime_ms=150.0),
    ):  # fmt: skip
        metrics.migrations.observe("m", body)
    found = values(metrics)
    assert found["novacron_migrations_total live completed"] == 1
    assert found["novacron_dwcp_stream_bytes_total"] == 1000 and found["novacron_dwcp_wire_bytes_total"] == 100
    assert found["novacron_dwcp_saved_bytes_total zero"] == 4096
    assert found["novacron_migration_duration_seconds_bucket live 4.0"] == 1
    assert found["novacron_migration_downtime_seconds_count"] == 1
    assert found["novacron_migration_downtime_seconds_sum"] == 0.15


def test_failures_count_and_what_was_over_before_does_not() -> None:
    metrics = Metrics(list, lambda: 0.0)
    metrics.migrations.observe("old", migration("completed", raw_bytes=7))
    metrics.migrations.observe("m", migration("preparing"))
    metrics.migrations.observe("m", migration("failed"))
    metrics.migrations.observe("gone", migration("pending"))
    metrics.migrations.observe("gone", None)
    found = values(metrics)
    assert found["novacron_migrations_total live failed"] == 1
    assert not [name for name in found if "completed" in name]


def test_what_is_under_way_is_measured_by_link() -> None:
    bodies = [
        migration("transferring", rate_bytes_per_s=10, streams=2, rtt_ms=50.0, remaining_bytes=7),
        migration("transferring", rate_bytes_per_s=5, streams=1, rtt_ms=80.0),
        migration("pending"),
        migration("completed", rate_bytes_per_s=99),
    ]
    found = values(Metrics(lambda: bodies, lambda: 0.0))
    assert found["novacron_migrations_active transferring"] == 2 and found["novacron_migrations_active pending"] == 1
    assert found["novacron_dwcp_rate_bytes_per_second a b"] == 15 and found["novacron_dwcp_streams a b"] == 3
    assert found["novacron_dwcp_round_trip_seconds a b"] == 0.08
    assert found["novacron_migration_remaining_bytes a b"] == 7


def test_what_never_ends_does_not_fill_memory() -> None:
    metrics = Metrics(list, lambda: 0.0)
    for number in range(FOLLOWED_MAX + 10):
        metrics.migrations.observe(str(number), migration("pending"))
    assert len(metrics.migrations._followed) == FOLLOWED_MAX
