"""The route that Prometheus scrapes: ``/metrics``, with a token like all others; and the fleet's metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import starmap
from typing import Any

import msgspec
from litestar import Response, get
from litestar.params import FromPath

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.api.read_model.watch_cache import Cache
from novacron.api.routes import drills
from novacron.model.access import Right
from novacron.model.condition import ConditionReason, ConditionStatus
from novacron.model.drill import DrillVerdict
from novacron.runbooks import history
from novacron.telemetry.metrics import CONTENT_TYPE, OPEN_CONTENT_TYPE
from novacron.telemetry.values import Labels
from novacron.wire.questions import ReadMetrics

Body = dict[str, Any]
Value = tuple[str, Labels, float]

CONDITION_VALUES = {ConditionStatus.TRUE: 1, ConditionStatus.FALSE: 0, ConditionStatus.UNKNOWN: -1}
PHASES = ("pending", "preparing", "transferring")
LINKS = (
    ("novacron_dwcp_rate_bytes_per_second", "rate_bytes_per_s", 1.0, sum),
    ("novacron_dwcp_streams", "streams", 1.0, sum),
    ("novacron_dwcp_round_trip_seconds", "rtt_ms", 1e-3, max),
    ("novacron_migration_remaining_bytes", "remaining_bytes", 1.0, sum),
    ("novacron_migration_disk_remaining_bytes", "disk_remaining_bytes", 1.0, sum),
)
"""Names, and the fields of a migration's progress that they are made of."""


class Target(msgspec.Struct):
    """An agent as Prometheus finds it: it is reached through the server that it is connected to."""

    targets: list[str]
    labels: dict[str, str]


@get(
    "/metrics",
    summary="Metrics of this server, in Prometheus' text format",
    media_type="text/plain",
    opt=authorization.in_fleet(Right.METRICS),
)
async def metrics(request: ApiRequest) -> Response[bytes]:
    open_metrics, media_type = _format_of(request)
    return Response(await services(request).metrics.render(open_metrics=open_metrics), media_type=media_type)


@get(
    "/metrics/targets",
    summary="Agents connected to this server, for Prometheus' HTTP service discovery",
    opt=authorization.in_fleet(Right.METRICS),
)
async def targets(request: ApiRequest) -> list[Target]:
    context = services(request)
    address, nodes = context.api_url.removeprefix("https://"), context.cache.all("node")
    sites = {entry.body["name"]: entry.body["spec"]["site"] for entry in nodes.values()}
    return [
        Target([address], {"__metrics_path__": f"/api/v1/nodes/{node}/metrics", "instance": node, "node": node,
                           "site": sites.get(node, "")})
        for node in await context.agents.connected()
    ]  # fmt: skip


@get(
    "/api/v1/nodes/{name:str}/metrics",
    summary="Metrics of a node's agent, its host and its VMs, in Prometheus' text format",
    media_type="text/plain",
    opt=authorization.in_fleet(Right.METRICS),
    tags=["nodes"],
)
async def node_metrics(request: ApiRequest, name: FromPath[str]) -> Response[bytes]:
    open_metrics, media_type = _format_of(request)
    text = await services(request).agents.ask(known_node(request, name), ReadMetrics(open_metrics))
    return Response(text, media_type=media_type)


def known_node(request: ApiRequest, name: str) -> str:
    """Return the name of a node. Raises NotFound if there is none of that name."""
    if services(request).cache.get("node", replies.check_ref("node", name)) is None:
        raise authorization.no_such("node", name)
    return name


def _format_of(request: ApiRequest) -> tuple[bool, str]:
    """Say whether the client accepts OpenMetrics, and which content type it gets."""
    open_metrics = "application/openmetrics-text" in request.headers.get("accept", "")
    return open_metrics, OPEN_CONTENT_TYPE if open_metrics else CONTENT_TYPE


