"""Which phases of a migration may follow which."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.agent.migration.phases import AFTER_PROMISE, TRANSITIONS, Phase, WrongTransition, check_transition

PATHS = {
    "live": [Phase.OPENING, Phase.PRE_COPY, Phase.SWITCHOVER, Phase.PROMISED, Phase.DONE],
    "live with disks": [Phase.OPENING, Phase.MIRRORING, Phase.PRE_COPY, Phase.SWITCHOVER, Phase.PROMISED, Phase.DONE],
    "live, finished by QEMU itself": [Phase.OPENING, Phase.PRE_COPY, Phase.PROMISED, Phase.DONE],
    "live with post-copy": [
        Phase.OPENING, Phase.PRE_COPY, Phase.SWITCHOVER, Phase.PROMISED, Phase.POST_COPY, Phase.DONE,
    ],
    "warm": [Phase.OPENING, Phase.COPYING, Phase.PRE_COPY, Phase.SWITCHOVER, Phase.PROMISED, Phase.DONE],
    "cold": [Phase.OPENING, Phase.COPYING, Phase.PROMISED, Phase.DONE],
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_each_kind_of_migration_has_a_path_to_its_end(path: list[Phase]) -> None:
    for before, after in itertools.pairwise(path):
        check_transition(before, after)


def test_every_phase_except_final_ones_has_a_successor() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert {phase for phase, following in TRANSITIONS.items() if not following} == {Phase.DONE, Phase.FAILED}


@pytest.mark.parametrize("phase", sorted(set(Phase) - AFTER_PROMISE - {Phase.FAILED}))
def test_a_migration_may_fail_at_any_moment_before_its_promise(phase: Phase) -> None:
    check_transition(phase, Phase.FAILED)


@pytest.mark.parametrize("phase", sorted(AFTER_PROMISE))
def test_a_promise_is_never_taken_back(phase: Phase) -> None:
    for after in set(Phase) - AFTER_PROMISE:
        with pytest.raises(WrongTransition):
            check_transition(phase, after)


@given(st.lists(st.sampled_from(Phase), max_size=12))
def test_no_order_of_events_gives_a_promise_twice(attempts: list[Phase]) -> None:
    phase, promises = Phase.OPENING, 0
    for after in attempts:
        if after in TRANSITIONS[phase]:
            promises += after is Phase.PROMISED
            phase = after
    assert promises <= 1
