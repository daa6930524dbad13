"""Moves that were refused rest, longer each time, and only so many are remembered."""

from __future__ import annotations

from novacron.model.placement import Fleet, Wish
from novacron.model.rebalance import VmLoad, refusal
from novacron.model.refused_moves import MOVES_MAX, REST_S_MAX, TARGETS_OF_VM_MAX, PlannedMove, RefusedMoves
from tests.support.fleet import node, vm

LOAD = VmLoad(Wish("vm-1", vm(memory_mib=256), "a"), "web", 1.0)
HOUR_S = 3600.0


def rests(refused: RefusedMoves, target: str, now_s: float) -> bool:
    return target in refused.without([LOAD], now_s)[0].barred


def test_a_refused_move_rests_twice_as_long_each_time_up_to_a_limit() -> None:
    refused, now_s, lengths = RefusedMoves(), 0.0, list[float]()
    for rest_s in (600.0, 1200.0, 2400.0, 4800.0, 9600.0, 19200.0, 38400.0, REST_S_MAX):
        refused.refuse(PlannedMove("vm-1", "web", "b"), "it is full", now_s)
        assert rests(refused, "b", now_s + rest_s - 1) and not rests(refused, "c", now_s)
        assert not rests(refused, "b", now_s + rest_s)
        now_s += rest_s
        lengths.append(rest_s)
    assert lengths[-1] == 12 * HOUR_S
    assert refused.without([LOAD], now_s + 25 * HOUR_S) == [LOAD]
    refused.refuse(PlannedMove("vm-1", "web", "b"), "it is full", now_s)
    assert not rests(refused, "b", now_s + 600), "after a day without a refusal it begins anew"


def test_what_is_refused_is_no_target_and_is_said() -> None:
    refused, fleet = RefusedMoves(), Fleet([node("a"), node("b"), node("c")], {})
    refused.refuse(PlannedMove("vm-1", "web", "b"), "it would not converge", 0.0)
    (load,) = refused.without([LOAD], 1.0)
    assert "was refused" in str(refusal(fleet, load, "b")) and refusal(fleet, load, "c") is None
    assert refused.words(1.0) == "; refused: web to b (it would not converge)" and refused.words(601.0) == ""


def test_a_vm_that_is_refused_everywhere_rests_itself_until_it_moves() -> None:
    refused = RefusedMoves()
    for number in range(TARGETS_OF_VM_MAX):
        assert refused.without([LOAD], 0.0)[0].movable
        refused.refuse(PlannedMove("vm-1", "web", f"node-{number}"), "no", 0.0)
    assert not refused.without([LOAD], 0.0)[0].movable
    refused.forget("vm-1")
    assert refused.without([LOAD], 0.0) == [LOAD]


def test_only_so_many_are_remembered_and_few_are_named() -> None:
    refused = RefusedMoves()
    for number in range(MOVES_MAX + 5):
        refused.refuse(PlannedMove(f"vm-{number}", "web", "b"), "no" * 1000, 0.0)
    words = refused.words(1.0)
    assert f"and {MOVES_MAX - 3} more" in words and len(words) < 1000
