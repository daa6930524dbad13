"""Migrations as Prometheus sees them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from novacron.agent.observe import usage
from novacron.agent.settings import AgentSettings
from novacron.api.read_model.watch_cache import Cache
from novacron.api.routes.metrics import seen
from novacron.model.migration import Progress, Savings
from novacron.store.feed import Batch, Change
from novacron.telemetry import declared, page, values
from novacron.telemetry.declared import FAMILIES, MetricKind, Together
from novacron.telemetry.metrics import FOLLOWED_MAX, Metrics, MigrationMetrics, Seen
from novacron.telemetry.shared import Processes

Body = dict[str, Any]


@pytest.fixture(autouse=True)
def nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_all", {})


def migration(phase: str, **progress: Any) -> Body:
    progress_fields = msgspec.to_builtins(msgspec.structs.replace(Progress(), **progress))
    return {"phase": phase, "kind": "live", "source": "a", "target": "b", "progress": progress_fields}


def exposed_values(directory: Path, of: Seen = ()) -> dict[str, float]:
    """Return the rendered values by name and labels."""
    text = asyncio.run(Metrics(Processes(directory), lambda: of).render())
    return {
        sample.name + "".join(f" {sample.labels[label]}" for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_a_migration_counts_once_and_its_downtime_when_it_is_known(tmp_path: Path) -> None:
    migrations = MigrationMetrics()
    end = {"raw_bytes": 1000, "wire_bytes": 100, "elapsed_s": 3.0, "retransmits": 5, "savings": Savings(zero=4096)}
    for body in (
        migration("pending"), migration("transferring", raw_bytes=500), migration("completed", **end),
        migration("completed", **end), migration("completed", **end, downtime_ms=150.0),
        migration("completed", **end, downtime_ms=150.0),
    ):  # fmt: skip
        migrations.observe("m", body)
    exposed = exposed_values(tmp_path)
    assert exposed["novacron_migrations_total live completed"] == 1
    assert exposed["novacron_dwcp_stream_bytes_total"] == 1000 and exposed["novacron_dwcp_wire_bytes_total"] == 100
    assert exposed["novacron_dwcp_saved_bytes_total zero"] == 4096
    assert exposed["novacron_migration_duration_seconds_bucket live 4.0"] == 1
    assert exposed["novacron_migration_downtime_seconds_count"] == 1
    assert exposed["novacron_migration_downtime_seconds_sum"] == 0.15


def test_failures_count_and_migrations_that_ended_before_do_not(tmp_path: Path) -> None:
    migrations = MigrationMetrics()
    migrations.observe("old", migration("completed", raw_bytes=7))
    migrations.observe("m", migration("preparing"))
    migrations.observe("m", migration("failed"))
    migrations.observe("gone", migration("pending"))
    migrations.observe("gone", None)
    exposed = exposed_values(tmp_path)
    assert exposed["novacron_migrations_total live failed"] == 1
    assert not any(value for name, value in exposed.items() if "completed" in name)


def test_active_migrations_are_measured_per_link(tmp_path: Path) -> None:
    bodies = [
        migration("transferring", rate_bytes_per_s=10, streams=2, rtt_ms=50.0, remaining_bytes=7),
        migration("transferring", rate_bytes_per_s=5, streams=1, rtt_ms=80.0),
        migration("pending"),
        migration("completed", rate_bytes_per_s=99),
    ]
    cache = Cache()
    changes = [
        Change(n, "migration", str(n), {**body, "revision": n, "id": str(n), "created_at": n})
        for n, body in enumerate(bodies)
    ]
    asyncio.run(cache.apply(Batch(9, changes)))
    of = list(seen(cache))
    assert all(declared.BY_NAME[name].together is Together.SEEN for name, *_ in of)
    exposed = exposed_values(tmp_path, of)
    assert (
        exposed["novacron_migrations_active transferring"] == 2 and exposed["novacron_migrations_active pending"] == 1
    )
    assert exposed["novacron_dwcp_rate_bytes_per_second a b"] == 15 and exposed["novacron_dwcp_streams a b"] == 3
    assert exposed["novacron_dwcp_round_trip_seconds a b"] == 0.08
    assert exposed["novacron_migration_remaining_bytes a b"] == 7
    assert exposed["novacron_cache_objects migration"] == 4


def test_migrations_that_never_end_do_not_fill_memory() -> None:
    migrations = MigrationMetrics()
    for number in range(FOLLOWED_MAX + 10):
        migrations.observe(str(number), migration("pending"))
    assert len(migrations._followed) == FOLLOWED_MAX


UNITS = ("_seconds", "_bytes", "_seconds_total", "_bytes_total", "_bytes_per_second")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_metric_names_follow_the_rules(family: declared.Family) -> None:
    assert re.fullmatch(r"novacron_[a-z][a-z0-9_]*", family.name)
    assert (family.kind is MetricKind.COUNTER) == family.name.endswith("_total")
    assert family.name.endswith(UNITS) or not re.search(r"_(ms|s|mib|kb|milliseconds|minutes)(_|$)", family.name)
    assert (family.kind is MetricKind.HISTOGRAM) == bool(family.buckets) and list(family.buckets) == sorted(
        family.buckets
    )
    assert family.kind is not MetricKind.HISTOGRAM or family.name.endswith("_seconds")
    assert family.help.endswith(".") and len(family.help) > 8
    assert all(re.fullmatch(r"[a-z][a-z_]*", label) and label != "le" for label in family.labels)
    assert family.together is Together.SUM or family.kind is MetricKind.GAUGE


def test_each_metric_is_declared_once_and_documented() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert [family for group in page.GROUPS.values() for family in group] == list(FAMILIES)
    shown = Path(__file__).parents[2] / "docs/reference/metrics.md"
    assert shown.read_text() == page.page(), "python -m novacron.telemetry.page > docs/reference/metrics.md"


def test_undeclared_metrics_cannot_be_counted() -> None:
    with pytest.raises(KeyError):
        values.counter("novacron_no_such_total")
    with pytest.raises(TypeError, match="histogram"):
        values.counter("novacron_loop_lag_seconds")
    with pytest.raises(ValueError, match="labels"):
        values.counter("novacron_api_refused_total").add("rate", "again")


def test_a_histogram_bucket_includes_its_bound(tmp_path: Path) -> None:
    for took_s in (0.0, 0.5, 0.50001, 1e9):
        values.histogram("novacron_migration_duration_seconds").observe(took_s, "live")
    exposed = exposed_values(tmp_path)
    assert exposed["novacron_migration_duration_seconds_bucket live 0.5"] == 2
    assert exposed["novacron_migration_duration_seconds_bucket live 1.0"] == 3
    assert exposed["novacron_migration_duration_seconds_bucket live +Inf"] == 4
    assert exposed["novacron_migration_duration_seconds_count live"] == 4
    assert exposed["novacron_migration_duration_seconds_sum live"] == pytest.approx(1e9 + 1.00001)


def test_unbounded_labels_do_not_fill_memory(tmp_path: Path) -> None:
    refused = values.counter("novacron_api_refused_total")
    for number in range(values.CELLS_MAX + 10):
        refused.add(str(number))
    assert len(refused.cells) == values.CELLS_MAX + 1 and refused.cells["other",] == [10]
    assert exposed_values(tmp_path)["novacron_metrics_dropped_labels_total novacron_api_refused_total"] == 10


def test_hostile_labels_stay_in_their_line(tmp_path: Path) -> None:
    for text in ('"} 1\nnovacron_evil 1', "\\", "\n", "\0", "ä" * 1000):
        values.counter("novacron_api_refused_total").add(text)
        assert exposed_values(tmp_path)[f"novacron_api_refused_total {text}"] == 1
    assert "novacron_evil" not in exposed_values(tmp_path)


PROCESS = """
import sys
import threading
from pathlib import Path
from novacron.telemetry.shared import Processes
from novacron.telemetry.values import counter, gauge, histogram
counter("novacron_api_refused_total").add("rate", count=5)
counter("novacron_api_refused_total").add("mine")
histogram("novacron_loop_lag_seconds").observe(0.3)
gauge("novacron_processes").set(1)
gauge("novacron_feed_lag_seconds").set(7)
gauge("novacron_forecast_model_aside").set(True, "node-hour")
here = Processes(Path(sys.argv[1]))
here.write()
print("written", flush=True)
sys.stdin.readline()
counter("novacron_api_refused_total").add("mine")
print(here.all()["novacron_api_refused_total"][("mine",)][0], flush=True)
sys.stdin.read()
"""


def test_counts_of_all_processes_add_up_and_outlive_an_ended_process(tmp_path: Path) -> None:
    here = Processes(tmp_path / "metrics")
    here.begin()
    values.counter("novacron_api_refused_total").add("rate", count=2)
    values.histogram("novacron_loop_lag_seconds").observe(0.3)
    values.gauge("novacron_processes").set(1)
    values.gauge("novacron_feed_lag_seconds").set(3)
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "metrics")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        exposed = exposed_values(tmp_path / "metrics")
        assert (exposed["novacron_api_refused_total rate"], exposed["novacron_api_refused_total mine"]) == (7, 1)
        assert exposed["novacron_loop_lag_seconds_count"] == 2
        assert (exposed["novacron_processes"], exposed["novacron_feed_lag_seconds"]) == (2, 7)
        assert exposed["novacron_forecast_model_aside node-hour"] == 1, "what is true or false is a number, too"
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"2.0\n"
        process.kill()
    exposed = exposed_values(tmp_path / "metrics")
    assert exposed["novacron_api_refused_total mine"] == 2, "it was said just before it was killed"
    assert (exposed["novacron_api_refused_total rate"], exposed["novacron_loop_lag_seconds_count"]) == (7, 2)
    assert (exposed["novacron_processes"], exposed["novacron_feed_lag_seconds"]) == (1, 3)
    (tmp_path / "metrics" / "1-1").write_bytes(b"broken")
    assert exposed_values(tmp_path / "metrics")["novacron_api_refused_total rate"] == 7
    here.begin()
    assert exposed_values(tmp_path / "metrics")["novacron_api_refused_total rate"] == 2


def test_an_unwritable_metrics_directory_is_logged_once_and_breaks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    here = Processes(tmp_path / "file" / "metrics")
    here.begin()
    values.counter("novacron_api_refused_total").add("rate")
    capsys.readouterr()
    for _ in range(3):
        here.write()
    said_of_it = capsys.readouterr()
    assert (said_of_it.out + said_of_it.err).count("can't be shared") == 1
    assert exposed_values(tmp_path / "file" / "metrics")["novacron_api_refused_total rate"] == 1


@pytest.mark.parametrize("hostile", ['a"b', "a\\b", "a\nb", "a{b}", "ä€😀", " ", "#", "le", "a,b=c", "\x00\x1b[31m"])
def test_a_hostile_label_stays_one_value(hostile: str, tmp_path: Path) -> None:
    values.counter("novacron_api_refused_total").add(hostile)
    text = asyncio.run(Metrics(Processes(tmp_path), lambda: ()).render()).decode()
    (family,) = [metric for metric in text_string_to_metric_families(text) if metric.name == "novacron_api_refused"]
    assert [sample.labels for sample in family.samples] == [{"reason": hostile}]


def test_exemplars_appear_in_openmetrics_only(tmp_path: Path) -> None:
    values.histogram("novacron_loop_lag_seconds").observe(0.3, trace="ab" * 16)
    metrics = Metrics(Processes(tmp_path), lambda: ())
    assert "ab" * 16 not in asyncio.run(metrics.render()).decode()
    lines = asyncio.run(metrics.render(open_metrics=True)).decode().splitlines()
    (line,) = [text_line for text_line in lines if "ab" * 16 in text_line]
    assert 'le="0.5"' in line and '# {trace_id="' in line and lines[-1] == "# EOF"


async def test_a_hanging_file_system_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = [0], threading.Event()
    real = shutil.disk_usage

    def stuck(path: Path) -> Any:
        if path.name == "away":
            begun[0] += 1
            go.wait(20)
        return real(tmp_path)

    monkeypatch.setattr(usage, "LOOK_S_MAX", 0.05)
    monkeypatch.setattr(shutil, "disk_usage", stuck)
    settings = AgentSettings(state_dir=tmp_path, images_dir=tmp_path, name="n")
    filesystems = usage.Filesystems(settings, lambda: {"away": tmp_path / "away"})
    try:
        for _ in range(5):
            assert await filesystems.look() == []
        assert begun == [1], "one look at a time"
    finally:
        go.set()
    for _ in range(200):
        if usages := await filesystems.look():
            break
    assert {labels for _, labels, _ in usages} == {("state",), ("images",), ("away",)}


SEEN_FROM_NOTHING = {
    "novacron_api_refused_total": "the admission has all reasons from the start",
    "novacron_migrations_total": "the first process of a server has all kinds and outcomes from the start",
    "novacron_agent_actions_total": "an action has its failures from the moment it begins for the first time",
    "novacron_api_requests_total": "there are many requests, and one is no cause for an alert",
}
"""Counters whose labels are not known from the start, and why alerts about them are right all the same."""


def test_a_counter_of_which_an_alert_asks_is_there_before_it_counts() -> None:
    """Prometheus sees no increase from nothing: what happens once would never be noticed."""
    rules = (Path(__file__).parents[2] / "deploy/prometheus/rules/alerts.yml").read_text()
    asked = {
        (name, value)
        for name, matchers in re.findall(r"(?:rate|increase)\((\w+)\{([^}]*)\}", rules)
        if name in declared.BY_NAME and declared.BY_NAME[name].kind is MetricKind.COUNTER
        for value in re.findall(r"\w+=\"([^\"]+)\"", matchers)
    }
    assert ("novacron_link_heartbeats_total", "failed") in asked
    values.begin(declared.FAMILIES)
    unseen = {
        (name, value) for name, value in asked
        if name not in SEEN_FROM_NOTHING and not any(value in labels for labels in values.counted()[name])
    }  # fmt: skip
    assert not unseen


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.known], ids=lambda family: family.name)
def test_known_labels_are_a_counters_and_begin_at_nothing(family: declared.Family, tmp_path: Path) -> None:
    values.begin([family])
    assert family.kind is MetricKind.COUNTER
    cells = values.counted()[family.name]
    assert set(cells) == set(family.known) and all(cell == [0.0] for cell in cells.values())
