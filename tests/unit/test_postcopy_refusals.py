"""When a source stops giving memory to a target that says it expects none."""

from __future__ import annotations

import pytest

from novacron.agent.migration.post_copy import UNKNOWN_S, Refusals
from novacron.dwcp.frames import ErrorCode


def test_a_target_that_expects_nothing_for_long_enough_has_all_memory() -> None:
    refusals = Refusals()
    assert not refusals.are_final(ErrorCode.NOT_EXPECTED, 0.0)
    assert not refusals.are_final(ErrorCode.NOT_EXPECTED, UNKNOWN_S)
    assert refusals.are_final(ErrorCode.NOT_EXPECTED, UNKNOWN_S + 1)


@pytest.mark.parametrize("code", [None, *(code for code in ErrorCode if code is not ErrorCode.NOT_EXPECTED)])
def test_any_other_answer_or_none_restarts_the_clock(code: ErrorCode | None) -> None:
    refusals = Refusals()
    refusals.are_final(ErrorCode.NOT_EXPECTED, 0.0)
    assert not refusals.are_final(code, UNKNOWN_S * 2)
    assert not refusals.are_final(ErrorCode.NOT_EXPECTED, UNKNOWN_S * 2 + 1)


def test_a_target_without_error_codes_is_retried_forever() -> None:
    refusals = Refusals()
    assert not any(refusals.are_final(ErrorCode.UNSPECIFIED, UNKNOWN_S * attempt) for attempt in range(100))


def test_an_accepted_session_restarts_the_clock() -> None:
    refusals = Refusals()
    refusals.are_final(ErrorCode.NOT_EXPECTED, 0.0)
    refusals.end()
    assert not refusals.are_final(ErrorCode.NOT_EXPECTED, UNKNOWN_S + 1)
