"""Which CPUs of a host VMs have for themselves, and where all others run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from novacron.agent.host.dedicated_cpus import (
    FILE,
    DedicatedCpus,
    TooFewCpus,
    cells_of,
    choose,
    choose_parts,
    cpu_list,
    place_threads,
)

CELLS = (frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7}))


@pytest.mark.parametrize(
    ("free", "count", "chosen"),
    [
        ({1, 2, 3, 4, 5}, 2, (5, 4)),
        ({1, 2, 3, 4, 5}, 3, (3, 2, 1)),
        ({1, 2, 3, 4, 5}, 4, (3, 2, 1, 5)),
        ({8, 9}, 2, (9, 8)),
        ({3}, 1, (3,)),
    ],
)
def test_a_vms_cpus_are_of_one_numa_node_where_one_has_enough(
    free: set[int], count: int, chosen: tuple[int, ...]
) -> None:
    assert choose(free, count, CELLS) == chosen


def test_each_numa_node_of_a_guest_is_on_one_of_the_host_where_that_has_room(tmp_path: Path) -> None:
    assert choose_parts({1, 2, 3, 5, 6, 7}, 4, 2, CELLS) == (3, 2, 7, 6)
    assert cells_of((3, 2, 7, 6), 2, CELLS) == (0, 1)
    assert cells_of((3, 2, 1, 7), 2, CELLS) == (0, None), "the second part is on both"
    assert cells_of((3, 2, 1, 0), 2, CELLS[:1]) == (None, None), "there is only one"
    assert cells_of((), 2, CELLS) == (None, None)


def directory(path: Path, *vms: str) -> Path:
    for vm in vms:
        (path / vm).mkdir()
    return path


def test_no_cpu_is_given_out_twice_and_one_is_left_for_all(tmp_path: Path) -> None:
    cpus = DedicatedCpus(directory(tmp_path, "vm-a", "vm-b", "vm-c"), range(4), ())
    cpus.take("vm-a", 2)
    cpus.take("vm-a", 2)
    assert cpus.of("vm-a") == (3, 2), "a VM that starts again keeps its own"
    with pytest.raises(TooFewCpus, match="1 CPUs left to dedicate to VMs, not 2"):
        cpus.take("vm-b", 2)
    cpus.take("vm-c", 1)
    assert cpus.of("vm-c") == (1,)
    cpus.leave("vm-a")
    cpus.take("vm-b", 2)
    assert (cpus.of("vm-a"), cpus.of("vm-b")) == ((), (3, 2))


def test_the_next_agent_knows_who_has_which_cpus_before_it_looks_at_vms(tmp_path: Path) -> None:
    DedicatedCpus(directory(tmp_path, "vm-a", "vm-b"), range(3), ()).take("vm-a", 1)
    (tmp_path / "vm-b" / FILE).write_text("{damaged")
    cpus = DedicatedCpus(tmp_path, range(3), ())
    assert cpus.of("vm-a") == (2,)
    cpus.take("vm-b", 1)
    assert cpus.of("vm-b") == (1,)
    cpus.leave("vm-a")
    assert not (tmp_path / "vm-a" / FILE).exists()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this host has one CPU")
def test_threads_of_others_are_kept_off_a_vms_cpus_until_it_leaves(tmp_path: Path) -> None:
    has = sorted(os.sched_getaffinity(0))
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    mine, other = (process.pid for process in processes)
    try:
        cpus = DedicatedCpus(directory(tmp_path, "vm-a", "vm-b"))
        cpus.runs("vm-b", other, [other])
        cpus.take("vm-a", 1)
        (own,) = cpus.of("vm-a")
        assert os.sched_getaffinity(other) == set(has) - {own}, "those that run make room"
        cpus.runs("vm-a", mine, [mine])
        assert os.sched_getaffinity(mine) == {own}
        place_threads(mine, {}, {own})
        cpus.leave("vm-a")
        assert os.sched_getaffinity(other) == set(has)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_lists_of_cpus_are_read_as_linux_writes_them() -> None:
    assert cpu_list("0-2,7\n") == {0, 1, 2, 7}
    assert cpu_list("\n") == frozenset()
