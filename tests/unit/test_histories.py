"""What is wrong after a random history is found: a VM twice, one that is lost, and processes that are nobody's."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from lab.histories.history import History
from lab.histories.themes import THEMES
from lab.histories.verdict import Expectation, Process, wrong
from lab.histories.watch import RUNS_NS, running, twice, used


def vm(state: str = "running", power: str = "running", **more: Any) -> dict[str, Any]:
    status = {"state": state, "pid": 7, "reason": "", "reason_code": more.pop("code", "")}
    return {
        "id": "vm-1", "name": "web", "node": "host-a", "spec": {"power": power}, "status": status, "migration": None,
        "deleting": False, **more,
    }  # fmt: skip


HERE, THERE = Process("vm-1", "host-a", 7), Process("vm-1", "host-b", 8)
ALL = Expectation({"vm-1"})
FOLDERS_LOST = Expectation({"vm-1"}, folders_lost=True)


@pytest.mark.parametrize(
    ("vms", "processes", "expected", "says"),
    [
        ([vm()], [HERE], ALL, []),
        ([vm("stopped", "stopped")], [], ALL, []),
        ([vm("failed", code="DiskLost")], [], FOLDERS_LOST, []),
        ([], [], Expectation(()), []),
        ([vm()], [HERE, THERE], ALL, ["TWICE"]),
        ([vm("stopped", "stopped")], [HERE, THERE], ALL, ["TWICE"]),
        ([vm()], [THERE], ALL, ["TWICE"]),
        ([vm()], [Process("vm-1", "host-a", 9)], ALL, ["TWICE"]),
        ([vm()], [], ALL, ["LOST"]),
        ([], [], ALL, ["LOST"]),
        ([], [HERE], ALL, ["LOST", "ORPHAN"]),
        ([], [HERE], Expectation(()), ["ORPHAN"]),
        ([vm("stopped", "stopped")], [HERE], ALL, ["ORPHAN"]),
        ([vm("failed", code="DiskLost")], [HERE], FOLDERS_LOST, ["ORPHAN"]),
        ([vm("failed", code="DiskLost")], [], ALL, ["UNSETTLED"]),
        ([vm("failed", code="StepFailed")], [], FOLDERS_LOST, ["UNSETTLED"]),
        ([vm("unknown")], [HERE], ALL, ["UNSETTLED"]),
        ([vm("paused", "stopped")], [], ALL, ["UNSETTLED"]),
        ([vm(migration="m-1")], [HERE], ALL, ["UNSETTLED"]),
        ([vm(deleting=True)], [HERE], ALL, ["UNSETTLED"]),
        ([vm(unreconciled="later")], [HERE], ALL, ["UNSETTLED"]),
    ],
)
def test_what_is_wrong_at_rest_is_found(
    vms: list[dict[str, Any]], processes: list[Process], expected: Expectation, says: list[str]
) -> None:
    assert [text.partition(":")[0] for text in wrong(vms, processes, expected)] == says


def test_a_guest_that_runs_in_two_qemus_at_once_is_found_and_one_that_moves_is_not() -> None:
    looks = [
        {HERE: {1: 0, 2: 0}, THERE: {5: 0}},
        {HERE: {1: RUNS_NS, 2: 1}, THERE: {5: 5}},  # its memory goes there
        {HERE: {1: 2 * RUNS_NS, 2: 2}, THERE: {5: RUNS_NS + 5, 6: 7 * RUNS_NS}},  # it goes on there; a thread is new
        {HERE: {1: 2 * RUNS_NS + 1}, THERE: {5: 2 * RUNS_NS + 5}},
        {HERE: {1: 3 * RUNS_NS + 1}, THERE: {5: 3 * RUNS_NS + 5}},  # and here, too
        {HERE: {1: 4 * RUNS_NS + 1}, THERE: {5: 4 * RUNS_NS + 5}},
    ]
    ran = [running(before, now) for before, now in itertools.pairwise(looks)]
    assert ran == [{HERE}, {HERE, THERE}, {THERE}, {HERE, THERE}, {HERE, THERE}]
    assert [twice(*pair) for pair in itertools.pairwise(ran)] == [{}, {}, {}, {"vm-1": [HERE, THERE]}]


def test_only_the_threads_of_vcpus_count() -> None:
    def named(name: str, meanwhile: threading.Event, ready: threading.Event, ids: list[int]) -> None:
        ids.append(threading.get_native_id())
        Path(f"/proc/self/task/{ids[0]}/comm").write_text(name)
        ready.set()
        meanwhile.wait()

    over = threading.Event()
    started: list[tuple[threading.Event, list[int]]] = []
    try:
        for name in ("CPU 0/TCG", "CPU 1/KVM", "worker", "mig/dst/main", "IO mon_iothread"):
            started.append((threading.Event(), []))
            threading.Thread(target=named, args=(name, over, *started[-1])).start()
            assert started[-1][0].wait(30)
        vcpus = used(Process("vm-1", "host-a", os.getpid()))
    finally:
        over.set()
    assert set(vcpus) == {id for _, ids in started[:2] for id in ids} and all(ns > 0 for ns in vcpus.values())


def test_a_theme_names_acts_that_there_are() -> None:
    for has in THEMES.values():
        for act in (*has.acts, *has.without):
            assert callable(getattr(History, act, None)), act
