"""A platform that is watched: agents are found and measured through the API, and one trace follows what was asked from
the request to QEMU on another host."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from lab.observers import Collector, Span
from lab.platform import Platform, until
from novacron.telemetry import declared
from tests.integration.conftest import Api

RUNNING = declared.BY_NAME["novacron_vm_running"]
Samples = dict[str, list[Any]]


def samples(text: str) -> Samples:
    """Return what a text of Prometheus' format says, by family."""
    by_name: Samples = {}
    for family in text_string_to_metric_families(text):
        by_name.setdefault(family.name, []).extend(family.samples)
    return by_name


def samples_of(exposed: Samples, family: declared.Family) -> list[Any]:
    return exposed.get(
        family.name.removesuffix("_total") if family.kind is declared.MetricKind.COUNTER else family.name, []
    )


def scrape_text(asked: Api, path: str, **headers: str) -> str:
    answer = asked("GET", path, raw=None, token="", **headers)
    assert answer.status == 200, answer.body
    return str(answer.body)


def test_prometheus_discovers_and_scrapes_agents_through_the_api(
    watched: Platform, asked: Api, moved: dict[str, Any]
) -> None:
    def found() -> Any:
        return groups if len(groups := asked("GET", "/metrics/targets").body) == 2 else None

    groups = until(found, "both nodes are connected")
    assert [group["labels"]["node"] for group in groups] == ["host-a", "host-b"]
    for group in groups:
        assert group["targets"] == [asked.url.removeprefix("https://")]
        assert group["labels"]["instance"] == group["labels"]["node"] and group["labels"]["site"]
    there = samples(scrape_text(asked, groups[1]["labels"]["__metrics_path__"]))
    of_vm = {"vm": moved["id"], "name": "web", "project": "default"}
    running = [sample for sample in there["novacron_vm_running"] if sample.labels["vm"] == moved["id"]]
    assert [sample.labels for sample in running] == [of_vm] and running[0].value == 1
    until(
        lambda: not samples_of(samples(scrape_text(asked, groups[0]["labels"]["__metrics_path__"])), RUNNING),
        "the node that it left says nothing of it",
    )
    assert sum(sample.value for sample in there["novacron_vm_cpu_seconds"] if sample.labels["vm"] == moved["id"]) > 0
    assert {sample.labels["mode"] for sample in there["novacron_host_cpu_seconds"]} >= {"user", "idle"}
    assert there["novacron_agent_link_connected"][0].value == 1


def test_metrics_need_a_token(asked: Api) -> None:
    for path in ("/metrics", "/metrics/targets", "/api/v1/nodes/host-a/metrics"):
        assert asked("GET", path, token=None).status == 401
    assert asked("GET", "/api/v1/nodes/host-z/metrics").status == 404


