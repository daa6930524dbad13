"""Prometheus' rules: each alert is seen firing and silent by Prometheus' own tool, and says what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from novacron.telemetry.declared import BY_NAME, FAMILIES, MetricKind

DIRECTORY = Path(__file__).parents[2] / "deploy/prometheus"
RUNBOOK = Path(__file__).parents[2] / "docs/runbooks/alerts.md"
RULES = [rule for group in yaml.safe_load((DIRECTORY / "rules/alerts.yml").read_text())["groups"]
         for rule in group["rules"]]  # fmt: skip
SEVERITIES = ("critical", "warning", "info")
Series = dict[str, str]


class Case(NamedTuple):
    """What Prometheus has scraped, every ten seconds, when an alert is to fire, and when not; and when one looks."""

    firing: Series
    silent: Series
    at: str = "20m"


def requests(failed: int, done: int) -> Series:
    return {
        'novacron_api_requests_total{status="500"}': f"0+{failed}x300",
        'novacron_api_requests_total{status="200"}': f"0+{done}x300",
    }


def within(name: str, bounds: dict[str, int], labels: str = "") -> Series:
    """Return a histogram: how many more are at most each bound, every time."""
    return {f'{name}_bucket{{{labels}le="{bound}"}}': f"0+{count}x300" for bound, count in bounds.items()}


def one(name: str, firing: str, silent: str, at: str = "20m") -> Case:
    return Case({name: firing}, {name: silent}, at)


CASES = {
    "ServiceDown": one('up{job="novacron-server"}', "0x300", "1x300"),
    "APIErrorBudgetBurnsFast": Case(requests(2, 98), requests(1, 99)),
    "APIErrorBudgetBurnsSlowly": Case(requests(1, 99), requests(1, 999), "40m"),
    "HighAPIErrorRate": Case(requests(2, 98), requests(1, 199)),
    "HighAPILatency": Case(
        within("novacron_api_request_duration_seconds", {"0.5": 90, "1.0": 100, "+Inf": 100}),
        within("novacron_api_request_duration_seconds", {"0.5": 99, "1.0": 100, "+Inf": 100}),
    ),
    "APIOverloaded": one('novacron_api_refused_total{reason="overload"}', "0+20x300", "0+5x300"),
    "AuditRecordsLost": one("novacron_api_records_lost_total", "0+1x300", "5x300"),
    "AuditLogNotChained": Case(
        {'novacron_audit_unchained_seconds{instance="a"}': "400x300",
         'novacron_controller_leading{controller="audit-chain", instance="a"}': "1x300"},
        {'novacron_audit_unchained_seconds{instance="a"}': "400x300",
         'novacron_controller_leading{controller="audit-chain", instance="a"}': "0x300"},
    ),
    "ReadsAreOld": one("novacron_feed_lag_seconds", "6x300", "4x300"),
    "FollowersCutOff": one("novacron_api_followers_cut_total", "0+1x300", "9x300"),
    "DatabaseConnectionPoolExhaustion": Case(
        {'novacron_database_connections{state="used"}': "24x300", "novacron_database_connections_max": "25x300"},
        {'novacron_database_connections{state="used"}': "20x300", "novacron_database_connections_max": "25x300"},
    ),
    "DatabaseUnavailable": one("novacron_database_unavailable_total", "0+3x300", "3x300"),
    "DatabaseSlow": Case(
        within("novacron_database_query_duration_seconds", {"0.1": 90, "0.25": 100, "+Inf": 100}),
        within("novacron_database_query_duration_seconds", {"0.1": 99, "0.25": 100, "+Inf": 100}),
    ),
    "TransactionsOvertaken": Case(
        {'novacron_database_transactions_total{outcome="overtaken"}': "0+30x300",
         'novacron_database_transactions_total{outcome="committed"}': "0+70x300"},
        {'novacron_database_transactions_total{outcome="overtaken"}': "0+10x300",
         'novacron_database_transactions_total{outcome="committed"}': "0+90x300"},
    ),
    "DatabaseSessionsAlmostUsed": Case(
        {"novacron_database_sessions": "95x300", "novacron_database_sessions_max": "100x300"},
        {"novacron_database_sessions": "80x300", "novacron_database_sessions_max": "100x300"},
    ),
    "DatabaseTransactionTooLong": one("novacron_database_longest_transaction_seconds", "600x300", "9x300"),
    "BackupFails": one("novacron_database_archive_failures", "0+1x300", "7x300"),
    "BackupTooOld": Case(
        {"novacron_database_archiving": "1x300", "novacron_database_archived_timestamp_seconds": "-7200x300"},
        {"novacron_database_archiving": "0x300", "novacron_database_archived_timestamp_seconds": "-7200x300"},
    ),
    "DatabaseArchivingStopped": Case(
        {"novacron_database_wal_archiving": "1x300", "novacron_database_wal_archived_timestamp_seconds": "0x300"},
        {"novacron_database_wal_archiving": "1x300", "novacron_database_wal_archived_timestamp_seconds": "0+10x300"},
    ),
    "BaseBackupTooOld": Case(
        {"novacron_database_wal_archiving": "1x300", "novacron_database_base_backup_interval_seconds": "3600x300",
         "novacron_database_base_backup_timestamp_seconds": "-7200x300"},
        {"novacron_database_wal_archiving": "1x300", "novacron_database_base_backup_interval_seconds": "3600x300",
         "novacron_database_base_backup_timestamp_seconds": "-3600x300"},
    ),
    "DatabaseRowsUnreadable": one('novacron_database_bad_rows_total{table="vms"}', "0+1x300", "7x300"),
    "ControllerWithoutLeader": Case(
        {'novacron_controller_leading{controller="health", instance="a"}': "0x300"},
        {'novacron_controller_leading{controller="health", instance="a"}': "0x300",
         'novacron_controller_leading{controller="health", instance="b"}': "1x300"},
    ),
    "ControllerFails": one(
        'novacron_controller_steps_total{controller="health", outcome="failed"}', "0+1x300", "7x300"
    ),
    "ControllerObjectsFail": one('novacron_controller_failing_objects{controller="failover"}', "1x300", "0x300"),
    "NodeDown": Case(
        {'novacron_node_ready{node="n", site="s", instance="a"}': "0x300"},
        {'novacron_node_ready{node="n", site="s", instance="a"}': "1x300",
         'novacron_node_ready{node="n", site="s", instance="b"}': "0x300"},
    ),
    "NodeClockWrong": one('novacron_node_clock_skew_seconds{node="n"}', "-90x300", "-2x300"),
    "NodePeersUnreachable": one('novacron_node_condition{node="n", type="PeersReachable"}', "0x300", "-1x300"),
    "NetworkHindered": one('novacron_network_hindered{network="lan", reason="InterfaceClosed"}', "1x300", "0x300"),
    "NodeDiskUnusable": one('novacron_node_condition{node="n", type="DiskUsable"}', "0x300", "1x300"),
    "NodeMemoryShort": one('novacron_node_condition{node="n", type="MemoryAvailable"}', "0x300", "1x300"),
    "NodeOverlayAttacked": one('novacron_node_condition{node="n", type="OverlayTrusted"}', "0x300", "1x300"),
    "NodeMemoryAlmostFull": Case(
        {'novacron_node_memory_allocated_bytes{node="n"}': "96x300", 'novacron_node_memory_bytes{node="n"}': "100x300"},
        {'novacron_node_memory_allocated_bytes{node="n"}': "90x300", 'novacron_node_memory_bytes{node="n"}': "100x300"},
    ),
    "NodeLinkBreaks": one("novacron_link_breaks_total", "0+1x300", "9x300"),
    "NodeMessagesSkipped": one('novacron_link_skipped_messages_total{reason="undecodable"}', "0+1x300", "7x300"),
    "AgentMessagesSkipped": one('novacron_agent_skipped_messages_total{reason="defect", node="n"}', "0+1x300", "7x300"),
    "HeartbeatsNotStored": Case(
        {'novacron_link_heartbeats_total{outcome="failed"}': "0+5x300"},
        {'novacron_link_heartbeats_total{outcome="stored"}': "0+5x300"},
    ),
    "AgentSilent": one('up{job="novacron-agents", node="n"}', "0x300", "1x300"),
    "HostDiskAlmostFull": Case(
        {'novacron_host_filesystem_free_bytes{place="state", node="n"}': "5x300",
         'novacron_host_filesystem_bytes{place="state", node="n"}': "100x300"},
        {'novacron_host_filesystem_free_bytes{place="state", node="n"}': "15x300",
         'novacron_host_filesystem_bytes{place="state", node="n"}': "100x300"},
    ),
    "HostMemoryLow": Case(
        {'novacron_host_memory_available_bytes{node="n"}': "4x300", 'novacron_host_memory_bytes{node="n"}': "100x300"},
        {'novacron_host_memory_available_bytes{node="n"}': "9x300", 'novacron_host_memory_bytes{node="n"}': "100x300"},
    ),
    "HostUnderPressure": one('novacron_host_pressure_seconds_total{resource="io", node="n"}', "0+6x300", "0+2x300"),
    "HostNetworkDrops": one('novacron_host_network_drops_total{interface="e", node="n"}', "0+2000x300", "0+20x300"),
    "VMsUnplaced": one("novacron_vms_unplaced", "2x300", "0x300"),
    "VMBackupLate": one('novacron_vms_backup{state="late"}', "1x300", "0x300"),
    "VMBackupUnverified": one("novacron_vms_backup_unverified", "1x9000", "0x9000", "24h10m"),
    "VMBackupProofFailed": one("novacron_vms_backup_proof_failed", "1x300", "0x300"),
    "BackupRepositoryNotPruned": one("novacron_backup_repository_prunes_failed", "1x9000", "0x9000", "24h10m"),
    "VMReplicaLate": one('novacron_replicas{state="late"}', "1x300", "0x300"),
    "VMWithoutBackupPolicy": Case(
        {'novacron_vms_backup{state="unprotected"}': "1x600", "novacron_backup_policies": "1x600"},
        {'novacron_vms_backup{state="unprotected"}': "1x600", "novacron_backup_policies": "0x600"},
        "70m",
    ),
    "DrillFailed": one('novacron_drill_failed{drill="certificates"}', "1x300", "0x300"),
    "DrillOverdue": one(
        'novacron_drill_age_seconds{drill="certificates"}', f"{35 * 86_400 + 1}x600", f"{35 * 86_400}x600", "70m"
    ),
    "VMsUnreconciled": one("novacron_vms_unreconciled", "1x300", "0x300"),
    "DatabaseOlderThanNodes": one("novacron_nodes_unheard", "1x300", "0x300"),
    "VMsCrash": one("novacron_vm_crashes", "0+1x300", "70x300"),
    "VMDiskErrors": one('novacron_vm_disk_errors_total{vm="v", name="web", node="n"}', "0+1x300", "3x300"),
    "VMHeldBack": one('novacron_vm_cpu_throttled_seconds_total{vm="v", name="web"}', "0+8x300", "0+2x300", "30m"),
    "VMMemoryLow": Case(
        {'novacron_vm_memory_available_bytes{vm="v", name="web"}': "4x300",
         'novacron_vm_memory_bytes{vm="v", name="web"}': "100x300"},
        {'novacron_vm_memory_available_bytes{vm="v", name="web"}': "9x300",
         'novacron_vm_memory_bytes{vm="v", name="web"}': "100x300"},
    ),
    "AgentActionsFail": one(
        'novacron_agent_actions_total{action="start", outcome="failed", node="n"}', "0+1x300", "3x300"
    ),
    "DwcpSessionsFail": one('novacron_dwcp_sessions_total{role="sender", outcome="failed", node="n"}', "0+1x300",
                            "3x300"),
    "MigrationsFail": Case(
        {'novacron_migrations_total{kind="live", outcome="failed"}': "0+1x300"},
        {'novacron_migrations_total{kind="live", outcome="completed"}': "0+1x300"},
    ),
    "LongDowntime": Case(
        within("novacron_migration_downtime_seconds", {"2.0": 80, "5.0": 100, "+Inf": 100}),
        within("novacron_migration_downtime_seconds", {"2.0": 99, "5.0": 100, "+Inf": 100}),
    ),
    "PageStoresDamaged": one("novacron_dwcp_repaired_pages_total", "0+200x300", "0+1x300"),
    "ServerMemoryHigh": one("novacron_process_resident_memory_bytes", "5000000000x300", "1000000000x300"),
    "ServerLoopLate": Case(
        within("novacron_loop_lag_seconds", {"0.25": 90, "0.5": 100, "+Inf": 100}),
        within("novacron_loop_lag_seconds", {"0.25": 99, "0.5": 100, "+Inf": 100}),
    ),
    "WorkRestarts": one('novacron_work_restarts_total{work="measure", node="n"}', "0+1x300", "3x300"),
    "MetricsLabelsDropped": one(
        'novacron_metrics_dropped_labels_total{metric="novacron_api_refused_total"}', "0+1x300", "7x300"
    ),
    "CertificateExpires": Case(
        {'novacron_certificate_expiry_timestamp_seconds{certificate="node", instance="s"}': "0x300",
         'novacron_certificate_expiry_timestamp_seconds{certificate="server", instance="s"}': "3000000x300",
         'novacron_node_certificate_expiry_timestamp_seconds{node="n", instance="s"}': "1100000x300"},
        {'novacron_certificate_expiry_timestamp_seconds{certificate="server", instance="s"}': "3000000x300",
         'novacron_node_certificate_expiry_timestamp_seconds{node="n", instance="s"}': "1300000x300",
         'novacron_node_certificate_expiry_timestamp_seconds{node="new", instance="s"}': "0x300"},
    ),
    "KeyOld": Case(
        {'novacron_key_created_timestamp_seconds{key="ca"}': "-1000x300", "novacron_key_age_max_seconds": "1000x300"},
        {'novacron_key_created_timestamp_seconds{key="ca"}': "-1000x300", "novacron_key_age_max_seconds": "0x300"},
    ),
    "KeyRotationUnfinished": one(
        'novacron_key_rotation_start_timestamp_seconds{key="ca"}', f"-{7 * 86_400}x300", "0x300"
    ),
    "TelemetryDropped": Case(
        {'novacron_traces_spans_total{outcome="dropped"}': "0+1x300",
         'novacron_logs_lines_total{outcome="dropped"}': "0x300"},
        {'novacron_traces_spans_total{outcome="dropped"}': "9x300",
         'novacron_logs_lines_total{outcome="dropped"}': "0x300"},
    ),
    "ExporterDown": one('up{job="redis"}', "0x300", "1x300"),
    "RolloutStuck": Case(
        {"novacron_rollout_running": "1x300", "novacron_rollout_progress_timestamp_seconds": "0x300"},
        {"novacron_rollout_running": "1x300", "novacron_rollout_progress_timestamp_seconds": "0+10x300"},
    ),
    "RolloutRolledBack": Case(
        {'novacron_rollout_ended_timestamp_seconds{state="rolled-back"}': "60x300"},
        {'novacron_rollout_ended_timestamp_seconds{state="rolled-back"}': "-4000x300",
         'novacron_rollout_ended_timestamp_seconds{state="done"}': "60x300"},
    ),
}  # fmt: skip


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_its_configuration_and_rules() -> None:
    promtool("check", "config", "--syntax-only", str(DIRECTORY / "prometheus.yml"))
    shown = promtool("check", "rules", *(str(path) for path in (DIRECTORY / "rules").iterdir()))
    assert f"{len(RULES)} rules found" in shown
    config = yaml.safe_load((DIRECTORY / "prometheus.yml").read_text())
    assert all((DIRECTORY / "rules").glob(pattern.removeprefix("rules/")) for pattern in config["rule_files"])


def test_each_alert_is_tested_firing_and_silent_and_gives_advice() -> None:
    assert [rule["alert"] for rule in RULES] == list(CASES)
    text = RUNBOOK.read_text()
    sections = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert sections == list(CASES)
    for rule in RULES:
        assert rule["labels"]["severity"] in SEVERITIES
        said = rule["annotations"]
        assert said["summary"] and said["description"].endswith(".")
        assert re.fullmatch(r"http://localhost:3000/d/novacron-[a-z]+", said["dashboard_url"])
        assert said["runbook_url"] == f"https://novacron.dev/runbooks/alerts#{rule['alert'].lower()}"


def test_rules_query_only_existing_metrics() -> None:
    shown = {
        name: family
        for family in FAMILIES
        for name in (
            [f"{family.name}_{end}" for end in ("bucket", "sum", "count")]
            if family.kind is MetricKind.HISTOGRAM
            else [family.name]
        )
    }
    for path in (DIRECTORY / "rules").iterdir():
        rules = [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
        for rule in rules:
            for name, labels in re.findall(r"(?<!:)\b(novacron_[a-z0-9_]+)(?:\{([^}]*)\})?", rule["expr"]):
                assert name in shown, f"{name} in {path.name}"
                assert set(re.findall(r"(\w+)\s*[=!]", labels)) <= {*shown[name].labels, "le", "instance", "node"}
    assert BY_NAME


@pytest.mark.timeout(450)
def test_each_alert_fires_when_it_must_and_only_then(tmp_path: Path) -> None:
    tests: list[dict[str, Any]] = []
    for alert, case in CASES.items():
        for series, value in ((case.firing, 1), (case.silent, 0)):
            tests.append(
                {
                    "interval": "10s",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                            "eval_time": case.at,
                            "exp_samples": [{"labels": "{}", "value": value}],
                        }
                    ],
                }
            )
    rules = [str(path) for path in sorted((DIRECTORY / "rules").iterdir())]
    for alert, pair in zip(CASES, zip(tests[::2], tests[1::2], strict=True), strict=True):
        file = tmp_path / f"{alert}.yml"
        file.write_text(yaml.safe_dump({"rule_files": rules, "evaluation_interval": "1m", "tests": list(pair)}))
    promtool("test", "rules", *(str(path) for path in sorted(tmp_path.iterdir())))


@pytest.mark.parametrize("alert", ["HighAPIErrorRate"])
def test_alert_texts_have_their_values_filled_in(alert: str, tmp_path: Path) -> None:
    rule = next(rule for rule in RULES if rule["alert"] == alert)
    said = dict(rule["annotations"], summary="2% of requests fail")
    test = {
        "interval": "10s",
        "input_series": [{"series": name, "values": values} for name, values in CASES[alert].firing.items()],
        "alert_rule_test": [
            {"eval_time": "20m", "alertname": alert,
             "exp_alerts": [{"exp_labels": {"severity": "critical"}, "exp_annotations": said}]}
        ],
    }  # fmt: skip
    rules = [str(path) for path in sorted((DIRECTORY / "rules").iterdir())]
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": rules, "evaluation_interval": "10s", "tests": [test]}))
    promtool("test", "rules", str(file))
