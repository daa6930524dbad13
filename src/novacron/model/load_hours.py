"""What nodes report of load, summed up by hour (UTC) until the hour is over and can be stored. Pure.

A node's load is how many processors its VMs use together. Agents report it each 30 s, and say nothing while no VM runs.
Memory in use, disks and links are not reported: they are in the agents' metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

HOUR_S = 3600
PERCENT_MAX = 32_767
"""The most that is stored of a VM's load: 327 processors."""
SAMPLES_OF_HOUR_MIN = 60
"""An hour of a node with fewer is not known: its peak may have been in a gap."""
APART_S_MIN = 15.0
"""A report that comes sooner after the one before does not count, however fast a node reports."""
QUARTER_S = 900
VMS_MAX = 500_000
HOURS_KEPT = 3
"""Hours that wait to be stored, while the database is away; older ones are lost."""


class NodeHour(NamedTuple):
    """A node's hour, in processors; all but ``hour_s`` as in ``prediction.load.Hours``."""

    node: str
    hour_s: int
    """When it began, in seconds since 1970."""
    peak: float
    mean: float
    end: float
    quarter: float
    second: float


class VmHour(NamedTuple):
    """A VM's hour, in percent of one processor."""

    vm: str
    hour_s: int
    peak_percent: int
    mean_percent: int


class PastHour(msgspec.Struct, frozen=True):
    """What a VM used in an hour, or the VMs of a node together."""

    hour: datetime
    """When it began."""
    cpu_peak: float
    """Processors that were used in the busiest half minute."""
    cpu_mean: float
    """Processors that were used on average."""


class FinishedHours(NamedTuple):
    nodes: list[NodeHour]
    vms: list[VmHour]


class _OpenHour:
    """What was reported within one hour."""

    def __init__(self) -> None:
        self.nodes: dict[str, list[tuple[float, float]]] = {}
        self.vms: dict[str, tuple[float, float, int]] = {}
        """Of each VM: peak, sum and count."""


class LoadHours:
    """Sums up. ``take`` is called for each report, ``finished`` once an hour."""

    def __init__(self) -> None:
        self._hours: dict[int, _OpenHour] = {}
        self.dropped = 0
        """Reports that did not count: too soon, or of too many VMs."""

    def take(self, node: str, used: Sequence[tuple[str, float]], now_s: float) -> None:
        """Count how many processors each VM of a node has used. ``now_s``: seconds since 1970."""
        hour = self._hours.setdefault(int(now_s) // HOUR_S * HOUR_S, _OpenHour())
        samples = hour.nodes.setdefault(node, [])
        if samples and now_s - samples[-1][0] < APART_S_MIN:
            self.dropped += 1
            return
        known = [(vm, min(max(cpus, 0.0), PERCENT_MAX / 100)) for vm, cpus in used if math.isfinite(cpus)]
        samples.append((now_s, math.fsum(cpus for _, cpus in known)))
        for vm, cpus in known:
            peak, total, count = hour.vms.get(vm, (0.0, 0.0, 0))
            if count or len(hour.vms) < VMS_MAX:
                hour.vms[vm] = (max(peak, cpus), total + cpus, count + 1)
            else:
                self.dropped += 1

    def finished(self, now_s: float) -> FinishedHours:
        """Return what is known of the hours that are over, and forget it. Too old ones are only forgotten."""
        this_hour = int(now_s) // HOUR_S * HOUR_S
        nodes: list[NodeHour] = []
        vms: list[VmHour] = []
        for start_s in sorted(start_s for start_s in self._hours if start_s < this_hour):
            hour = self._hours.pop(start_s)
            if start_s < this_hour - HOURS_KEPT * HOUR_S:
                continue
            nodes += [
                summary for name, samples in hour.nodes.items()
                if (summary := summarised(name, start_s, samples)) is not None
            ]  # fmt: skip
            vms += [
                VmHour(vm, start_s, math.ceil(100 * peak), round(100 * total / count))
                for vm, (peak, total, count) in hour.vms.items()
            ]
        return FinishedHours(nodes, vms)


def summarised(node: str, hour_s: int, samples: Sequence[tuple[float, float]]) -> NodeHour | None:
    """Return what samples (time, processors) say of an hour; None if they are few, or none is of its last quarter."""
    last = [value for at_s, value in samples if at_s >= hour_s + HOUR_S - QUARTER_S]
    if len(samples) < SAMPLES_OF_HOUR_MIN or not last:
        return None
    values = [value for _, value in samples]
    second, peak = sorted(values)[-2:]
    return NodeHour(
        node, hour_s, peak, math.fsum(values) / len(values), values[-1], math.fsum(last) / len(last), second
    )  # fmt: skip


class LoadHistoryAge(msgspec.Struct, frozen=True):
    """For how many days what is kept. Scores are kept for ever."""

    node_days: int = 60
    vm_days: int = 60
    node_forecast_days: int = 15
    vm_forecast_days: int = 22
    capacity_days: int = 180


KEPT = LoadHistoryAge()
