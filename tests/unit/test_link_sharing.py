"""How migrations share nodes and links."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.model import limits
from novacron.model.link_sharing import Demand, LinkSpec, Window, allot, crowding, link_id

BUDGETS = ("node a", "node b", "node c", "link x/y")
demands = st.lists(
    st.builds(
        Demand,
        st.uuids().map(str),
        st.lists(st.sampled_from(BUDGETS), unique=True, max_size=3).map(tuple),
        st.integers(1, 100),
        st.none() | st.integers(1, 10**9).map(float),
    ),
    max_size=8,
    unique_by=lambda d: d.id,
)
budgets = st.dictionaries(st.sampled_from(BUDGETS), st.integers(1, 10**9).map(float))


@given(demands, budgets)
def test_shares_are_max_min_fair(demands: list[Demand], budgets: dict[str, float]) -> None:
    rates = allot(demands, budgets)
    assert rates.keys() == {d.id for d in demands}
    used = {b: sum(rates[d.id] or 0.0 for d in demands if b in d.uses) for b in budgets}
    assert all(used[b] <= budgets[b] * 1.000001 for b in budgets), "no budget is overrun"
    for d in demands:
        rate = rates[d.id]
        bounded = d.limit is not None or any(b in budgets for b in d.uses)
        assert (rate is not None) == bounded
        if rate is None or (d.limit is not None and rate >= d.limit * 0.999999):
            continue
        # Nothing can have more without taking from one whose share, by weight, is no larger.
        full = [b for b in d.uses if b in budgets and used[b] >= budgets[b] * 0.999999]
        assert any(
            all((rates[o.id] or 0) / o.weight <= rate / d.weight * 1.00001 for o in demands if b in o.uses)
            for b in full
        )


def test_weights_divide_a_shared_link_and_unused_shares_go_to_the_others() -> None:
    link = {"link x/y": 12.0}
    first, two = Demand("1", ("link x/y",)), Demand("2", ("link x/y",), 2)
    assert allot([first, two], link) == {"1": 4.0, "2": 8.0}
    assert allot([first, Demand("2", ("link x/y",), 2, 3.0)], link) == {"1": 9.0, "2": 3.0}
    assert allot([first, Demand("3", ("node c",))], link) == {"1": 12.0, "3": None}


def test_another_migration_waits_when_every_share_would_be_too_small() -> None:
    enough = 2.0 * limits.RATE_BYTES_PER_S_USEFUL
    running = [Demand("1", ("link x/y", "node a"))]
    candidate = Demand("2", ("link x/y", "node b"))
    assert crowding(candidate, running, {"link x/y": enough}) is None
    assert crowding(candidate, running, {"link x/y": enough - 1}) == "link x/y"
    assert crowding(candidate, [], {"link x/y": 1.0}) is None, "alone, it begins however little there is"
    assert crowding(candidate, running, {"node b": 1.0}) is None
    assert crowding(candidate, running, {"link x/y": enough * 9, "node b": 1.0}) is None, "too little, but not shared"
    modest = [Demand("1", ("link x/y",), limit=1.0)]
    assert crowding(candidate, modest, {"link x/y": enough}) is None, "it wants no more"
    both = [Demand("1", ("node b", "link x/y"))]
    assert crowding(candidate, both, {"node b": enough * 9, "link x/y": enough - 1}) == "link x/y", "what is full"


@pytest.mark.parametrize(
    ("when", "rate"),
    [
        ("2026-11-25T12:00", 200_000),  # a Wednesday at noon
        ("2026-11-25T18:00", 1_000_000),
        ("2026-11-28T12:00", 1_000_000),  # Saturday
        ("2026-11-28T23:30", 500_000),
        ("2026-11-29T00:59", 500_000),  # the night that began on Saturday
        ("2026-11-29T23:30", 1_000_000),
    ],
)
def test_a_schedule_lowers_a_link(when: str, rate: int) -> None:
    spec = LinkSpec(
        1_000_000,
        (
            Window("08:00", "18:00", 200_000, (1, 2, 3, 4, 5)),
            Window("09:00", "17:00", 2_000_000),
            Window("23:00", "01:00", 500_000, (6,)),
        ),
    )
    assert spec.rate_at(datetime.fromisoformat(when).replace(tzinfo=UTC)) == rate


def test_a_link_is_the_same_in_both_directions() -> None:
    assert link_id("b", "a") == link_id("a", "b") == "a/b"
