"""The metrics of a server, declared in one place: names, units, labels, what they mean (Prometheus' naming rules).

Every server process sees every migration in the change feed and counts it, so of several servers one is asked, or the
largest answer taken; what ended while a process was away is not counted by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4"
ENDED = ("completed", "failed", "aborted")
FOLLOWED_MAX = 10_000
"""Migrations that are remembered until all about them is known."""
DURATIONS_S = (0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
DOWNTIMES_S = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)

Body = Mapping[str, Any]


class MigrationMetrics:
    """What migrations, and DWCP under them, did since this process started. ``active`` returns those under way."""

    def __init__(self, registry: CollectorRegistry, active: Callable[[], Iterable[Body]]) -> None:
        self._followed: dict[str, bool] = {}
        """Migrations whose end, or else whose downtime, is still to come: whether the end was seen."""
        self._ended = Counter(
            "novacron_migrations", "Migrations that have ended.", ["kind", "outcome"], registry=registry
        )
        self._duration = Histogram(
            "novacron_migration_duration_seconds", "From the start of a migration that completed to its end.",
            ["kind"], buckets=DURATIONS_S, registry=registry,
        )  # fmt: skip
        self._downtime = Histogram(
            "novacron_migration_downtime_seconds", "How long the guest stood still, as the server saw it.",
            buckets=DOWNTIMES_S, registry=registry,
        )  # fmt: skip
        self._stream = Counter(
            "novacron_dwcp_stream_bytes", "What QEMU gave to DWCP in migrations that have ended.", registry=registry
        )
        self._wire = Counter(
            "novacron_dwcp_wire_bytes", "What DWCP put on links for it, before TLS and TCP headers.", registry=registry
        )
        self._saved = Counter(
            "novacron_dwcp_saved_bytes",
            "What did not have to be sent as it is: zeros, pages known from this session, the image, a sibling, a"
            " checkpoint, differences, and what compression took away.",
            ["by"], registry=registry,
        )  # fmt: skip
        self._retransmits = Counter(
            "novacron_dwcp_retransmits", "TCP segments that were sent again.", registry=registry
        )
        self._resumed = Counter(
            "novacron_dwcp_resumed_sessions", "How often a session went on after all its connections were lost.",
            registry=registry,
        )  # fmt: skip
        self._repaired = Counter(
            "novacron_dwcp_repaired_pages", "Pages that were damaged in a target's store, and sent.", registry=registry
        )
        registry.register(_Active(active))

    def observe(self, id: str, body: Body | None) -> None:
        """Take the present state of one migration; None if it was deleted."""
        if body is None:
            self._followed.pop(id, None)
            return
        ended = body["phase"] in ENDED
        if id not in self._followed:
            if ended:
                return  # it was over before this process looked
            if len(self._followed) >= FOLLOWED_MAX:
                del self._followed[next(iter(self._followed))]
            self._followed[id] = False
        if ended and not self._followed[id]:
            self._followed[id] = True
            self._count(body)
        if ended and (body["phase"] != "completed" or body["kind"] != "live"):
            del self._followed[id]
        elif ended and body["progress"]["downtime_ms"] is not None:
            self._downtime.observe(body["progress"]["downtime_ms"] / 1e3)
            del self._followed[id]

    def _count(self, body: Body) -> None:
        progress = body["progress"]
        self._ended.labels(body["kind"], body["phase"]).inc()
        self._stream.inc(progress["raw_bytes"])
        self._wire.inc(progress["wire_bytes"])
        for by, saved in progress["savings"].items():
            self._saved.labels(by).inc(saved)
        self._retransmits.inc(progress["retransmits"])
        self._resumed.inc(progress["resumed"])
        self._repaired.inc(progress["repaired_pages"])
        if body["phase"] == "completed":
            self._duration.labels(body["kind"]).observe(progress["elapsed_s"])


class _Active(Collector):
    """Migrations under way, looked at when somebody asks, by the pair of nodes between which they are."""

    GAUGES = (
        ("novacron_dwcp_rate_bytes_per_second", "What DWCP puts on a link now.", "rate_bytes_per_s", 1.0, sum),
        ("novacron_dwcp_streams", "Connections that carry migrations now.", "streams", 1.0, sum),
        ("novacron_dwcp_round_trip_seconds", "Round trip as TCP sees it, queues included.", "rtt_ms", 1e-3, max),
        ("novacron_migration_remaining_bytes", "Memory that has not gone over yet.", "remaining_bytes", 1.0, sum),
        ("novacron_migration_disk_remaining_bytes", "Disk not mirrored yet.", "disk_remaining_bytes", 1.0, sum),
    )  # fmt: skip

    def __init__(self, active: Callable[[], Iterable[Body]]) -> None:
        self._active = active

    def collect(self) -> Iterable[Metric]:
        phases: dict[str, int] = dict.fromkeys(("pending", "preparing", "transferring"), 0)
        links: dict[tuple[str, str], list[Body]] = {}
        for body in self._active():
            if body["phase"] in phases:
                phases[body["phase"]] += 1
                if body["phase"] == "transferring":
                    links.setdefault((body["source"], body["target"]), []).append(body["progress"])
        count = GaugeMetricFamily("novacron_migrations_active", "Migrations under way.", labels=["phase"])
        for phase, number in phases.items():
            count.add_metric([phase], number)
        yield count
        for name, help, field, factor, together in self.GAUGES:
            gauge = GaugeMetricFamily(name, help, labels=["source", "target"])
            for link, found in links.items():
                gauge.add_metric(list(link), together(each[field] for each in found) * factor)
            yield gauge


class Metrics:
    """All of a server's. ``migrations`` returns every migration that the process knows of, ``lag_s`` for how many
    seconds it has not had everything that was written."""

    def __init__(self, migrations: Callable[[], Iterable[Body]], lag_s: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        lag = Gauge(
            "novacron_feed_lag_seconds",
            "For how long this process has not had everything that was written; its reads are as old.",
            registry=self._registry,
        )
        lag.set_function(lag_s)
        self.migrations = MigrationMetrics(self._registry, migrations)

    def render(self) -> bytes:
        """Return them in Prometheus' text format."""
        return bytes(generate_latest(self._registry))
