"""Pauses between attempts that fail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from novacron.dwcp.backoff import SPREAD, Backoff


def test_pauses_double_up_to_the_limit_and_begin_again_after_a_success() -> None:
    backoff = Backoff(1.0, 5.0, lambda: 0.0)
    assert [backoff.next_s() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 1.0


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 50))
def test_no_pause_is_near_zero_or_over_the_limit(chance: float, attempts: int) -> None:
    backoff = Backoff(0.2, 1.0, lambda: chance)
    assert all(0.2 * (1 - SPREAD) <= backoff.next_s() <= 1.0 for _ in range(attempts))
