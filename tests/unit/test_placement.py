"""Which node a VM goes to, and why not another."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.model.constraints import AntiAffinityScope, Effect, Placement, Taint
from novacron.model.fit import capacity
from novacron.model.node import (
    Load,
)
from novacron.model.placement import Fleet, Member, Wish
from novacron.model.vm import VmSpec
from novacron.store.fleet import of_project
from tests.support.fleet import node, vm


def place_all(fleet: Fleet, specs: list[VmSpec]) -> list[str | None]:
    return [fleet.place(Wish(f"vm-{number}", spec)) for number, spec in enumerate(specs)]


def test_vms_fill_nodes_evenly_and_no_node_beyond_what_it_has() -> None:
    fleet = Fleet([node("a"), node("b", memory_mib=8704)], {})
    placements = place_all(fleet, [vm(memory_mib=1024) for _ in range(13)])
    assert Counter(placements) == {"a": 4, "b": 8, None: 1}
    assert placements[0] == "b", "the one with more room"


def test_overcommit_is_the_nodes_own() -> None:
    fleet = Fleet([node("a", memory_overcommit=2.0, vcpu_overcommit=2.0), node("b", vcpu_overcommit=1.0)], {})
    assert Counter(place_all(fleet, [vm(memory_mib=1024, vcpus=2) for _ in range(8)])) == {"a": 4, "b": 2, None: 2}


def test_labels_and_taints_decide_which_vms_may_come() -> None:
    nodes = [
        node("a", labels={"disk": "ssd"}),
        node("b", labels={"disk": "hdd"}, taints=(Taint("gpu"),)),
        node("c", taints=(Taint("old", Effect.AVOID),)),
    ]
    fleet = Fleet(nodes, {})
    assert fleet.choose(Wish("1", vm(labels={"disk": "ssd"}))) == "a"
    assert fleet.choose(Wish("1", vm(labels={"disk": "hdd"}))) is None
    assert fleet.choose(Wish("1", vm(labels={"disk": "hdd"}, tolerations=("gpu",)))) == "b"
    refused = {verdict.node: verdict.refusal for verdict in fleet.explain(Wish("1", vm(labels={"disk": "hdd"})))}
    assert refused["a"] == "node a does not have the label disk=hdd"
    assert refused["b"] == "node b has the taint gpu, which the VM does not tolerate"
    assert place_all(fleet, [vm(memory_mib=512) for _ in range(9)]) == ["a"] * 8 + ["c"], "avoided while there is room"


def test_placement_prefers_nodes_with_the_image_the_pages_or_the_space() -> None:
    assert Fleet([node("a"), node("b", image="other")], {}).choose(Wish("1", vm(image="other"))) == "b"
    assert Fleet([node("a"), node("b")], {}).choose(Wish("1", vm(), been=frozenset({"a"}))) == "a"
    assert Fleet([node("a", free=0.9), node("b")], {}).choose(Wish("1", vm())) == "a"
    lacks = Fleet([node("a"), node("b", image="other")], {})
    moves = Wish("1", vm(image="other"), images_come=False)
    assert "does not hold image other" in str(lacks.judge(moves, "a").refusal)


def test_a_group_stays_together_or_apart() -> None:
    nodes = [node("a", site="x"), node("b", site="x", zone="2"), node("c", site="y")]
    fleet = Fleet(nodes, {})
    first = fleet.place(Wish("1", vm(affinity="web")))
    assert fleet.place(Wish("2", vm(affinity="web"))) == first
    assert len(set(place_all(fleet, [vm(anti_affinity="db") for _ in range(3)]))) == 3
    assert "has a VM of its anti-affinity group db" in str(fleet.judge(Wish("9", vm(anti_affinity="db")), "a").refusal)
    sites = place_all(fleet, [vm(anti_affinity="dc", anti_affinity_scope=AntiAffinityScope.SITE) for _ in range(3)])
    assert None in sites and len(set(sites)) == 3
    zones = place_all(fleet, [vm(anti_affinity="rack", anti_affinity_scope=AntiAffinityScope.ZONE) for _ in range(3)])
    assert set(zones) == {"a", "b", "c"}


def test_a_group_can_leave_a_cordoned_node() -> None:
    spec = vm(affinity="web")
    members = [Member("1", "a", spec), Member("2", "a", spec)]
    fleet = Fleet([node("a"), node("b"), node("c")], {}, members)
    assert fleet.choose(Wish("1", spec, at="a")) is None
    draining = Fleet([node("a", cordoned=True), node("b"), node("c", memory_mib=8192)], {}, members)
    assert draining.place(Wish("1", spec, at="a")) == "c"
    assert draining.place(Wish("2", spec, at="a")) == "c", "and comes together again"


def test_a_vm_may_move_within_its_own_zone_though_its_group_is_apart_by_zones() -> None:
    spec = vm(anti_affinity="db", anti_affinity_scope=AntiAffinityScope.ZONE)
    fleet = Fleet([node("a"), node("b"), node("c", zone="2")], {}, [Member("1", "a", spec), Member("2", "c", spec)])
    assert fleet.choose(Wish("1", spec, at="a")) == "b"


def test_a_group_is_spread_over_sites_then_zones_then_nodes() -> None:
    nodes = [node(f"{site}{zone}{n}", site=site, zone=zone) for site in "xy" for zone in "12" for n in "ab"]
    placements = place_all(Fleet(nodes, {}), [vm(spread="web", memory_mib=128) for _ in range(8)])
    assert Counter(str(name)[0] for name in placements[:2]) == {"x": 1, "y": 1}
    assert Counter(str(name)[:2] for name in placements[:4]) == {"x1": 1, "x2": 1, "y1": 1, "y2": 1}
    assert len(set(placements)) == 8


def test_a_move_goes_to_a_suitable_node_other_than_the_present_one() -> None:
    fleet = Fleet([node("a"), node("b"), node("c")], {"c": Load(0, 3000)})
    wish = Wish("1", vm(), at="a", elsewhere={"b": "its volume is not there"})
    assert fleet.choose(wish) == "c"
    assert {v.node: v.refusal for v in fleet.explain(wish)} == {
        "a": "it is on node a already", "b": "its volume is not there", "c": None,
    }  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(512, 9000), st.integers(1, 8)), min_size=1, max_size=6),
    st.lists(
        st.tuples(st.sampled_from([64, 256, 1024]), st.integers(1, 4), st.sampled_from([None, "g", "h"])), max_size=40
    ),
)
def test_no_node_is_overfilled_and_the_fast_choice_equals_the_slow_choice(
    has: list[tuple[int, int]], requests: list[tuple[int, int, str | None]]
) -> None:
    nodes = [node(f"n{i}", memory_mib=memory, cpus=cpus, vcpu_overcommit=2) for i, (memory, cpus) in enumerate(has)]
    fleet = Fleet(nodes, {})
    for number, (memory_mib, vcpus, group) in enumerate(requests):
        wish = Wish(f"{number}", vm(memory_mib=memory_mib, vcpus=vcpus, anti_affinity=group))
        best = next((v for v in fleet.explain(wish) if v.refusal is None), None)
        chosen = fleet.place(wish)
        assert (chosen is None) == (best is None)
        if best is not None and chosen is not None and group is None:
            before = Fleet(nodes, {**fleet.loads, chosen: _less(fleet.loads[chosen], wish.spec)})
            assert before.judge(wish, chosen).score == pytest.approx(best.score)
    for each in nodes:
        memory_mib_max, vcpus_max = capacity(each)
        assert fleet.loads[each.name].memory_mib <= max(0, memory_mib_max)
        assert fleet.loads[each.name].vcpus <= vcpus_max


def _less(load: Load, spec: VmSpec) -> Load:
    return Load(load.vcpus - spec.vcpus, load.memory_mib - spec.memory_mib)


def test_a_placement_round_trips_through_its_encoding() -> None:
    spec = vm(labels={"a": "b"}, tolerations=("x",), affinity="g", anti_affinity_scope=AntiAffinityScope.SITE)
    assert msgspec.convert(msgspec.to_builtins(spec), VmSpec) == spec
    with pytest.raises(msgspec.ValidationError, match="labels"):
        msgspec.convert({"labels": {"Not A Label!": "x"}}, Placement)


def test_groups_of_the_same_name_in_other_projects_are_separate() -> None:
    apart = VmSpec(image="tiny", placement=Placement(anti_affinity="db", affinity="db"))
    ours, other = (of_project(apart, project).placement for project in ("ours", "theirs"))
    assert (ours.anti_affinity, other.affinity) == ("ours/db", "theirs/db")
    assert of_project(apart, "default") is apart
    plain = VmSpec(image="tiny")
    assert of_project(plain, "ours") is plain
