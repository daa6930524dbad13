"""What a process has counted and measured. Counting costs less than a microsecond: requests are counted, too.

``counter(name)``, ``gauge(name)`` and ``histogram(name)`` return the one of this process; names that are not declared
raise KeyError. Only the event loop's thread may count.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from novacron.telemetry.declared import BY_NAME, Family, MetricKind

CELLS_MAX = 5000
"""Different labels of one metric in one process; what has others is counted as ``OTHER``."""
OTHER = "other"
DROPPED = "novacron_metrics_dropped_labels_total"

Labels = tuple[str, ...]
Cells = dict[Labels, list[float]]
"""A counter's and a gauge's cell is one number; a histogram's how many were in each bucket (the last is beyond all),
and their sum."""
Read = Callable[[], Mapping[Labels, float]]


class Exemplar(NamedTuple):
    """Something that was measured in a trace: its id, the value, and when, in seconds since 1970."""

    trace: str
    value: float
    at_s: float


class _Values:
    kind: MetricKind

    def __init__(self, family: Family) -> None:
        self.family = family
        self.cells: Cells = {}
        self._empty = [0.0] * (len(family.buckets) + 2 if family.kind is MetricKind.HISTOGRAM else 1)
        if not family.labels:
            self.cells[()] = self._empty.copy()

    def cell(self, *labels: str) -> list[float]:
        """Return where these labels are counted."""
        cell = self.cells.get(labels)
        if cell is not None:
            return cell
        if len(labels) != len(self.family.labels):
            raise ValueError(f"{self.family.name} has the labels {self.family.labels}, got {labels}")
        if len(self.cells) >= CELLS_MAX and self.family.name != DROPPED:
            counter(DROPPED).add(self.family.name)
            labels = (OTHER,) * len(labels)
        return self.cells.setdefault(labels, self._empty.copy())


class Counter(_Values):
    kind = MetricKind.COUNTER

    def add(self, *labels: str, count: float = 1) -> None:
        self.cell(*labels)[0] += count


class Gauge(_Values):
    kind = MetricKind.GAUGE

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self.read: Read | None = None
        """Asked when somebody looks."""

    def set(self, value: float, *labels: str) -> None:
        self.cell(*labels)[0] = float(value)  # true is no number to the processes that read it

    def look(self) -> None:
        """Bring the cells up to date."""
        if self.read is not None:
            self.cells = {labels: [float(value)] for labels, value in self.read().items()}


class Histogram(_Values):
    kind = MetricKind.HISTOGRAM

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self.bounds = family.buckets
        self.exemplars: dict[int, dict[int, Exemplar]] = {}
        """By the cell's identity: cells are never let go of."""

    def observe(self, value: float, *labels: str, trace: str = "") -> None:
        """Count a value; ``trace``: the id of the trace in which it was measured, if that is recorded."""
        cell = self.cell(*labels)
        bucket = bisect.bisect_left(self.bounds, value)
        cell[bucket] += 1
        cell[-1] += value
        if trace:
            self.exemplify(cell, bucket, trace, value)

    def exemplify(self, cell: list[float], bucket: int, trace: str, value: float) -> None:
        """Remember the latest example of a cell's bucket."""
        self.exemplars.setdefault(id(cell), {})[bucket] = Exemplar(trace, value, time.time())

    def examples(self) -> dict[Labels, dict[int, Exemplar]]:
        """Return the latest examples, by labels and bucket."""
        return {
            labels: exemplars
            for labels, cell in self.cells.items()
            if (exemplars := self.exemplars.get(id(cell))) is not None
        }


V = TypeVar("V", bound=_Values)

_all: dict[str, _Values] = {}


def _of(type_: type[V], name: str) -> V:
    values = _all.get(name)
    if values is None:
        family = BY_NAME[name]
        if family.kind is not type_.kind:
            raise TypeError(f"{name} is a {family.kind}")
        values = _all[name] = type_(family)
    assert isinstance(values, type_)
    return values


def counter(name: str) -> Counter:
    return _of(Counter, name)


def gauge(name: str) -> Gauge:
    return _of(Gauge, name)


def histogram(name: str) -> Histogram:
    return _of(Histogram, name)


def begin(families: Iterable[Family]) -> None:
    """Have counters there before they count anything, as far as their labels are known: an increase from nothing is
    not seen."""
    for family in families:
        if family.kind is MetricKind.COUNTER and (not family.labels or family.known):
            for labels in family.known:
                counter(family.name).cell(*labels)
            counter(family.name)


def examples() -> dict[str, dict[Labels, dict[int, Exemplar]]]:
    """Return the latest examples of what this process has measured, by name."""
    return {
        name: exemplars
        for name, values in _all.items()
        if isinstance(values, Histogram) and (exemplars := values.examples())
    }


def counted() -> dict[str, Cells]:
    """Return all that this process has counted, by name."""
    for values in _all.values():
        if isinstance(values, Gauge):
            values.look()
    return {name: values.cells for name, values in _all.items()}
