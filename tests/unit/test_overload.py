"""Overload is foreseen by hour of the day, and few moves prevent it."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.prediction_replay import MHZ_A_PROCESSOR, WEEK, Replay, ReplaySize, staged
from novacron.model import overload
from novacron.model.constraints import Taint
from novacron.model.node import Load, Node
from novacron.model.overload import (
    CHOICES_MAX,
    HOURS,
    JUDGED_MAX,
    JUDGED_OF_VM_MAX,
    TARGETS_MAX,
    Ahead,
    HourlyUse,
    NodesAhead,
    VmAhead,
    ahead,
    expected,
    prevent,
)
from novacron.model.placement import Fleet, Wish
from novacron.model.rebalance import Decision, RebalanceBasis, RebalanceMode, Settings, VmLoad, is_worth, memory_refusal
from novacron.prediction.profiles import usual
from tests.support.fleet import node, vm

AUTO = Settings(mode=RebalanceMode.AUTO)
NODES = [node(name, cpus=8) for name in "abc"]
NIGHT, NOON = 2, 12


def at_noon(name: str, at: str, cpus: float, memory_mib: int = 256, **more: object) -> VmAhead:
    """A VM that uses a tenth of a processor, but for the hour after noon."""
    means = [cpus if hour == NOON else 0.1 for hour in range(HOURS)]
    load = VmLoad(Wish(name, vm(memory_mib=memory_mib), at), name, 0.1, **more)  # type: ignore[arg-type]
    return VmAhead(load, HourlyUse(0.1, means, [0.01] * HOURS))


CROWD = [at_noon(f"vm-{number}", "a", 3.0) for number in range(4)]


def stage(vms: list[VmAhead], nodes: list[Node]) -> tuple[Fleet, dict[str, HourlyUse]]:
    loads: dict[str, Load] = {}
    uses: dict[str, HourlyUse] = {}
    for each in vms:
        at = str(each.load.wish.at)
        had, spec, use = loads.get(at, Load()), each.load.wish.spec, each.use
        loads[at] = Load(had.vcpus + spec.vcpus, had.memory_mib + spec.memory_mib)
        before = uses.get(at, HourlyUse.unusual(0.0))
        uses[at] = HourlyUse(
            before.now + use.now,
            [a + b for a, b in zip(before.means, use.means, strict=True)],
            [a + b for a, b in zip(before.variances, use.variances, strict=True)],
        )
    return Fleet(nodes, loads), uses


def decided(
    vms: list[VmAhead], *, nodes: list[Node] = NODES, settings: Settings = AUTO, hour: int = NIGHT, under_way: int = 0
) -> Decision:
    fleet, uses = stage(vms, nodes)
    before = dict(fleet.loads)
    decision = prevent(NodesAhead(fleet, uses, settings, hour), vms, under_way)
    assert fleet.loads == before, "nothing is moved by deciding"
    return decision


def test_what_comes_at_noon_is_prevented_at_night_and_the_reason_is_said() -> None:
    decision = decided(CROWD)
    assert [move.source for move in decision.moves] == ["a", "a"], "one alone would not be enough"
    why = decision.moves[0].why
    assert "a would be overloaded for" in why and "most at 12:00 UTC" in why and "of 7.6 processors" in why
    assert decision.overload_minutes is not None and decision.overload_minutes > 59
    places = {move.vm: move.target for move in decision.moves}
    after = [at_noon(each.load.name, places.get(each.load.name, "a"), 3.0) for each in CROWD]
    settled = decided(after)
    assert not settled.moves and "no node will be overloaded" in settled.why, "and that is that"


def test_who_is_busy_at_different_times_stays_together() -> None:
    """Averages over the last hour, or peaks added up, would move one of them."""
    early = [at_noon(f"early-{number}", "a", 3.0) for number in range(2)]
    late = [
        VmAhead(each.load, HourlyUse(0.1, each.use.means[6:] + each.use.means[:6], each.use.variances))  # type: ignore[operator]
        for each in (at_noon(f"late-{number}", "a", 3.0) for number in range(2))
    ]
    assert not decided([*early, *late]).moves


def test_a_load_that_is_new_counts_now_and_fades() -> None:
    busy = VmAhead(CROWD[0].load, CROWD[0].use._replace(now=5.1))
    means = ahead(busy.use, NIGHT).means
    assert means[0] == pytest.approx(5.1) and means[1] == pytest.approx(0.1 + 5 * 0.8) and means[20] < 0.2
    assert ahead(CROWD[0].use, NIGHT).means[NOON - NIGHT] == pytest.approx(3.0)


def test_no_more_is_usual_of_a_vm_than_it_has_processors() -> None:
    use = CROWD[0].use.capped(1.5)
    assert use.means[NOON] == 1.5 and use.means[NOON + 1] == 0.1
    assert use.variances[NOON] == pytest.approx(0.01 / 4) and use.variances[NOON + 1] == 0.01
    assert CROWD[0].use.capped(3.0) is CROWD[0].use


def test_nothing_is_moved_without_a_good_reason() -> None:
    assert not decided(CROWD, under_way=4).moves and "under way already" in decided(CROWD, under_way=4).why
    for change in ({"moved_s": 3600.0}, {"movable": False}, {"move_s": 7 * 24 * 3600.0}):
        unable = [VmAhead(msgspec.structs.replace(each.load, **change), each.use) for each in CROWD]
        decision = decided(unable)
        assert not decision.moves and "no move would prevent enough" in decision.why, change
    alone = [at_noon("big", "a", 12.0)]
    assert not decided(alone).moves, "that would only overload another node"


def test_a_target_is_not_overloaded_by_what_comes() -> None:
    full = [at_noon("b-1", "b", 6.0), at_noon("c-1", "c", 6.0)]
    decision = decided([*CROWD, *full])
    assert not decision.moves and "most a" in decision.why


def test_memory_is_never_overfilled_whatever_placement_overcommits() -> None:
    nodes = [NODES[0], *(node(name, cpus=8, memory_mib=1512, memory_overcommit=4.0) for name in "bc")]
    crowd = [at_noon(f"vm-{number}", "a", 3.0, memory_mib=600) for number in range(4)]
    full = [at_noon(f"on-{name}", name, 0.1, memory_mib=500) for name in "bc"]
    assert not decided([*crowd, *full], nodes=nodes).moves
    assert decided([*crowd, full[0]], nodes=nodes).moves[0].target == "c"
    assert "never overcommits" in str(memory_refusal(nodes[1], 500, 600)) and memory_refusal(nodes[1], 400, 600) is None


def test_lost_and_cordoned_nodes_are_left_alone() -> None:
    lost = msgspec.structs.replace(NODES[1], status=msgspec.structs.replace(NODES[1].status, ready=False))
    nodes = [NODES[0], lost, node("c", cpus=8, cordoned=True)]
    assert not decided(CROWD, nodes=nodes).moves
    fleet, uses = stage(CROWD, [node("a", cpus=8, cordoned=True), *NODES[1:]])
    assert NodesAhead(fleet, uses, AUTO, NIGHT).asked() == []


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 9)), min_size=HOURS, max_size=HOURS), st.floats(0.1, 30))
def test_more_load_is_never_less_overload(hours: list[tuple[float, float]], capacity: float) -> None:
    load = Ahead([mean for mean, _ in hours], [variance for _, variance in hours])
    more = load.plus(Ahead([1.0] * HOURS, [0.0] * HOURS))
    before, after = expected(load, capacity), expected(more, capacity)
    assert 0.0 <= before.minutes <= after.minutes + 1e-9 <= 60 * HOURS + 1e-6
    assert 0.0 <= before.missing <= after.missing + 1e-9
    assert all(math.isfinite(load.upper(hour)) for hour in range(HOURS))


def test_a_profile_is_the_mean_of_days_and_what_differs_from_it() -> None:
    means = np.full((3, 14, 24), 2.0)
    means[0, :, 9] = 4.0
    means[1, 3:, 9], means[1, :, 9] = np.nan, np.nan
    means[2] = np.nan
    profiles = usual(means, means + 2.5)
    assert profiles.means[0, 9] == 4.0 and profiles.means[0, 8] == 2.0
    assert profiles.variances[0, 8] == pytest.approx(1.0), "a peak 2.5 above the mean is one deviation"
    assert profiles.means[1, 9] == 2.0, "an hour that is not known is like the others"
    assert np.isnan(profiles.means[2]).all()


def test_a_move_that_takes_longer_than_assumed_may_not_be_worth_it() -> None:
    assert is_worth(AUTO, 10.0, 0.0) and not is_worth(AUTO, 10.0, 3600.0)


def test_nodes_that_can_not_be_helped_keep_no_other_from_being_helped() -> None:
    stuck = [at_noon(f"huge-{name}", name, 30.0) for name in "defgh"]
    nodes = [*NODES, *(node(name, cpus=8) for name in "defgh")]
    assert {move.source for move in decided([*stuck, *CROWD], nodes=nodes).moves} == {"a"}


def test_nodes_that_take_no_vm_hide_none_that_does_however_much_room_they_have() -> None:
    tainted = [node(f"t-{number:02}", cpus=64, taints=(Taint("gpu"),)) for number in range(TARGETS_MAX + 3)]
    full = [node(f"f-{number:02}", cpus=64, memory_mib=600) for number in range(TARGETS_MAX + 3)]
    assert {move.target for move in decided(CROWD, nodes=[*tainted, *full, *NODES]).moves} == {"b", "c"}


def test_a_choice_judges_only_so_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []

    def refuse(_fleet: Fleet, _vm: VmLoad, target: str) -> str:
        judged.append(target)
        return "no"

    monkeypatch.setattr(overload, "refusal", refuse)
    crowd = [at_noon(f"vm-{number}", "a", 3.0) for number in range(8)]
    nodes = [node(f"n-{number:03}", cpus=8) for number in range(JUDGED_OF_VM_MAX + 50)]
    assert not decided(crowd, nodes=[*NODES, *nodes]).moves
    assert len(judged) == JUDGED_MAX and len(set(judged)) == JUDGED_OF_VM_MAX


def test_few_moves_are_chosen_at_once_whatever_is_permitted() -> None:
    crowd = [at_noon(f"vm-{number}", "a", 3.0) for number in range(30)]
    nodes = [NODES[0], *(node(f"n-{number:02}", cpus=8) for number in range(20))]
    assert len(decided(crowd, nodes=nodes, settings=msgspec.structs.replace(AUTO, concurrency=64)).moves) == CHOICES_MAX


def test_a_replayed_week_of_busy_noons_has_half_the_overload_of_averages_with_no_more_moves() -> None:
    """What ``script/bench prediction`` does with other people's VMs, with made-up ones."""
    random = np.random.default_rng(1)
    hours = np.arange(8 * WEEK) // 12 % 24
    busy = random.choice([9, 12, 15], 48)[:, None] == hours
    mhz = MHZ_A_PROCESSOR * np.where(busy, 1.6, 0.2) * random.uniform(0.8, 1.2, busy.shape)
    stage = staged(mhz, ReplaySize(nodes=6, vms=48, days=3, used=0.3))
    by_average = Replay(stage, Settings(basis=RebalanceBasis.AVERAGE, rounds=1)).run()
    by_forecast = Replay(stage, Settings()).run()
    nothing = Replay(stage, None).run()
    assert nothing.overload_minutes > 0 and nothing.moves == 0
    assert by_forecast.overload_minutes <= 0.5 * by_average.overload_minutes, (nothing, by_average, by_forecast)
    assert by_forecast.moves <= by_average.moves and by_forecast.overfilled == by_average.overfilled == 0
