"""Dashboards and alerts, with the real programs: a Prometheus scrapes a platform that runs, every panel finds what it
asks for, and what is broken is told to a webhook.

Rules and configuration are those that operators get; everything is only faster.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from deploy.grafana.__main__ import DASHBOARDS, DIRECTORY, PAGES, written
from deploy.grafana.pages import pages
from lab.observers import DEPLOYED, Alertmanager, Exporter, Prometheus, Webhook
from lab.platform import Platform, open_directory, until
from lab.ports import free_ports
from tests.integration.conftest import Api
from tests.waiting import pause

TIMES = 60.0
VARIABLES = {"$__rate_interval": "10s", "$__range": "60s"}


class Watch(NamedTuple):
    """All that watches the platform."""

    prometheus: Prometheus
    webhook: Webhook
    directory: Path


@pytest.fixture(scope="module")
def watch(watched: Platform, moved: dict[str, Any]) -> Iterator[Watch]:
    del moved
    stops = []
    (redis_port,) = free_ports(1)
    with open_directory("nvm-") as directory, Webhook().running() as webhook:
        redis = subprocess.Popen(
            ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
            stdout=subprocess.DEVNULL,
        )
        try:
            alertmanager = Alertmanager(directory / "am", webhook, TIMES)
            stops.append(alertmanager.stop)
            database = Exporter(directory, "postgresql", watched.postgres.url)
            stops.append(database.stop)
            cache = Exporter(directory, "redis", f"redis://127.0.0.1:{redis_port}")
            stops.append(cache.stop)
            exporters = {"localhost:9187": database.address, "localhost:9121": cache.address}
            prometheus = Prometheus(directory / "p", watched, alertmanager.address, TIMES, exporters)
            stops.append(prometheus.stop)
            yield Watch(prometheus, webhook, directory)
        finally:
            for stop in reversed(stops):
                stop()
            redis.kill()
            redis.wait()


def panels(node: Any) -> Iterator[tuple[str, str]]:
    """Yield title and expression of every query of a dashboard."""
    for panel in node.get("panels", ()):
        yield from panels(panel)
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def plain(expression: str) -> str:
    """Return a query as Grafana asks it when all of each variable is chosen."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    pattern = re.sub(r"\$\{?(\w+)\}?", ".*", expression)
    assert "$" not in pattern
    return pattern


def test_dashboard_files_match_the_code() -> None:
    assert {path.name: path.read_text() for path in DIRECTORY.glob("*.json")} == written(), "python -m deploy.grafana"
    assert len(DASHBOARDS) == 7
    files = {path.name: path.read_text() for path in PAGES.iterdir()}
    assert files == pages(written()), "python -m deploy.grafana"
    for uid in DASHBOARDS:
        assert (PAGES.parent / f"images/{uid}.svg").read_text().startswith("<svg"), "python -m lab.pictures"


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_each_dashboard_has_the_common_parts(uid: str) -> None:
    dashboard = json.loads((DIRECTORY / f"{uid}.json").read_text())
    assert dashboard["uid"] == uid and dashboard["refresh"] == "10s" and "novacron" in dashboard["tags"]
    assert dashboard["links"][0]["tags"] == ["novacron"] and dashboard["links"][0]["keepTime"]
    assert {item["name"] for item in dashboard["annotations"]["list"]} >= {"Deployments", "Migrations"}
    assert dashboard["templating"]["list"][0]["name"] == "datasource"
    shown = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(shown) >= 9 and all(panel["title"] and panel["targets"] for panel in shown)
    for item in shown:
        place = item["gridPos"]
        assert place["x"] + place["w"] <= 24
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in shown)


def test_every_job_is_scraped(watch: Watch) -> None:
    jobs = {"novacron-server": 1, "novacron-agents": 2, "postgresql": 1, "redis": 1, "alertmanager": 1, "prometheus": 1}

    def up() -> bool:
        up_by_job = {
            item["metric"]["job"]: int(item["value"][1]) for item in watch.prometheus.query("sum by (job) (up)")
        }
        return up_by_job == jobs

    try:
        until(up, "every job is up", 30)
    except AssertionError as error:
        errors = [
            (item["labels"]["job"], item["lastError"]) for item in watch.prometheus.ask("targets")["activeTargets"]
        ]
        log = (watch.directory / "p/prometheus.log").read_text()[-1500:]
        raise AssertionError(f"{error}: {errors}\n{log}") from None