def seen(cache: Cache) -> Iterator[Value]:
    """Yield the metrics of the fleet in a watch cache."""

    def bodies(kind: str) -> Iterator[Body]:
        return (entry.body for entry in cache.all(kind).values())

    def by(name: str, kind: str, of: Callable[[Body], str]) -> Iterator[Value]:
        return starmap(lambda label, count: (name, (label,), count), Counter(map(of, bodies(kind))).items())

    for kind in cache.kinds():
        yield "novacron_cache_objects", (kind,), len(cache.all(kind))
    yield from _migrations(bodies("migration"))
    yield from _vms_and_nodes(list(bodies("vm")), bodies("node"))
    for name, kind in (
        ("volumes", "volume"),
        ("snapshots", "snapshot"),
        ("imports", "import"),
        ("exports", "export"),
        ("backups", "backup"),
    ):
        yield from by(f"novacron_{name}", kind, lambda body: str(body["phase"]))
    yield from _policies(bodies("backup-policy"))
    yield from _backups_of(bodies("vm"))
    yield from _replicas(bodies("replica"))
    prunes = [prune for repository in bodies("backup-repository") for prune in repository["prunes"]]
    yield "novacron_backup_repository_prunes_failed", (), sum(prune["error"] != "" for prune in prunes)
    yield "novacron_volume_bytes", (), sum(body["size_mib"] << 20 for body in bodies("volume"))
    yield "novacron_drains_active", (), sum(body["finished_at"] is None for body in bodies("drain"))
    yield from by(
        "novacron_floating_addresses", "floating-address", lambda body: "no" if body["vm"] is None else "yes"
    )  # fmt: skip
    yield from _drills(cache)
    yield from _runbooks()
    yield from _hindered_networks(bodies("network"))
    yield from _quotas(bodies("project"), bodies("image-owner"))
    yield "novacron_vms_unreconciled", (), len({body["vm"] for body in bodies("unreconciled-vm")})
    unheard = [body for body in bodies("node") if any(
        condition["reason"] == ConditionReason.NOT_HEARD_SINCE_RESTORE
        for condition in body["status"].get("conditions", ())
    )]  # fmt: skip
    yield "novacron_nodes_unheard", (), len(unheard)
    yield from by("novacron_users", "user", lambda body: str(body["kind"]))
    yield from by("novacron_tokens", "token", lambda body: str(body["kind"]))
    for name, kind in (
        ("networks", "network"), ("security_groups", "security-group"), ("forwards", "forward"), ("projects", "project")
    ):  # fmt: skip
        yield f"novacron_{name}", (), len(cache.all(kind))


def _migrations(bodies: Iterator[Body]) -> Iterator[Value]:
    phases, links = dict.fromkeys(PHASES, 0), dict[Labels, list[Body]]()
    for body in bodies:
        if body["phase"] in phases:
            phases[body["phase"]] += 1
            if body["phase"] == "transferring":
                links.setdefault((body["source"], body["target"]), []).append(body["progress"])
    for phase, count in phases.items():
        yield "novacron_migrations_active", (phase,), count
    for name, field, factor, together in LINKS:
        for link, progresses in links.items():
            yield name, link, together(each[field] for each in progresses) * factor


def _quotas(projects: Iterable[Body], owners: Iterable[Body]) -> Iterator[Value]:
    for project in projects:
        limits = {quota: limit for quota, limit in project["quota"].items() if limit is not None}
        yield from (("novacron_project_quota", (project["name"], quota), limit) for quota, limit in limits.items())
    sizes = Counter[str]()
    for owner in owners:
        sizes[owner["project"]] += owner.get("size_mib", 0) << 20
    yield from (("novacron_project_image_bytes", (project,), size) for project, size in sizes.items())


def _policies(policies: Iterator[Body]) -> Iterator[Value]:
    enabled = [policy for policy in policies if policy["spec"]["enabled"]]
    yield "novacron_backup_policies", (), len(enabled)
    for policy in enabled:
        yield "novacron_backup_policy_problems", (policy["project"], policy["name"]), policy["problem_count"]


def _backups_of(vms: Iterator[Body]) -> Iterator[Value]:
    states = Counter[str](dict.fromkeys(("unprotected", "waiting", "current", "late"), 0))
    unverified, unproved, now = 0, 0, datetime.now(UTC)
    for vm in vms:
        if vm.get("proof_of"):
            continue
        has = vm.get("backups") or {}
        unproved += bool(has.get("proof_failed"))
        late_at, newest_at = has.get("late_at"), has.get("newest_at")
        if late_at is None:
            states["unprotected"] += 1
            continue
        unverified += newest_at is not None and has["verified_at"] is None
        is_late = datetime.fromisoformat(late_at) <= now
        states["late" if is_late else "waiting" if newest_at is None else "current"] += 1
    yield from (("novacron_vms_backup", (state,), count) for state, count in states.items())
    yield "novacron_vms_backup_unverified", (), unverified
    yield "novacron_vms_backup_proof_failed", (), unproved


