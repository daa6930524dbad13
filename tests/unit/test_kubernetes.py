"""What runs NovaCron on Kubernetes: the manifests follow its schemas, give away no right, and fit to NovaCron and its
alerts. No cluster is to be had here: they were not applied."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes_validate
import pytest
import yaml

from novacron import settings_file
from novacron.service_options import ServerOptions
from novacron.telemetry.declared import BY_NAME

ROOT = Path(__file__).parents[2]
DEPLOYED = ROOT / "deploy"
DIRECTORY = DEPLOYED / "kubernetes"
PARTS_OF_AWS = ("base", "canary", "monitoring")
FOREIGN = {"Kustomization", "Rollout", "AnalysisTemplate"}
"""Kinds whose schemas are not Kubernetes' own."""
ANALYSIS = {
    "args": [{"name": str, "value": str}],
    "metrics": [
        {"name": str, "interval": str, "initialDelay": str, "failureLimit": int, "consecutiveErrorLimit": int,
         "successCondition": str, "provider": {"prometheus": {"address": str, "query": str}}}
    ],
}  # fmt: skip
ROLLOUT = {
    "replicas": int, "revisionHistoryLimit": int, "progressDeadlineSeconds": int, "progressDeadlineAbort": bool,
    "workloadRef": {"apiVersion": str, "kind": str, "name": str, "scaleDown": str},
    "strategy": {"canary": {
        "maxSurge": int, "maxUnavailable": int, "steps": [{"setWeight": int, "pause": {"duration": str}}],
        "analysis": {"templates": [{"templateName": str}], "startingStep": int,
                     "args": [{"name": str, "valueFrom": {"podTemplateHashValue": str}}]},
    }},
}  # fmt: skip
"""The keys that are used, and what they hold, as Argo Rollouts documents them."""
Json = Any


def documents(path: Path) -> list[Json]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> list[tuple[str, Json]]:
    return [
        (f"{path.relative_to(DIRECTORY)} {document['kind']} {document['metadata']['name']}", document)
        for path in sorted(DIRECTORY.rglob("*.yaml"))
        for document in documents(path)
        if document["kind"] not in FOREIGN
    ]


def one(path: str, kind: str) -> Json:
    (found,) = [document for document in documents(DIRECTORY / path) if document["kind"] == kind]
    return found


def test_the_manifests_follow_kubernetes_schemas() -> None:
    assert len(manifests()) > 20
    for name, document in manifests():
        try:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{name}: {error.message} at {'.'.join(map(str, error.path))}")


def unlike(actual: Json, expected: Json, where: str) -> list[str]:
    if isinstance(expected, dict):
        return [
            line
            for key, value in actual.items()
            for line in (unlike(value, expected[key], f"{where}.{key}") if key in expected else [f"{where}.{key}"])
        ]
    if isinstance(expected, list):
        return [line for item in actual for line in unlike(item, expected[0], f"{where}[]")]
    return [] if isinstance(actual, expected) else [f"{where}: {actual!r}"]


def test_the_canary_is_as_argo_rollouts_documents_it() -> None:
    assert unlike(one("canary/rollout.yaml", "Rollout")["spec"], ROLLOUT, "rollout") == []
    assert unlike(one("canary/analysis.yaml", "AnalysisTemplate")["spec"], ANALYSIS, "analysis") == []
    assert unlike({"metrics": [{"count": 1}]}, ANALYSIS, "analysis") == ["analysis.metrics[].count"]


@pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="needs kubectl, which Debian 12 does not have in this version"
)
@pytest.mark.parametrize("overlay", ["aws", *(pytest.param(name, marks=pytest.mark.slow) for name in PARTS_OF_AWS)])
def test_the_overlays_can_be_built(overlay: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(DIRECTORY / overlay)], capture_output=True, text=True, timeout=120,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    for document in built:
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    maps = {document["metadata"]["name"] for document in built if document["kind"] == "ConfigMap"}
    wanted = set(re.findall(r"configMap:\n\s+name: (\S+)", done.stdout))
    assert wanted == maps, "pods mount the generated maps"
    if overlay in ("canary", "aws"):
        scaled = next(document for document in built if document["kind"] == "HorizontalPodAutoscaler")
        assert scaled["spec"]["scaleTargetRef"]["kind"] == "Rollout"
        server = next(
            document for document in built
            if document["kind"] == "Deployment" and document["metadata"]["name"] == "novacron-server"
        )  # fmt: skip
        assert server["spec"]["replicas"] == 0, "the Rollout has the pods"


