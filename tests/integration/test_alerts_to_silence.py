"""Alerts to silence: a real fault, Prometheus that sees it, its runbook as written, and Prometheus that is silent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab import alert_runs
from lab.alert_faults import catalogue
from lab.alert_faults.model import AlertFault, Scene
from lab.drills.platforms import small_platform
from lab.observers import Exporter, Prometheus
from lab.platform import PlatformOptions, open_directory

KEY_AGE_DAYS = "365"
FAULTS = sorted(catalogue.ALL, key=lambda fault: fault.needs_hosts)
Watch = tuple[Scene, Prometheus]


@contextmanager
def watched(*, namespaces: bool) -> Iterator[Watch]:
    """Run a platform of two nodes, and a Prometheus that watches it."""
    options = PlatformOptions(server=("--key-age-days", KEY_AGE_DAYS))
    with open_directory("nv8a-") as directory, ExitStack() as after:
        site = after.enter_context(small_platform(directory, options, namespaces=namespaces))
        after.enter_context(pytest.MonkeyPatch.context()).setenv("PGHOST", str(site.postgres.directory))
        after.enter_context(pytest.MonkeyPatch.context()).setenv("PGUSER", "postgres")
        exporter = Exporter(directory, "postgresql", site.postgres.url)
        after.callback(exporter.stop)
        exporters = {"localhost:9187": exporter.address}
        prometheus = Prometheus(
            directory / "w", site, "", alert_runs.TIMES, exporters, alert_runs.shortened, alert_runs.SCRAPED_S
        )
        after.callback(prometheus.stop)
        yield Scene(site, exporter, directory, after), prometheus


@pytest.fixture(scope="module")
def on_one_host() -> Iterator[Watch]:
    with watched(namespaces=False) as watch:
        yield watch


@pytest.fixture(scope="module")
def on_two_hosts(lacks: list[str]) -> Iterator[Watch]:
    if lacks:
        pytest.skip("; ".join(lacks))
    with watched(namespaces=True) as watch:
        yield watch


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_seen_ended_by_its_runbook_and_silent_again(
    fault: AlertFault, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if fault.needs_root and os.geteuid() != 0:
        pytest.skip("it mounts a disk or filters packets, which takes root")
    scene, prometheus = request.getfixturevalue("on_two_hosts" if fault.needs_hosts else "on_one_host")
    assert scene.site.client, "commands without settings mean this platform"
    runs = alert_runs.to_silence(fault, scene, prometheus, tmp_path / "log")
    assert [run.alert for run in runs] == list(fault.alerts)
    alert_runs.record(fault, runs)