def _replicas(replicas: Iterator[Body]) -> Iterator[Value]:
    states, now = Counter[str](dict.fromkeys(("waiting", "current", "late"), 0)), datetime.now(UTC)
    for replica in replicas:
        if replica["phase"] == "deleting":
            continue
        labels = (replica["project"], replica["vm_name"], replica["node"])
        late_at = replica["late_at"]
        is_late = late_at is not None and datetime.fromisoformat(late_at) <= now
        states["late" if is_late else "current" if replica["points"] else "waiting"] += 1
        if not replica["points"]:
            continue
        age_s = (now - datetime.fromisoformat(replica["points"][-1]["at"])).total_seconds()
        yield "novacron_replica_age_seconds", labels, max(0.0, age_s)
    yield from (("novacron_replicas", (state,), count) for state, count in states.items())


def _runbooks() -> Iterator[Value]:
    """Yield when each runbook was executed, and how long each of its faults lasted then."""
    for runbook, tested_at_s in history.tested_at_s().items():
        yield "novacron_runbook_tested_timestamp_seconds", (runbook,), tested_at_s
    for runbook, runs in history.everything_measured().items():
        for run in runs:
            if run.detect_s is not None:
                yield "novacron_runbook_detect_seconds", (runbook, run.alert), run.detect_s
            if run.recover_s is not None:
                yield "novacron_runbook_recover_seconds", (runbook, run.alert), run.recover_s


def _drills(cache: Cache) -> Iterator[Value]:
    for state in drills.states(cache, datetime.now(UTC)):
        yield "novacron_drill_age_seconds", (state.name,), state.age_s
        if state.last is None:
            continue
        yield "novacron_drill_failed", (state.name,), state.last.verdict is DrillVerdict.FAILED
        for figure in ("detect", "recover", "loss"):
            value = getattr(state.last.measured, f"{figure}_s")
            if value is not None:
                yield f"novacron_drill_{figure}_seconds", (state.name,), value


def _hindered_networks(networks: Iterable[Body]) -> Iterator[Value]:
    hindered = [network for network in networks if network.get("reason_code")]
    yield from (("novacron_network_hindered", (network["name"], network["reason_code"]), 1) for network in hindered)


def _vms_and_nodes(vms: list[Body], nodes: Iterator[Body]) -> Iterator[Value]:
    states, count, vcpus, memory = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    projects = dict[str, list[int]]()
    available = unplaced = crashes = 0
    for vm in vms:
        spec, status, node = vm["spec"], vm["status"], vm["node"]
        states[status["state"]] += 1
        of_project = projects.setdefault(vm["project"], [0, 0, 0])
        of_project[0] += 1
        of_project[1] += spec.get("vcpus", 1)
        of_project[2] += spec.get("memory_mib", 256) << 20
        available += spec.get("ha", False)
        crashes += status.get("crashes", 0)
        if node is None:
            unplaced += 1
            continue
        count[node] += 1
        vcpus[node] += spec.get("vcpus", 1)
        memory[node] += spec.get("memory_mib", 256) << 20
    for project, has in projects.items():
        for name, value in zip(("vms", "vcpus", "memory_bytes"), has, strict=True):
            yield f"novacron_project_{name}", (project,), value
    for state, number in states.items():
        yield "novacron_vms", (state,), number
    yield "novacron_vms_highly_available", (), available
    yield "novacron_vms_unplaced", (), unplaced
    yield "novacron_vm_crashes", (), crashes
    for body in nodes:
        name, spec, status = body["name"], body["spec"], body["status"]
        inventory = status["inventory"] or {}
        yield "novacron_node_ready", (name, spec["site"]), status["ready"]
        yield "novacron_node_schedulable", (name,), not spec["cordoned"]
        yield "novacron_node_cpus", (name,), inventory.get("cpus", 0)
        yield "novacron_node_memory_bytes", (name,), inventory.get("memory_mib", 0) << 20
        yield "novacron_node_images", (name,), len(inventory.get("images", ()))
        yield "novacron_node_clock_skew_seconds", (name,), status.get("clock_skew_s", 0.0)
        for condition in status.get("conditions", ()):
            yield "novacron_node_condition", (name, condition["type"]), CONDITION_VALUES[condition["status"]]
        ends_at_s = status.get("certificate_ends_at_s", 0.0)
        yield "novacron_node_certificate_expiry_timestamp_seconds", (name,), ends_at_s
        yield "novacron_node_vms", (name,), count[name]
        yield "novacron_node_vcpus_allocated", (name,), vcpus[name]
        yield "novacron_node_memory_allocated_bytes", (name,), memory[name]