def pods() -> list[tuple[str, Json]]:
    return [
        (name, body["spec"]["template"]["spec"]) for name, body in manifests() if "template" in body.get("spec", {})
    ]


def test_containers_have_no_rights_and_write_nowhere_but_in_their_volumes() -> None:
    assert len(pods()) == 3
    for name, pod in pods():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 999, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert container["resources"]["limits"].keys() == {"cpu", "memory"}
        for container in pod["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_the_server_is_started_with_options_that_it_has() -> None:
    (server,) = one("base/server.yaml", "Deployment")["spec"]["template"]["spec"]["containers"]
    names = {setting.name for setting in settings_file.settings(ServerOptions)}
    for word in server["args"][1:]:
        assert word.removeprefix("--").partition("=")[0] in names | {"settings"}, word
    probes = {server[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes == {"/healthz", "/readyz"}
    assert server["livenessProbe"]["httpGet"]["path"] == "/healthz", "a restart does not bring a database back"
    pod = one("base/server.yaml", "Deployment")["spec"]["template"]["spec"]
    (leave_s,) = [int(word.partition("=")[2]) for word in server["args"] if word.startswith("--leave-after")]
    assert pod["terminationGracePeriodSeconds"] > leave_s + 10 + 5, "it finishes its requests"


def test_servers_are_kept_available() -> None:
    deployment = one("base/server.yaml", "Deployment")["spec"]
    scaled = one("base/availability.yaml", "HorizontalPodAutoscaler")["spec"]
    assert (
        deployment["replicas"]
        == scaled["minReplicas"]
        == one("canary/rollout.yaml", "Rollout")["spec"]["replicas"]
        == 3
    )
    budget = one("base/availability.yaml", "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] < scaled["minReplicas"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels == budget["selector"]["matchLabels"] == deployment["selector"]["matchLabels"]


def test_nothing_is_reached_that_no_policy_names() -> None:
    for path in ("base/network.yaml", "monitoring/network.yaml"):
        policies = {policy["metadata"]["name"]: policy["spec"] for policy in documents(DIRECTORY / path)}
        assert policies["nothing-else"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        for spec in policies.values():
            assert spec["policyTypes"] == ["Ingress", "Egress"]
            assert all(rule.get("ports") for rule in [*spec.get("ingress", ()), *spec.get("egress", ())])


# What the canary's analysis asks


class Metric(NamedTuple):
    query: str
    limit: float | None
    """The most that is a success; None: it must be 1."""

    def judge(self, values: list[float]) -> bool:
        """Say what Argo Rollouts makes of an answer of Prometheus."""
        return len(values) == 1 and (values[0] == 1 if self.limit is None else values[0] <= self.limit)


def metrics() -> dict[str, Metric]:
    spec = one("canary/analysis.yaml", "AnalysisTemplate")["spec"]
    found = {}
    for metric in spec["metrics"]:
        condition = re.fullmatch(r"len\(result\) == 1 && result\[0\] (==|<=) ([\d.]+)", metric["successCondition"])
        assert condition, metric["successCondition"]
        limit = float(condition[2]) if condition[1] == "<=" else None
        query = metric["provider"]["prometheus"]["query"]
        found[metric["name"]] = Metric(query.replace("{{args.canary}}", "new").replace("{{args.stable}}", "old"), limit)
        assert metric["failureLimit"] == 0 and metric["interval"] == "1m" and metric["consecutiveErrorLimit"] <= 2
    return found


def without_pods(query: str) -> str:
    """Return a query of the analysis for all pods, as the rules have it."""
    query = re.sub(r',?rollouts_pod_template_hash="new"', "", query).replace("{}", "")
    return " ".join(query.split())


def test_the_analysis_asks_what_the_alerts_ask_with_their_limits() -> None:
    recorded = {
        rule["record"]: " ".join(rule["expr"].split())
        for group in yaml.safe_load((DEPLOYED / "prometheus/rules/recorded.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    alerts = {
        rule["alert"]: rule["expr"]
        for group in yaml.safe_load((DEPLOYED / "prometheus/rules/alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    asked = metrics()
    for name, record, alert in (
        ("errors", "novacron:api_errors:ratio5m", "HighAPIErrorRate"),
        ("latency", "novacron:api_request_duration_seconds:p95_5m", "HighAPILatency"),
    ):
        assert without_pods(asked[name].query).replace("( ", "(") == recorded[record].replace("( ", "(")
        assert alerts[alert] == f"{record} > {asked[name].limit}"
    used = {name for metric in asked.values() for name in re.findall(r"novacron_\w+", metric.query)}
    assert {name.removesuffix("_bucket") for name in used} <= BY_NAME.keys()


def version(name: str, failed: int, slow: int, up: int = 1) -> dict[str, str]:
    """Return what is scraped of the pods of a version: of 1,000 requests so many fail, and so many take over 0.5 s."""
    label = f'job="novacron-server",rollouts_pod_template_hash="{name}"'
    within = {"0.5": 1000 - slow, "1.0": 1000, "+Inf": 1000}
    duration = "novacron_api_request_duration_seconds_bucket"
    return {
        f"up{{{label}}}": f"{up}x60",
        f'novacron_api_requests_total{{status="200",{label}}}': f"0+{1000 - failed}x60",
        f'novacron_api_requests_total{{status="500",{label}}}': f"0+{failed}x60",
        **{f'{duration}{{le="{bound}",{label}}}': f"0+{count}x60" for bound, count in within.items()},
    }


CASES = {
    "healthy": (version("new", 1, 10), set()),
    "1.1 % of requests fail": (version("new", 11, 10), {"errors", "errors-beside-stable"}),
    "fewer fail than allowed, but more than of the stable version": (version("new", 9, 10), {"errors-beside-stable"}),
    "the 95th percentile is over 0.5 s": (version("new", 1, 60), {"latency"}),
    "a pod does not answer Prometheus": (version("new", 1, 10, up=0), {"measured"}),
    "there are no metrics of it": ({}, {"measured", "errors", "latency", "errors-beside-stable"}),
}


def test_the_analysis_ends_what_is_worse_and_nothing_else(tmp_path: Path) -> None:
    """Prometheus' own tool evaluates the queries; values come from its report of what it did not expect."""
    for case, (series, failing) in CASES.items():
        asked = metrics()
        file = tmp_path / "test.yml"
        unlikely = [{"labels": "{}", "value": -12345}]
        file.write_text(yaml.safe_dump({"evaluation_interval": "10s", "tests": [{
            "interval": "10s",
            "input_series": [{"series": name, "values": values}
                             for name, values in {**version("old", 1, 10), **series}.items()],
            "promql_expr_test": [{"expr": metric.query, "eval_time": "8m", "exp_samples": unlikely}
                                 for metric in asked.values()],
        }]}))  # fmt: skip
        done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
        answers = re.findall(r"got:\s*(.*)", done.stdout + done.stderr)
        assert len(answers) == len(asked), done.stdout + done.stderr
        values = {
            name: [float(number) for number in re.findall(r"\} ([^\s,\"]+)", answer)]
            for name, answer in zip(asked, answers, strict=True)
        }
        failed = {name for name, metric in asked.items() if not metric.judge(values[name])}
        assert failed == failing, f"{case}: {answers}"


def test_prometheus_finds_servers_by_the_labels_of_their_pods(tmp_path: Path) -> None:
    """Debian's Prometheus is built without Kubernetes' service discovery: the rest of the file is checked by it."""
    config = yaml.safe_load((DIRECTORY / "monitoring/prometheus.yml").read_text())
    job = config["scrape_configs"][0]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["novacron"]}}]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = {rule["regex"] for rule in job["relabel_configs"] if rule.get("action") == "keep"}
    server = one("base/server.yaml", "Deployment")["spec"]["template"]
    port = server["spec"]["containers"][0]["ports"][0]["name"]
    assert kept == {server["metadata"]["labels"]["app.kubernetes.io/name"], port}
    labels = {rule.get("target_label") for rule in job["relabel_configs"]}
    assert "rollouts_pod_template_hash" in labels, "the analysis tells versions apart by it"
