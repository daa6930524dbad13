"""What a node remembers of a VM against what the database says, which may be older."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.model.ownership import Claim, Order, OrderKind, OrderVerdict, OwnershipRecord, obey
from novacron.model.unreconciled import Contradiction, Recorded, contradiction, forgotten_arrival

NONE, OWNER, RELEASED, INCOMING = Claim.NONE, Claim.OWNER, Claim.RELEASED, Claim.INCOMING
UNKNOWN, LATER, GONE = Contradiction.UNKNOWN, Contradiction.LATER, Contradiction.GONE


@pytest.mark.parametrize(
    ("claim", "epoch", "recorded", "expected"),
    [
        (OWNER, 1, None, UNKNOWN),
        (NONE, 9, None, None),
        (OWNER, 5, Recorded(None, 4, deleted=True), UNKNOWN),
        (OWNER, 4, Recorded(None, 5, deleted=True), None),
        (OWNER, 5, Recorded(None, 5, deleted=True), UNKNOWN),
        (RELEASED, 5, Recorded(None, 5, deleted=True), UNKNOWN),
        (INCOMING, 5, Recorded(None, 5, deleted=True), UNKNOWN),
        (NONE, 5, Recorded(None, 5, deleted=True), None),
        (OWNER, 4, Recorded("a", 3), LATER),
        (OWNER, 4, Recorded("b", 3), LATER),
        (INCOMING, 4, Recorded("b", 3), LATER),
        (NONE, 4, Recorded("a", 3), GONE),
        (OWNER, 3, Recorded("b", 3), LATER),
        (OWNER, 3, Recorded("a", 3), None),
        (OWNER, 2, Recorded("b", 3), None),
        (NONE, 3, Recorded("a", 3), GONE),
        (NONE, 3, Recorded("a", 3, deleting=True), None),
        (NONE, 3, Recorded("b", 3), None),
        (RELEASED, 3, Recorded("a", 3), GONE),
        (RELEASED, 3, Recorded("b", 3), LATER),
        (RELEASED, 3, Recorded("a", 3, migrating=True), None),
        (INCOMING, 3, Recorded("b", 3, migrating=True), None),
        (INCOMING, 3, Recorded("a", 3), GONE),
    ],
)
def test_a_node_contradicts_the_database_where(
    claim: Claim, epoch: int, recorded: Recorded | None, expected: Contradiction | None
) -> None:
    assert contradiction("a", OwnershipRecord(epoch, claim), recorded) is expected


@given(st.builds(OwnershipRecord, epoch=st.integers(0, 4), claim=st.sampled_from(Claim)), st.integers(0, 4))
def test_a_vm_that_its_node_would_not_run_as_ordered_is_unreconciled(held: OwnershipRecord, epoch: int) -> None:
    """Nothing is done without a word: a node obeys the database, or contradicts it."""
    _, verdict = obey(held, Order(OrderKind.OWN, epoch))
    how = contradiction("a", held, Recorded("a", epoch))
    assert (verdict is OrderVerdict.RUN) == (how is None)


@given(
    st.builds(OwnershipRecord, epoch=st.integers(0, 4), claim=st.sampled_from(Claim)), st.integers(0, 4),
    st.sampled_from((None, "b", "deleted")),
)  # fmt: skip
def test_what_a_node_does_not_remove_as_ordered_is_unreconciled_or_gets_another_order(
    held: OwnershipRecord, epoch: int, owner: str | None
) -> None:
    recorded = Recorded(None, epoch, deleted=True) if owner == "deleted" else Recorded(owner, epoch)
    _, verdict = obey(held, Order(OrderKind.GONE, epoch))
    known = contradiction("a", held, recorded) is not None or forgotten_arrival("a", held, recorded)
    stays = verdict is not OrderVerdict.DESTROY and held.claim is not Claim.NONE
    assert stays == known or (held.claim is Claim.NONE and verdict is OrderVerdict.IGNORE)


@pytest.mark.parametrize(
    ("claim", "recorded", "expected"),
    [
        (INCOMING, Recorded("b", 3), True),
        (INCOMING, Recorded(None, 3), True),
        (INCOMING, Recorded("b", 3, migrating=True), False),
        (INCOMING, Recorded("b", 4), False),
        (INCOMING, Recorded("a", 3), False),
        (RELEASED, Recorded("b", 3), False),
    ],
)
def test_a_node_waits_for_a_vm_that_does_not_come(claim: Claim, recorded: Recorded, *, expected: bool) -> None:
    assert forgotten_arrival("a", OwnershipRecord(3, claim), recorded) is expected