AFTER_DRILLS = ("novacron_drill_failed", "novacron_drill_recover_seconds", "novacron_drill_loss_seconds")
"""What is said only when a drill was run: ``tests/integration/test_drills_api.py`` has it."""
AFTER_HOURS = ("novacron_forecast_error_ratio", "novacron_forecast_coverage_ratio", "novacron_forecast_lead_seconds")
"""What is said only when forecasts could be compared with what came."""


def test_every_panel_of_every_dashboard_finds_its_series(watch: Watch, watched: Platform, asked: Api) -> None:
    """Run while requests arrive and a VM migrates back and forth: some series exist only then."""
    asks = [
        (uid, title, plain(expression))
        for uid in DASHBOARDS
        for title, expression in panels(json.loads((DIRECTORY / f"{uid}.json").read_text()))
        if not any(metric in expression for metric in (*AFTER_HOURS, *AFTER_DRILLS))
    ]
    assert len(asks) > 120
    vm = watched.client.create_vm(name="panel", image="disk", memory_mib=128, node="host-a")
    watched.wait_state(vm["id"], "running")
    over = threading.Event()

    def use() -> None:
        while not over.wait(0.2):
            asked("GET", "/api/v1/vms")
            asked("PATCH", f"/api/v1/vms/{vm['id']}", {"start_order": int(time.time()) % 1000})

    def move() -> None:
        for node in itertools.cycle(("host-b", "host-a")):
            if over.is_set():
                return
            watched.cli("vm", "migrate", "panel", "--to", node)

    doing = [threading.Thread(target=use), threading.Thread(target=move)]
    for item in doing:
        item.start()
    silent = dict.fromkeys(asks)
    try:

        def all_speak() -> bool:
            for ask in list(silent):
                lately = f"last_over_time(({ask[2]})[60s:1s])"
                if watch.prometheus.query(ask[2]) or watch.prometheus.query(lately):
                    del silent[ask]
            return not silent

        until(all_speak, "every panel has something to show", 120)
    except AssertionError:
        raise AssertionError("nothing is shown by:\n" + "\n".join(map(str, silent))) from None
    finally:
        over.set()
        for item in doing:
            item.join()
        watched.client.delete("vms", vm["id"])


def test_exemplars_lead_from_a_panel_to_traces(watch: Watch, asked: Api) -> None:
    def found() -> bool:
        asked("GET", "/api/v1/audit")
        asked("PATCH", "/api/v1/nodes/host-a", {"zone": "z"})
        end = time.time()
        query = "novacron_api_request_duration_seconds_bucket"
        series = watch.prometheus.ask("query_exemplars", query=query, start=str(end - 300), end=str(end))
        return any(
            len(exemplar["labels"].get("trace_id", "")) == 32 for each in series for exemplar in each["exemplars"]
        )

    until(found, "Prometheus has exemplars", 30)


def wait_until_resolved(watch: Watch, alert: str) -> None:
    """Wait until an alert that may have fired before is resolved, and forget the webhook's messages."""
    until(lambda: not watch.prometheus.query(f'ALERTS{{alertname="{alert}"}}'), f"{alert} is over", 90)
    pause(2)
    watch.webhook.told.clear()


def wait_until_webhook_told(watch: Watch, alert: str) -> Any:
    """Wait until the webhook has received a firing alert; return the alert."""
    try:
        return until(lambda: watch.webhook.alerts(alert), f"the webhook is told of {alert}", 90)[0]
    except AssertionError as error:
        alert_names = [item["labels"]["alertname"] for message in watch.webhook.told for item in message["alerts"]]
        raise AssertionError(f"{error}; it was told of {alert_names}") from None


