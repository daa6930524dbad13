"""What a server says to Prometheus: what its processes have counted, and what each of them sees of the whole."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from novacron.telemetry import values
from novacron.telemetry.declared import FAMILIES, Family, MetricKind
from novacron.telemetry.shared import Processes
from novacron.telemetry.values import Cells, Labels, counter, histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
ENDED, KINDS = ("completed", "failed", "aborted"), ("live", "cold", "warm")
FOLLOWED_MAX = 10_000
"""Migrations that are remembered until all about them is known."""

Body = Mapping[str, Any]
Examples = Mapping[str, Mapping[Labels, Mapping[int, values.Exemplar]]]
Seen = Iterable[tuple[str, Labels, float]]
"""Names, labels and values."""


class MigrationMetrics:
    """Counts what migrations, and DWCP under them, did since this process started. One process of a server counts."""

    def __init__(self) -> None:
        for kind, outcome in itertools.product(KINDS, ENDED):  # an increase from nothing is not seen
            counter("novacron_migrations_total").cell(kind, outcome)
        self._followed: dict[str, bool] = {}
        """Migrations whose end, or else whose downtime, is still to come: whether the end was seen."""

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
            histogram("novacron_migration_downtime_seconds").observe(body["progress"]["downtime_ms"] / 1e3)
            del self._followed[id]

    def _count(self, body: Body) -> None:
        progress = body["progress"]
        counter("novacron_migrations_total").add(body["kind"], body["phase"])
        counter("novacron_dwcp_stream_bytes_total").add(count=progress["raw_bytes"])
        counter("novacron_dwcp_wire_bytes_total").add(count=progress["wire_bytes"])
        for by, saved in progress["savings"].items():
            counter("novacron_dwcp_saved_bytes_total").add(by, count=saved)
        counter("novacron_dwcp_retransmits_total").add(count=progress["retransmits"])
        counter("novacron_dwcp_resumed_sessions_total").add(count=progress["resumed"])
        counter("novacron_dwcp_repaired_pages_total").add(count=progress["repaired_pages"])
        if body["phase"] == "completed":
            histogram("novacron_migration_duration_seconds").observe(progress["elapsed_s"], body["kind"])


class Metrics:
    """All of a server's. ``seen`` returns what this process sees of the whole."""

    def __init__(self, processes: Processes, seen: Callable[[], Seen]) -> None:
        self._processes, self._seen = processes, seen

    async def render(self, *, open_metrics: bool = False) -> bytes:
        """Return them in one of Prometheus' formats, which is written in a thread: of 2,000 nodes it takes a while."""
        families = self._processes.all()
        for name, labels, value in self._seen():
            families.setdefault(name, {})[labels] = [value]
        return await asyncio.to_thread(text, families, open_metrics=open_metrics)


def text(families: dict[str, Cells], *, open_metrics: bool = False) -> bytes:
    """Return what was counted in Prometheus' text format, or in OpenMetrics, which has exemplars."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(families, values.examples() if open_metrics else {}))
    return bytes((openmetrics.generate_latest if open_metrics else generate_latest)(registry))


class _Snapshot(Collector):
    """What was counted and seen at one moment."""

    def __init__(self, families: dict[str, Cells], examples: Examples) -> None:
        self._families, self._examples = families, examples

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not collect

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            if family.name in self._families:
                yield _rendered(family, self._families[family.name], self._examples.get(family.name, {}))


def _exemplar(exemplar: values.Exemplar | None) -> Exemplar | None:
    return None if exemplar is None else Exemplar({"trace_id": exemplar.trace}, exemplar.value, exemplar.at_s)


def _rendered(family: Family, cells: Cells, examples: Mapping[Labels, Mapping[int, values.Exemplar]]) -> Metric:
    match family.kind:
        case MetricKind.COUNTER:
            count = CounterMetricFamily(family.name, family.help, labels=family.labels)
            for labels, cell in cells.items():
                count.add_metric(labels, cell[0])
            return count
        case MetricKind.GAUGE:
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for labels, cell in cells.items():
                gauge.add_metric(labels, cell[0])
            return gauge
        case MetricKind.HISTOGRAM:
            shown = HistogramMetricFamily(family.name, family.help, labels=family.labels)
            bounds = [*(str(float(bound)) for bound in family.buckets), "+Inf"]
            for labels, cell in cells.items():
                exemplars = examples.get(labels, {})
                buckets: list[Any] = [
                    (bound, total, _exemplar(exemplars.get(place)))
                    for place, (bound, total) in enumerate(zip(bounds, accumulate(cell[:-1]), strict=True))
                ]
                shown.add_metric(labels, buckets, cell[-1])
            return shown