def test_every_declared_metric_is_exposed(watched: Platform, asked: Api, moved: dict[str, Any]) -> None:
    """Except for metrics of events that do not occur in this test."""
    there = "host-a" if watched.client.get("vms", moved["id"])["node"] == "host-b" else "host-b"
    watched.cli("vm", "migrate", "web", "--to", there)  # this server may have begun since the last one

    def is_counted() -> bool:
        return bool(
            samples_of(samples(scrape_text(asked, "/metrics")), declared.BY_NAME["novacron_dwcp_saved_bytes_total"])
        )

    until(is_counted, "the migration is counted")
    agents = [samples(scrape_text(asked, f"/api/v1/nodes/{node}/metrics")) for node in ("host-a", "host-b")]
    server = samples(scrape_text(asked, "/metrics"))
    silent = {
        family.name for family in declared.FAMILIES
        if not samples_of(server, family) and not any(samples_of(agent, family) for agent in agents)
    }  # fmt: skip
    happen = {
        *(family.name for family in declared.ROLLOUTS),
        "novacron_api_refused_total", "novacron_dwcp_rate_bytes_per_second", "novacron_dwcp_streams",
        "novacron_dwcp_round_trip_seconds", "novacron_migration_remaining_bytes",
        "novacron_migration_disk_remaining_bytes", "novacron_metrics_dropped_labels_total", "novacron_volumes",
        "novacron_snapshots", "novacron_imports", "novacron_exports", "novacron_backups",
        "novacron_backup_policy_problems", "novacron_replica_age_seconds",
        "novacron_floating_addresses",
        "novacron_drill_failed", "novacron_drill_detect_seconds", "novacron_drill_recover_seconds",
        "novacron_drill_loss_seconds",
        "novacron_network_hindered", "novacron_project_quota", "novacron_project_image_bytes",
        "novacron_vm_memory_available_bytes", "novacron_vm_memory_charged_bytes",
        "novacron_vm_cpu_throttled_seconds_total", "novacron_vm_network_receive_bytes_total",
        "novacron_vm_network_transmit_bytes_total", "novacron_vm_network_receive_packets_total",
        "novacron_vm_network_transmit_packets_total", "novacron_vm_network_drops_total",
        "novacron_vm_disk_read_bytes_total", "novacron_vm_disk_written_bytes_total", "novacron_vm_disk_reads_total",
        "novacron_vm_disk_writes_total", "novacron_vm_disk_flushes_total", "novacron_vm_disk_seconds_total",
        "novacron_vm_disk_errors_total", "novacron_host_pressure_seconds_total",
        "novacron_database_bad_rows_total", "novacron_work_restarts_total", "novacron_placement_index_misses_total",
        "novacron_feed_skipped_changes_total", "novacron_agent_refused_vxlan_packets_total",
        "novacron_audit_sent_records_total", "novacron_load_reports_dropped_total",
        "novacron_load_history_store_duration_seconds", "novacron_forecast_rounds_total",
        "novacron_forecast_round_duration_seconds", "novacron_forecast_last_round_timestamp_seconds",
        "novacron_forecast_error_ratio", "novacron_forecast_coverage_ratio", "novacron_forecast_lead_seconds",
        "novacron_database_wal_archiving", "novacron_database_wal_archived_timestamp_seconds",
        "novacron_database_base_backup_timestamp_seconds", "novacron_database_base_backup_interval_seconds",
    }  # fmt: skip
    assert silent <= happen