def test_the_webhook_hears_of_a_stopped_agent_and_of_its_return(watch: Watch, watched: Platform) -> None:
    wait_until_resolved(watch, "NodeDown")
    watched.agents["host-a"].stop()
    try:
        alert = wait_until_webhook_told(watch, "NodeDown")
        assert alert["labels"]["node"] == "host-a" and alert["labels"]["severity"] == "critical"
        assert alert["annotations"]["runbook_url"].endswith("#nodedown")
        assert alert["annotations"]["dashboard_url"].endswith("/d/novacron-nodes")
    finally:
        watched.agents["host-a"].start()
        watched.wait_node("host-a")
    until(lambda: watch.webhook.alerts("NodeDown", "resolved"), "the webhook is told that it is over", 90)


@contextmanager
def asking(asked: Api, threads: int, method: str, path: str, body: dict[str, Any]) -> Iterator[None]:
    """Have so many operators change something all the time."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            asked(method, path, body)

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in running:
            thread.join()


def test_the_webhook_hears_of_an_exhausted_connection_pool(watch: Watch, watched: Platform, asked: Api) -> None:
    """Somebody holds what changes need, and does not let go of it."""
    wait_until_resolved(watch, "DatabaseConnectionPoolExhaustion")
    over = threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(watched.postgres.url)
        async with connection.transaction():
            await connection.execute("LOCK TABLE links IN ACCESS EXCLUSIVE MODE")
            await asyncio.to_thread(over.wait)
        await connection.close()

    holding = threading.Thread(target=asyncio.run, args=(hold(),))
    holding.start()
    try:
        with asking(asked, 40, "PUT", "/api/v1/links/here/there", {"rate_bytes_per_s": 1_000_000}):
            alert = wait_until_webhook_told(watch, "DatabaseConnectionPoolExhaustion")
            assert alert["annotations"]["dashboard_url"].endswith("/d/novacron-database")
            over.set()
    finally:
        over.set()
        holding.join()


def processes_below(pid: int) -> list[int]:
    """Return the processes whose parent this one is."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                pids.append(int(path.parent.name))
    return pids


def test_the_webhook_hears_of_a_slow_database(watch: Watch, watched: Platform, asked: Api) -> None:
    """Its processes stand still for most of the time."""
    wait_until_resolved(watch, "DatabaseSlow")
    over = threading.Event()
    postmaster = int((watched.postgres.data / "postmaster.pid").read_text().split()[0])

    def slow() -> None:
        while not over.is_set():
            stopped = processes_below(postmaster)
            for number, pause_s in ((signal.SIGSTOP, 0.4), (signal.SIGCONT, 0.01)):
                for pid in stopped:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                pause(pause_s)

    slowing = threading.Thread(target=slow)
    slowing.start()
    try:
        with asking(asked, 4, "PATCH", "/api/v1/nodes/host-a", {"zone": "z"}):
            wait_until_webhook_told(watch, "DatabaseSlow")
            over.set()
    finally:
        over.set()
        slowing.join()


def test_the_webhook_hears_of_a_server_that_is_down_and_not_of_the_consequences(
    watch: Watch, watched: Platform, asked: Api
) -> None:
    wait_until_resolved(watch, "ServiceDown")
    watched.server.stop()
    try:
        wait_until_webhook_told(watch, "ServiceDown")
        assert not watch.webhook.alerts("ControllerWithoutLeader")
    finally:
        watched.server.start()
        watched.wait_ready()
        until(lambda: len(asked("GET", "/metrics/targets").body) == 2, "both nodes are connected again")


def test_alertmanager_accepts_its_configuration() -> None:
    done = subprocess.run(["amtool", "check-config", str(DEPLOYED / "alertmanager/alertmanager.yml")],
                          capture_output=True, text=True, timeout=30)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for labels, receiver in ((["severity=critical", "alertname=X"], "on-call"), (["severity=warning"], "operators")):
        done = subprocess.run(
            ["amtool", "config", "routes", "test", f"--config.file={DEPLOYED / 'alertmanager/alertmanager.yml'}",
             *labels], capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.stdout.strip() == receiver
