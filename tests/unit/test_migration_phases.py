"""Which phases of a migration may follow which."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.agent.migration.phases import AFTER_PROMISE, TRANSITIONS, SourcePhase, WrongTransition, check_transition

PATHS = {
    "live": "opening pre-copy switchover promised done",
    "live with disks": "opening mirroring pre-copy switchover promised done",
    "live, finished by QEMU itself": "opening pre-copy promised done",
    "live with post-copy": "opening pre-copy switchover promised post-copy done",
    "warm": "opening copying pre-copy switchover promised done",
    "cold": "opening copying promised done",
}
"""The phases of each kind of migration, in order."""


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_each_kind_of_migration_has_a_path_to_its_end(path: str) -> None:
    for before, after in itertools.pairwise(map(SourcePhase, path.split())):
        check_transition(before, after)


def test_every_phase_except_final_ones_has_a_successor() -> None:
    assert set(TRANSITIONS) == set(SourcePhase)
    assert {phase for phase, following in TRANSITIONS.items() if not following} == {
        SourcePhase.DONE,
        SourcePhase.FAILED,
    }


@pytest.mark.parametrize("phase", sorted(set(SourcePhase) - AFTER_PROMISE - {SourcePhase.FAILED}))
def test_a_migration_may_fail_at_any_moment_before_its_promise(phase: SourcePhase) -> None:
    check_transition(phase, SourcePhase.FAILED)


@pytest.mark.parametrize("phase", sorted(AFTER_PROMISE))
def test_a_promise_is_never_taken_back(phase: SourcePhase) -> None:
    for after in set(SourcePhase) - AFTER_PROMISE:
        with pytest.raises(WrongTransition):
            check_transition(phase, after)


@given(st.lists(st.sampled_from(SourcePhase), max_size=12))
def test_no_order_of_events_gives_a_promise_twice(attempts: list[SourcePhase]) -> None:
    phase, promises = SourcePhase.OPENING, 0
    for after in attempts:
        if after in TRANSITIONS[phase]:
            promises += after is SourcePhase.PROMISED
            phase = after
    assert promises <= 1