def test_prometheus_finds_no_fault_with_the_metrics(asked: Api, moved: dict[str, Any]) -> None:
    for path in ("/metrics", "/api/v1/nodes/host-b/metrics"):
        done = subprocess.run(["promtool", "check", "metrics"], input=scrape_text(asked, path), capture_output=True,
                              text=True, timeout=30)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_openmetrics_scrapes_get_exemplars_that_lead_to_traces(asked: Api, moved: dict[str, Any]) -> None:
    text = scrape_text(asked, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    examples = [line for line in text.splitlines() if ' # {trace_id="' in line]
    assert any(line.startswith("novacron_api_request_duration_seconds_bucket") for line in examples)
    text = scrape_text(asked, "/api/v1/nodes/host-b/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert any(
        line.startswith("novacron_agent_action_duration_seconds_bucket") and ' # {trace_id="' in line
        for line in text.splitlines()
    )


def tree(spans: list[Span], of: Span) -> Callable[[str], bool]:
    """Return what says whether a name is among the descendants of a span."""
    below, more = {of.id}, True
    while more:
        children = {span.id for span in spans if span.parent in below} | below
        more, below = children != below, children
    names = {(span.service, span.name) for span in spans if span.id in below}
    return lambda name: any(name == f"{service}: {span}" for service, span in names)


def test_one_trace_shows_a_migration_from_the_request_to_the_guest_running_elsewhere(
    watched: Platform, collector: Collector, moved: dict[str, Any]
) -> None:
    migration = next(entry for entry in watched.client.list("migrations") if entry["vm"] == moved["id"])
    trace = migration["trace"].split("-")[1]

    expected = (
        "novacron-server: migration is asked for", "novacron-server: migration begins",
        "novacron-agent: agent receive", "novacron-agent: agent send", "novacron-agent: dwcp open",
        "novacron-agent: dwcp send", "novacron-agent: dwcp receive", "novacron-agent: qmp migrate",
        "novacron-agent: qmp migrate-incoming", "novacron-server: server hears TargetReady",
        "novacron-server: server hears Voted", "novacron-agent: agent continue", "novacron-agent: qmp cont",
    )  # fmt: skip

    def missing() -> set[str]:
        """Of what has to be below the request."""
        spans = collector.of(trace)
        root = next((span for span in spans if span.name == "POST /api/v1/vms/{ref}/actions/migrate"), None)
        if root is None:
            return set(expected)
        assert root.service == "novacron-server" and not root.failed
        has = tree(spans, root)
        return {name for name in expected if not has(name)}

    try:
        until(lambda: not missing(), "the trace is whole", 20)
    except AssertionError as error:
        there = sorted({f"{span.service}: {span.name}" for span in collector.of(trace)})
        raise AssertionError(f"{error}; it lacks {missing()} and has {there}") from None
    assert any(span.name.startswith("db ") for span in collector.of(trace))


def test_one_trace_shows_how_a_vm_came_to_run(watched: Platform, collector: Collector, asked: Api) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = asked("POST", "/api/v1/vms", {"name": "traced", "image": "tiny", "memory_mib": 128}, traceparent=parent)
    assert answer.status in (201, 202)
    vm = answer.body["id"]
    watched.wait_state(vm, "running")
    trace = parent.split("-")[1]
    names = ("POST /api/v1/vms", "VM is placed", "agent start")
    until(lambda: {span.name for span in collector.of(trace)} >= set(names), "the trace is whole", 20)
    spans = collector.of(trace)
    request = next(span for span in spans if span.name == "POST /api/v1/vms")
    assert request.parent == "b7ad6b7169203331"
    assert {span.attributes.get("vm") for span in spans if span.name == "agent start"} == {vm}
    watched.client.delete("vms", vm)


def test_every_question_to_a_node_is_in_its_requests_trace(watched: Platform, collector: Collector, asked: Api) -> None:
    numbers = itertools.count(1)

    def ask(method: str, path: str, body: Any, action: str) -> Any:
        trace = f"{next(numbers):032x}"
        answer = asked(method, f"/api/v1/{path}", body, traceparent=f"00-{trace}-{1:016x}-01")
        assert answer.status < 300, answer.body
        until(lambda: action in {span.name for span in collector.of(trace)}, f"{method} {path} led to {action}", 30)
        return answer.body

    imports = watched.directory / "host-a" / "imports"
    imports.mkdir(exist_ok=True)
    (imports / "empty").write_bytes(bytes(1 << 20))
    ask("POST", "imports", {"name": "empty", "path": "empty", "node": "host-a"}, "agent import")
    until(lambda: any(entry["name"] == "empty" for entry in watched.client.list("images")), "the image is there")
    stopped = watched.client.create_vm(name="exported", image="empty", memory_mib=128, node="host-a", power="stopped")
    watched.wait_state(stopped["id"], "stopped")
    export = ask("POST", f"vms/{stopped['id']}/actions/export", None, "agent export")
    watched.client.wait("exports", export["id"], lambda now: now is None or now["phase"] == "ready", 20)

    vm = watched.client.create_vm(name="busy", image="disk", memory_mib=128, vcpus_max=2, node="host-a")
    watched.wait_state(vm["id"], "running")
    volume = ask("POST", "volumes", {"name": "data", "size_mib": 16, "node": "host-a"}, "agent volume")
    path = f"volumes/{volume['id']}"
    watched.client.wait("volumes", volume["id"], lambda now: now is None or now["phase"] == "ready", 20)
    ask("POST", f"{path}/actions/attach", {"vm": vm["id"]}, "agent attach")
    ask("PATCH", path, {"size_mib": 32}, "agent grow")
    ask("PATCH", f"vms/{vm['id']}", {"vcpus": 2}, "agent grow")
    ask("POST", f"vms/{vm['id']}/snapshots", {"name": "first"}, "agent snapshot")
    ask("POST", f"{path}/actions/detach", None, "agent detach")
    watched.client.wait("volumes", volume["id"], lambda now: now is None or now["vm"] is None, 20)
    ask("DELETE", path, None, "agent volume")
    ask("DELETE", f"vms/{vm['id']}", None, "agent destroy")
    watched.client.delete("exports", export["id"])
    watched.client.delete("vms", stopped["id"])
    until(
        lambda: not {stopped["id"], vm["id"]} & {entry["id"] for entry in watched.client.list("vms")}, "they are gone"
    )
    watched.client.delete("images", "empty")


def test_a_share_of_reads_and_all_failures_are_traced(watched: Platform, collector: Collector, asked: Api) -> None:
    def count(name: str) -> int:
        return sum(span.name == name for span in list(collector.spans))

    before = count("GET /api/v1/nodes")
    for _ in range(300):
        assert asked("GET", "/api/v1/nodes").status == 200
    last = "4bf92f3577b34da6a3ce929d0e0e4736"
    asked("PATCH", "/api/v1/nodes/host-a", {"zone": "z"}, traceparent=f"00-{last}-00f067aa0ba902b7-01")
    until(lambda: collector.of(last), "what was recorded last is there", 20)
    assert 8 <= count("GET /api/v1/nodes") - before <= 75, "about one of ten"


def test_a_collector_that_is_slow_or_gone_costs_spans_and_nothing_else(
    watched: Platform, collector: Collector, asked: Api
) -> None:
    collector.delay_s = 60.0
    try:
        began = time.monotonic()
        for number in range(40):
            answer = asked("PATCH", "/api/v1/nodes/host-a", {"zone": f"z{number}"})
            assert answer.status == 200
        assert time.monotonic() - began < collector.delay_s / 2
    finally:
        collector.delay_s = 0.0


def test_log_levels_change_at_run_time(watched: Platform, asked: Api) -> None:
    assert asked("GET", "/api/v1/log-level").body == {"level": "info"}
    watched.cli("log-level", "debug", "--node", "host-a")
    watched.cli("log-level", "debug")
    assert watched.cli("log-level").stdout.strip() == "debug"
    agent = watched.agents["host-a"].log
    vm = watched.client.create_vm(name="loud", image="tiny", memory_mib=128, node="host-a")
    until(lambda: '"level": "debug"' in agent.read_text(), "the agent says more")
    assert asked("PUT", "/api/v1/nodes/host-a/log-level", {"level": "loud"}).problem["field"] == "level"
    for node in ("--node", "host-a"), ():
        watched.cli("log-level", "info", *node)
    watched.client.delete("vms", vm["id"])


def test_every_log_line_can_be_parsed_and_holds_no_token(watched: Platform) -> None:
    for service in (watched.server, *watched.agents.values()):
        whole = service.log.read_text().rpartition("\n")[0]  # the last line may be being written
        lines = [line for line in whole.splitlines() if "administrator token" not in line]
        lines = [
            line for line in lines if not line.startswith(("CLI settings", "the administrator's token"))
        ]  # said to who started it
        parsed = [json.loads(line) for line in lines]
        assert parsed and all({"event", "level", "timestamp", "component"} <= set(entry) for entry in parsed)
        assert watched.client.config.token not in "".join(lines)
        if service is watched.agents["host-b"]:
            actions = [entry for entry in parsed if entry["event"] == "action" and entry.get("vm")]
            assert actions and all(len(entry.get("trace_id", "")) in (0, 32) for entry in actions)


def test_scrapes_while_a_server_ends_are_answered_or_refused(watched: Platform, asked: Api) -> None:
    over, seen = threading.Event(), list[int]()

    def scrape() -> None:
        while not over.is_set():
            for path in ("/metrics", "/metrics/targets", "/api/v1/nodes/host-a/metrics"):
                try:
                    seen.append(asked("GET", path).status)
                except urllib3.exceptions.HTTPError:
                    seen.append(0)

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(seen) > 40, "it is scraped")
        began = time.monotonic()
        watched.server.stop()
        assert time.monotonic() - began < 15
    finally:
        watched.server.start()
        watched.wait_ready()
        over.set()
        for thread in threads:
            thread.join()
    for node in ("host-a", "host-b"):
        watched.wait_node(node)
    assert {0, 200} <= set(seen) <= {0, 200, 429, 503}, set(seen)  # 429: too many at once
