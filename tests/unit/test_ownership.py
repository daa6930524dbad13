"""The rule of ownership: what a node promised at an epoch binds it until it is shown a later one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.model.ownership import Claim, Order, OrderKind, OrderVerdict, OwnershipRecord, may_run, obey, release

held_states = st.builds(OwnershipRecord, epoch=st.integers(0, 5), claim=st.sampled_from(Claim))
orders = st.builds(Order, kind=st.sampled_from(OrderKind), epoch=st.integers(0, 5))


@given(held_states, orders)
def test_memory_never_goes_back(held: OwnershipRecord, order: Order) -> None:
    after, verdict = obey(held, order)
    assert after.epoch >= held.epoch
    if order.epoch < held.epoch:
        assert (after, verdict) == (held, OrderVerdict.IGNORE)


@given(held_states, orders)
def test_the_same_order_twice_changes_nothing_more(held: OwnershipRecord, order: Order) -> None:
    once, first = obey(held, order)
    twice, second = obey(once, order)
    if first is OrderVerdict.DESTROY and order.kind is OrderKind.RECEIVE:
        return  # what was here had to go first; the repetition then prepares
    assert twice == once
    assert second in (first, OrderVerdict.HOLD, OrderVerdict.IGNORE)


@given(held_states, orders)
def test_a_promise_binds_at_its_epoch(held: OwnershipRecord, order: Order) -> None:
    after, verdict = obey(held, order)
    if held.claim in (Claim.RELEASED, Claim.INCOMING) and order.epoch == held.epoch:
        assert verdict is not OrderVerdict.RUN
        assert after == held


@given(held_states, orders)
def test_only_an_owner_runs(held: OwnershipRecord, order: Order) -> None:
    after, verdict = obey(held, order)
    if verdict is OrderVerdict.RUN:
        assert may_run(after)
        assert order.kind is OrderKind.OWN
    assert not may_run(OwnershipRecord(held.epoch, Claim.INCOMING))


def test_only_the_owner_at_this_epoch_can_release() -> None:
    assert release(OwnershipRecord(3, Claim.OWNER), 3) == OwnershipRecord(3, Claim.RELEASED)
    for held in (
        OwnershipRecord(2, Claim.OWNER),
        OwnershipRecord(3, Claim.NONE),
        OwnershipRecord(3, Claim.INCOMING),
        OwnershipRecord(4, Claim.OWNER),
    ):
        with pytest.raises(ValueError, match="cannot release"):
            release(held, 3)
