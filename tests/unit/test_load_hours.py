"""Reports of load become hours: of a node only if it was seen all along, and however fast somebody reports."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from novacron.model.load_hours import (
    APART_S_MIN,
    HOUR_S,
    HOURS_KEPT,
    PERCENT_MAX,
    SAMPLES_OF_HOUR_MIN,
    LoadHours,
)

BEGAN = 500_000 * HOUR_S


def reported(loads: list[float], every_s: float = 30.0) -> LoadHours:
    hours = LoadHours()
    for number, cpus in enumerate(loads):
        hours.take("a", [("web", cpus), ("db", 1.0)], BEGAN + number * every_s)
    return hours


def test_an_hours_peak_mean_last_and_second_are_known_when_it_is_over() -> None:
    loads = [1.0] * 118 + [5.0, 3.0]
    hours = reported(loads)
    assert hours.finished(BEGAN + HOUR_S - 1) == ([], []), "it is not over"
    nodes, vms = hours.finished(BEGAN + HOUR_S)
    (node,) = nodes
    assert (node.node, node.hour_s, node.peak, node.second, node.end) == ("a", BEGAN, 6.0, 4.0, 4.0)
    assert node.mean == (118 * 2 + 6 + 4) / 120 and node.quarter == (28 * 2 + 6 + 4) / 30
    assert {vm.vm: (vm.peak_percent, vm.mean_percent) for vm in vms} == {"web": (500, 105), "db": (100, 100)}
    assert hours.finished(BEGAN + HOUR_S) == ([], []), "it is forgotten"


def test_an_hour_with_gaps_is_not_known_of_a_node_but_is_of_its_vms() -> None:
    for loads in ([1.0] * (SAMPLES_OF_HOUR_MIN - 1), [1.0] * 85):  # too few; and none in the last quarter
        nodes, vms = reported(loads).finished(BEGAN + HOUR_S)
        assert not nodes and [vm.peak_percent for vm in vms] == [100, 100]


def test_a_node_that_reports_too_often_counts_no_more() -> None:
    hours = reported([1.0] * 36_000, every_s=0.1)
    assert hours.dropped >= 36_000 - HOUR_S / APART_S_MIN
    assert len(hours.finished(BEGAN + HOUR_S).nodes) == 1


def test_what_could_not_be_stored_for_hours_is_forgotten() -> None:
    hours = reported([1.0] * 120)
    assert hours.finished(BEGAN + (HOURS_KEPT + 2) * HOUR_S) == ([], [])


@given(st.lists(st.floats(), min_size=1, max_size=20))
def test_whatever_a_node_says_can_be_stored(loads: list[float]) -> None:
    hours = LoadHours()
    hours.take("a", [(f"vm-{number}", cpus) for number, cpus in enumerate(loads)], float(BEGAN))
    _, vms = hours.finished(BEGAN + HOUR_S)
    assert len(vms) == sum(math.isfinite(cpus) for cpus in loads)
    assert all(0 <= vm.mean_percent <= vm.peak_percent <= PERCENT_MAX for vm in vms)
