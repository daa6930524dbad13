"""Which moves are worth it, and which are not."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from bench.fleet_load import simulate
from lab.vm_loads import uses_of
from novacron.agent.host.loads import Loads
from novacron.model.devices import HugePages
from novacron.model.drain import estimate_s
from novacron.model.node import Load, Node
from novacron.model.placement import Fleet, Wish
from novacron.model.rebalance import (
    Decision,
    RebalanceMode,
    Settings,
    Since,
    VmLoad,
    decide,
    deviation,
    refusal,
    smoothed,
)
from tests.support.fleet import node, vm

AUTO = Settings(mode=RebalanceMode.AUTO, rounds=2)
NODES = [node("a", cpus=8), node("b", cpus=8), node("c", cpus=8)]


def fleet(vms: list[VmLoad], nodes: list[Node] = NODES) -> Fleet:
    loads: dict[str, Load] = {}
    for each in vms:
        had = loads.get(str(each.wish.at), Load())
        loads[str(each.wish.at)] = had.changed(each.wish.spec, 1)
    return Fleet(nodes, loads)


def running(name: str, at: str, cpus: float, **more: object) -> VmLoad:
    return VmLoad(Wish(name, vm(memory_mib=256), at), name, cpus, **more)  # type: ignore[arg-type]


def make_decision(
    vms: list[VmLoad], *, rounds: int = 5, under_way: int = 0, settings: Settings = AUTO, nodes: list[Node] = NODES
) -> Decision:
    return decide(fleet(vms, nodes), uses_of(vms), vms, settings, Since(rounds, under_way))


CROWD = [running(f"vm-{number}", "a", 1.5) for number in range(4)]


def test_an_imbalance_that_lasts_is_evened_out_and_each_move_says_why() -> None:
    assert not make_decision(CROWD, rounds=0).moves
    first = make_decision(CROWD, rounds=0)
    assert first.rounds == 1 and "for 1 rounds" in first.why
    decision = make_decision(CROWD, rounds=1)
    assert {move.target for move in decision.moves} == {"b", "c"} and all(move.source == "a" for move in decision.moves)
    assert "a is loaded by" in decision.moves[0].why and decision.imbalance > 0.04
    after = [running(each.name, {m.vm: m.target for m in decision.moves}.get(each.name, "a"), 1.5) for each in CROWD]
    assert not make_decision(after).moves, "and that is that"


def test_nothing_is_moved_without_a_good_reason() -> None:
    even = [running(name, name, 2.0) for name in "abc"]
    assert make_decision(even).rounds == 0 and "even enough" in make_decision(even).why
    assert not make_decision([running("big", "a", 6.0)]).moves, "that would only make another node the most loaded one"
    assert "already" in make_decision(CROWD, under_way=4).why
    assert len(make_decision(CROWD, under_way=3).moves) == 1
    assert not make_decision([msgspec.structs.replace(each, moved_s=3600.0) for each in CROWD]).moves, (
        "they were moved lately"
    )
    assert not make_decision([msgspec.structs.replace(each, movable=False) for each in CROWD]).moves
    slow = [msgspec.structs.replace(each, move_s=3600.0) for each in CROWD]
    assert "no move would be worth its cost" in make_decision(slow).why


def test_a_lost_node_stops_no_moves_between_the_others() -> None:
    lost = msgspec.structs.replace(NODES[2], status=msgspec.structs.replace(NODES[2].status, ready=False))
    on_lost = running("on-lost", "c", 6.0)
    decision = make_decision([*CROWD, on_lost], nodes=[*NODES[:2], lost])
    assert {(move.source, move.target) for move in decision.moves} == {("a", "b")}
    assert "lost nodes left out: 1" in decision.why
    even = [running(name, name, 2.0) for name in "ab"]
    assert not make_decision([*even, on_lost], nodes=[*NODES[:2], lost]).moves


def test_nothing_is_moved_to_a_node_that_is_cordoned_or_full() -> None:
    cordoned = [NODES[0], node("b", cpus=8, cordoned=True), node("c", cpus=8)]
    assert {m.target for m in make_decision(CROWD, nodes=cordoned).moves} == {"c"}
    small = [NODES[0], node("b", cpus=8, memory_mib=700), node("c", cpus=8, memory_mib=700)]
    assert not make_decision(CROWD, nodes=small).moves


def test_memory_in_huge_pages_loads_no_node_and_needs_no_other_memory() -> None:
    """It was set aside, used or not; only other VMs of huge pages could have it."""
    nodes = [node(name, cpus=8, memory_mib=3072, huge_2m_mib=2048) for name in "abc"]

    def huge(name: str, at: str, memory_mib: int) -> VmLoad:
        return VmLoad(Wish(name, vm(memory_mib=memory_mib, hugepages=HugePages.SIZE_2M), at), name, 0.1)

    one_sided = [huge("a-1", "a", 1024), huge("a-2", "a", 1024)]
    assert make_decision(one_sided, nodes=nodes).imbalance < 0.02, "their memory is no load"
    ordinary = [VmLoad(Wish(each.name, vm(memory_mib=256), "a"), each.name, 0.1) for each in one_sided]
    assert make_decision(ordinary, nodes=nodes).imbalance > 0.1

    busy = msgspec.structs.replace(huge("busy", "a", 1536), cpus=6.0)
    now = fleet([*one_sided, VmLoad(Wish("b-1", vm(memory_mib=512), "b"), "b-1", 0.1)], nodes)
    assert refusal(now, busy, "b") is None, "ordinary memory has no room for it, and needs none"
    now = fleet([huge("b-2", "b", 1024)], nodes)
    assert "huge pages of 2M free, 1536 MiB needed" in str(refusal(now, busy, "b"))
    plain = VmLoad(Wish("plain", vm(memory_mib=1024), "a"), "plain", 6.0)
    assert "has 512 MiB of memory for VMs, 0 MiB of which are given" in str(refusal(now, plain, "b"))


def test_members_of_an_anti_affinity_group_stay_apart() -> None:
    apart = [VmLoad(Wish(f"vm-{n}", vm(anti_affinity="g"), "abc"[n]), f"vm-{n}", [6.0, 0.1, 0.1][n]) for n in range(3)]
    fleet_now = Fleet(NODES, {})
    for each in apart:
        fleet_now.take(each.wish._replace(at=None), str(each.wish.at))
    assert not decide(fleet_now, uses_of(apart), apart, AUTO, Since(5, 0)).moves


def test_a_short_peak_changes_the_average_little() -> None:
    assert smoothed(None, 2.0, 30) == 2.0
    assert 0.0 < smoothed(0.0, 4.0, 30) < 0.05
    assert smoothed(0.0, 4.0, 10 * 3600) == pytest.approx(4.0, abs=0.01)
    assert deviation({}) == 0.0 and deviation({"a": 1.0, "b": 3.0}) == 1.0


def test_a_simulated_day_of_a_small_fleet_is_balanced_with_few_moves() -> None:
    day = simulate(3, 20, 600)
    assert day.deviation_with < 0.75 * day.deviation_without
    assert day.moves_of_one_max <= 2 and day.back_and_forth == 0


def test_a_drain_estimates_its_remaining_time() -> None:
    assert estimate_s(0, 100, 10) is None
    assert estimate_s(100, 300, 10) == 30.0
    assert estimate_s(100, 0, 10) == 0.0


def test_the_load_of_a_process_is_measured() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        loads = Loads()
        assert loads.look([("vm-1", busy.pid), ("vm-2", os.getpid()), ("gone", 2**22)]) == []
        os.wait3(os.WNOHANG)
        busy_s = 0.0
        while busy_s == 0.0:
            loads_by_vm = dict(loads.look([("vm-1", busy.pid)]))
            busy_s = loads_by_vm["vm-1"]
        assert set(loads_by_vm) == {"vm-1"}
    finally:
        busy.kill()
        busy.wait()
