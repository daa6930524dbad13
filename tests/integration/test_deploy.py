"""What operators install beside NovaCron fits together. Loki, Jaeger, Elasticsearch, Grafana, the OpenTelemetry
collector and a container engine are not to be had where these tests run: their files are checked against what is
documented of them; those of Prometheus and Alertmanager are used by the tests (test_dashboards.py, test_alerts.py)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from deploy.debian.manifest import AGENT
from lab.observers import DEPLOYED

COMPOSE = DEPLOYED / "compose/compose.yaml"
SIZE = r"\d+(B|KB|MB|GB)?"
LOKI: dict[str, Any] = {
    "auth_enabled": bool,
    "server": {"http_listen_port": int, "grpc_listen_port": int},
    "common": {"instance_addr": str, "path_prefix": str, "replication_factor": int,
               "ring": {"kvstore": {"store": str}}},
    "schema_config": {
        "configs": [
            {"from": str, "store": str, "object_store": str, "schema": str,
             "index": {"prefix": str, "period": "duration"}}
        ]
    },
    "storage_config": {
        "tsdb_shipper": {"active_index_directory": str, "cache_location": str, "cache_ttl": "duration"},
        "aws": {"endpoint": str, "bucketnames": str, "access_key_id": str, "secret_access_key": str,
                "s3forcepathstyle": bool},
    },
    "ingester": {
        "chunk_encoding": str, "chunk_idle_period": "duration", "chunk_target_size": int, "max_chunk_age": "duration",
        "wal": {"dir": str, "replay_memory_ceiling": "size"},
    },
    "compactor": {"working_directory": str, "retention_enabled": bool, "retention_delete_delay": "duration",
                  "delete_request_store": str},
    "limits_config": {
        "ingestion_rate_mb": int, "ingestion_burst_size_mb": int, "per_stream_rate_limit": "size",
        "per_stream_rate_limit_burst": "size", "max_line_size": "size", "max_global_streams_per_user": int,
        "reject_old_samples": bool, "reject_old_samples_max_age": "duration", "retention_period": "duration",
        "max_query_lookback": "duration", "max_query_length": "duration", "allow_structured_metadata": bool,
        "volume_enabled": bool,
    },
    "chunk_store_config": {"chunk_cache_config": {"embedded_cache": {"enabled": bool, "max_size_mb": int,
                                                                     "ttl": "duration"}}},
    "query_range": {"align_queries_with_step": bool, "cache_results": bool,
                    "results_cache": {"cache": {"embedded_cache": {"enabled": bool, "max_size_mb": int}}}},
    "analytics": {"reporting_enabled": bool},
}  # fmt: skip
"""The keys that are used, and what they hold, as Loki 3.7's reference of its configuration documents them."""


def load(path: str) -> Any:
    return yaml.safe_load((DEPLOYED / path).read_text())


