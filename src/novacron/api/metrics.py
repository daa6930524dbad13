"""The route that Prometheus asks: ``/metrics``, with a token like all others; and what of the fleet the cache tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import starmap
from typing import Any

from litestar import Response, get

from novacron.api import scopes
from novacron.api.cache import Cache
from novacron.api.context import ApiRequest, services
from novacron.model.drain import DrainPhase
from novacron.telemetry.metrics import CONTENT_TYPE
from novacron.telemetry.values import Labels

Body = dict[str, Any]
Value = tuple[str, Labels, float]

PHASES = ("pending", "preparing", "transferring")
LINKS = (
    ("novacron_dwcp_rate_bytes_per_second", "rate_bytes_per_s", 1.0, sum),
    ("novacron_dwcp_streams", "streams", 1.0, sum),
    ("novacron_dwcp_round_trip_seconds", "rtt_ms", 1e-3, max),
    ("novacron_migration_remaining_bytes", "remaining_bytes", 1.0, sum),
    ("novacron_migration_disk_remaining_bytes", "disk_remaining_bytes", 1.0, sum),
)
"""Names, and the fields of a migration's progress that they are made of."""


@get(
    "/metrics",
    summary="What this server counts and measures, in Prometheus' text format",
    media_type="text/plain",
    opt=scopes.in_fleet(),
)
async def metrics(request: ApiRequest) -> Response[bytes]:
    return Response(await services(request).metrics.render(), media_type=CONTENT_TYPE)


def seen(cache: Cache) -> Iterator[Value]:
    """Yield what a cache tells of the fleet."""

    def bodies(kind: str) -> Iterator[Body]:
        return (entry.body for entry in cache.all(kind).values())

    def by(name: str, kind: str, of: Callable[[Body], str]) -> Iterator[Value]:
        return starmap(lambda label, count: (name, (label,), count), Counter(map(of, bodies(kind))).items())

    for kind in cache.kinds():
        yield "novacron_cache_objects", (kind,), len(cache.all(kind))
    yield from _migrations(bodies("migration"))
    yield from _vms_and_nodes(list(bodies("vm")), bodies("node"))
    for name, kind in (("volumes", "volume"), ("snapshots", "snapshot"), ("imports", "import"), ("exports", "export")):
        yield from by(f"novacron_{name}", kind, lambda body: str(body["phase"]))
    yield "novacron_volume_bytes", (), sum(body["size_mib"] << 20 for body in bodies("volume"))
    yield "novacron_drains_active", (), sum(body["phase"] != DrainPhase.ENDED for body in bodies("drain"))
    yield from by(
        "novacron_floating_addresses", "floating-address", lambda body: "no" if body["vm"] is None else "yes"
    )  # fmt: skip
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
        for link, found in links.items():
            yield name, link, together(each[field] for each in found) * factor


def _vms_and_nodes(vms: list[Body], nodes: Iterator[Body]) -> Iterator[Value]:
    states, count, vcpus, memory = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    available = unplaced = crashes = 0
    for vm in vms:
        spec, status, node = vm["spec"], vm["status"], vm["node"]
        states[status["state"]] += 1
        available += spec.get("ha", False)
        crashes += status.get("crashes", 0)
        if node is None:
            unplaced += 1
            continue
        count[node] += 1
        vcpus[node] += spec.get("vcpus", 1)
        memory[node] += spec.get("memory_mib", 256) << 20
    for state, number in states.items():
        yield "novacron_vms", (state,), number
    yield "novacron_vms_highly_available", (), available
    yield "novacron_vms_unplaced", (), unplaced
    yield "novacron_vm_crashes", (), crashes
    for body in nodes:
        name, spec, status = body["name"], body["spec"], body["status"]
        has = status["inventory"] or {}
        yield "novacron_node_ready", (name, spec["site"]), status["ready"]
        yield "novacron_node_schedulable", (name,), not spec["cordoned"]
        yield "novacron_node_cpus", (name,), has.get("cpus", 0)
        yield "novacron_node_memory_bytes", (name,), has.get("memory_mib", 0) << 20
        yield "novacron_node_images", (name,), len(has.get("images", ()))
        yield "novacron_node_clock_skew_seconds", (name,), status.get("clock_skew_s", 0.0)
        yield "novacron_node_vms", (name,), count[name]
        yield "novacron_node_vcpus_allocated", (name,), vcpus[name]
        yield "novacron_node_memory_allocated_bytes", (name,), memory[name]