def unlike(actual: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Yield where a configuration is not as documented."""
    if isinstance(expected, dict):
        for key, value in actual.items():
            if key not in expected:
                yield f"{where}.{key} is not documented"
            else:
                yield from unlike(value, expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        for number, item in enumerate(actual):
            yield from unlike(item, expected[0], f"{where}[{number}]")
    elif expected == "duration":
        if not re.fullmatch(r"(\d+(ms|s|m|h))+", str(actual)):
            yield f"{where}: {actual} is no duration"
    elif expected == "size":
        if not re.fullmatch(SIZE, str(actual)):
            yield f"{where}: {actual} is no size"
    elif type(actual) is not expected:
        yield f"{where}: {actual!r} is no {expected.__name__}"


def test_lokis_configuration_is_as_documented_with_the_promised_retention() -> None:
    configuration = load("loki/loki.yaml")
    assert list(unlike(configuration, LOKI)) == []
    limits = configuration["limits_config"]
    assert (limits["ingestion_rate_mb"], limits["ingestion_burst_size_mb"]) == (10, 20)
    hot_days, cold_days = 30, 90
    assert limits["retention_period"] == f"{(hot_days + cold_days) * 24}h" == limits["max_query_lookback"]
    assert (
        configuration["compactor"]["retention_enabled"] and configuration["compactor"]["delete_request_store"] == "s3"
    )
    rules = json.loads((DEPLOYED / "loki/lifecycle.json").read_text())["Rules"]
    assert rules[0]["Transitions"][0]["Days"] == hot_days
    assert rules[1]["Expiration"]["Days"] > hot_days + cold_days, "Loki's own retention comes first"
    (schema,) = configuration["schema_config"]["configs"]
    assert (schema["store"], schema["schema"], schema["index"]["period"]) == ("tsdb", "v13", "24h")


def test_the_configuration_check_detects_a_wrong_key() -> None:
    assert list(unlike({"limits_config": {"ingestion_rate": 10}}, LOKI)) == [
        ".limits_config.ingestion_rate is not documented"
    ]
    assert list(unlike({"limits_config": {"retention_period": "30d"}}, LOKI)) == [
        ".limits_config.retention_period: 30d is no duration"
    ]


def _defined(config: Any, more: Any = None) -> None:
    """Check that pipelines use only defined components, and all of them."""
    for kind in ("receivers", "processors", "exporters"):
        has = set(config.get(kind, ())) | set((more or {}).get(kind, ()))
        used = {name for pipeline in config["service"]["pipelines"].values() for name in pipeline[kind]}
        assert used <= has, f"{kind} {used - has} are not defined"
        assert set(config.get(kind, ())) <= used | set((more or {}).get(kind, ())), f"{kind} are not used"
    assert set(config["service"].get("extensions", ())) == set(config.get("extensions", ()))


def test_the_collector_accepts_three_protocols_and_exports_to_jaeger() -> None:
    config = load("collector/collector.yaml")
    _defined(config)
    traces = config["service"]["pipelines"]["traces"]
    assert traces["receivers"] == ["otlp", "jaeger", "zipkin"] and traces["exporters"] == ["otlp/jaeger"]
    assert traces["processors"][0] == "memory_limiter", "it comes first"
    for exporter in config["exporters"].values():
        assert exporter["sending_queue"]["queue_size"] and exporter["retry_on_failure"]["max_elapsed_time"]
    _defined(load("collector/journald.yaml"), config)


def test_jaeger_keeps_traces_in_elasticsearch() -> None:
    config = load("jaeger/jaeger.yaml")
    _defined(config)
    backends = config["extensions"]["jaeger_storage"]["backends"]
    assert "elasticsearch" in backends["traces"]
    assert config["extensions"]["jaeger_query"]["storage"]["traces"] in backends
    assert config["exporters"]["jaeger_storage_exporter"]["trace_storage"] in backends


def test_grafana_has_all_data_sources() -> None:
    sources = {
        source["uid"]: source for source in load("grafana/provisioning/datasources/novacron.yaml")["datasources"]
    }
    assert {source["type"] for source in sources.values()} == {"prometheus", "loki", "jaeger"}
    services = load("compose/compose.yaml")["services"]
    text = json.dumps(list(sources.values()))
    assert set(re.findall(r'"datasourceUid": "(\w+)"', text)) <= set(sources)
    for source in sources.values():
        host = re.fullmatch(r"http://([a-z]+):\d+", source["url"])
        assert host is not None and host[1] in {*services, "prometheus"}
    (provider,) = load("grafana/provisioning/dashboards/novacron.yaml")["providers"]
    mounts = services["grafana"]["volumes"]
    assert f"../grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_the_compose_file_is_valid_and_has_all_promised_services() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    configuration = load("compose/compose.yaml")
    services = configuration["services"]
    assert set(services) >= {"postgres", "redis", "server", "agent", "prometheus", "alertmanager", "grafana", "loki",
                             "collector", "jaeger"}  # fmt: skip
    for name, service in services.items():
        image = service["image"]
        assert ":" in image.rpartition("/")[2] and not image.endswith(":latest"), f"{name}: {image} is not pinned"
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (COMPOSE.parent / source).exists(), f"{name}: {source} is not there"
            elif not source.startswith("/"):
                assert source in configuration["volumes"], f"{name}: {source} is not declared"
    for name, value in re.findall(r"(\w*(?:PASSWORD|SECRET_KEY)\w*): (.+)", COMPOSE.read_text()):
        assert re.search(r"\$\{\w+:\?", value), f"{name} is written down"


def test_compose_uses_the_files_that_the_tests_run() -> None:
    services = load("compose/compose.yaml")["services"]
    assert "../prometheus:/etc/novacron:ro" in services["prometheus"]["volumes"]
    options = services["prometheus"]["command"]
    assert "--config.file=/etc/novacron/prometheus.yml" in options
    assert {"--storage.tsdb.retention.time=30d", "--storage.tsdb.retention.size=100GB"} <= set(options)
    assert services["alertmanager"]["volumes"] == [
        "../alertmanager/alertmanager.yml:/etc/alertmanager/alertmanager.yml:ro"
    ]
    assert "--cluster.listen-address=" in services["alertmanager"]["command"]
    config = load("prometheus/prometheus.yml")
    ports = {"7443", "9090", "9093", "9187", "9121"}
    named = {
        target.rpartition(":")[2]
        for job in config["scrape_configs"]
        for group in job.get("static_configs", ())
        for target in group["targets"]
    }
    assert named == ports
    for name in ("prometheus", "alertmanager", "postgres-exporter", "redis-exporter"):
        assert services[name]["network_mode"] == "service:server", "they find each other at localhost"
    intervals = {job.get("scrape_interval", config["global"]["scrape_interval"]) for job in config["scrape_configs"]}
    assert intervals <= {"10s", "15s"}


def test_only_the_server_and_what_begins_have_the_administrators_token() -> None:
    services = load("compose/compose.yaml")["services"]
    config = services["server"]["environment"]["NOVACRON_CONFIG"]
    volume = next(
        entry.split(":")[0] for entry in services["server"]["volumes"] if f":{config.rpartition('/')[0]}" in entry
    )
    holders = {
        name
        for name, service in services.items()
        for entry in service.get("volumes", ())
        if entry.split(":")[0] == volume
    }
    assert holders == {"server", "begin"}


def test_containers_run_existing_commands() -> None:
    services = load("compose/compose.yaml")["services"]
    for name in ("server", "agent"):
        words = services[name]["command"]
        help_output = subprocess.run(
            [sys.executable, "-m", "novacron", words[0], "--help"],
            capture_output=True, text=True, timeout=60, env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        for option in (word for word in words if word.startswith("--")):
            assert f"{option} " in help_output.stdout, f"novacron {words[0]} has no {option}"
    script = (COMPOSE.parent / "begin.sh").read_text()
    assert subprocess.run(["sh", "-n", str(COMPOSE.parent / "begin.sh")], check=False).returncode == 0
    for command in re.findall(r"novacron ([a-z]+ [a-z-]+)", script):
        assert f"`novacron {command}`" in (DEPLOYED.parent / "docs/reference/cli.md").read_text()


def stages() -> dict[str, tuple[str, list[str]]]:
    """Return the stages of the images: what each begins with, and its instructions."""
    text = re.sub(r"\\\n\s*", " ", (COMPOSE.parent / "Dockerfile").read_text())
    found: dict[str, tuple[str, list[str]]] = {}
    for line in (line for line in text.splitlines() if line and not line.startswith("#")):
        begins = re.fullmatch(r"FROM (\S+) AS (\S+)", line)
        if begins:
            found[begins[2]] = (begins[1], [])
        elif found:
            found[next(reversed(found))][1].append(line)
    return found


def test_images_are_built_on_a_base_that_is_pinned() -> None:
    text = (COMPOSE.parent / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"debian:12-slim@sha256:[0-9a-f]{64}", base)
    made = stages()
    assert {begins for begins, _ in made.values()} <= {"${BASE}", *made}


def test_an_image_has_what_its_service_runs_with_and_nothing_that_only_builds() -> None:
    made = stages()
    for target in ("server", "agent"):
        begins, steps = made[target]
        assert begins == "base" and f"COPY --from=build-{target} /opt/venv /opt/venv" in steps
        assert not [step for step in steps if step.startswith("COPY ") and "--from" not in step]
        built = " ".join(made[f"build-{target}"][1])
        assert f"--extra {target}" in built and built.rstrip().endswith("--no-default-groups --no-editable")
        installed = {word for step in (*made["base"][1], *steps) for word in step.split() if "apt-get" in step}
        assert not {"python3-venv", "gcc", "git"} & installed
    assert made["server"][1][-1] == "USER 10001", "as deploy/kubernetes runs it"
    assert "qemu-system-x86" not in " ".join(made["server"][1])
    needed = {name for name in AGENT.depends if not name.startswith(("novacron", "init-system", "systemd"))}
    assert needed <= set(" ".join((*made["base"][1], *made["agent"][1])).split())


def test_compose_builds_the_stages_that_are_there() -> None:
    services = load("compose/compose.yaml")["services"]
    assert services["server"]["build"]["target"] == services["begin"]["build"]["target"] == "server"
    assert services["agent"]["build"]["target"] == "agent" and services["agent"]["image"] != services["server"]["image"]
    assert {"server", "agent"} <= stages().keys()
