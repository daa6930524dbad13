"""Forecasts of migrations: a simulation of passes, which agrees with arithmetic where that has an answer."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import qemu_migration_forecast as migrations
from bench.prediction_migrations import learned_exponent
from bench.qemu_migration_forecast import Pass, PassProgress, Past, WorkingSet

MB = 1e6
AT = PassProgress(elapsed_s=2, remaining=1000 * MB, rate=100 * MB, sent=200 * MB, empty=0)


def test_a_guest_that_writes_nothing_takes_what_remains() -> None:
    total_s, converges = migrations.simulate(AT, AT.remaining, None)
    assert converges
    assert total_s == pytest.approx(12)


def test_passes_get_shorter_by_what_the_guest_writes() -> None:
    """With a constant dirty rate of a fifth of the link's, passes are a geometric series."""
    total_s, converges = migrations.simulate(AT, AT.remaining, WorkingSet(20 * MB, 1.0))
    assert converges
    assert total_s == pytest.approx(12 / (1 - 0.2), rel=0.02)


def test_a_forecast_in_the_middle_of_a_pass_is_that_of_its_beginning() -> None:
    """What the guest has written since the pass began is counted, however little of the pass is left."""
    guest = WorkingSet(60 * MB, 0.1)
    for left in (0.99, 0.5, 0.01):
        at = PassProgress(100 + 10 * (1 - left), 1000 * MB * left, 100 * MB, 1000 * MB, 0, pass_began_s=100)
        assert not migrations.simulate(at, at.remaining, guest)[1]


def test_a_guest_that_writes_as_fast_as_the_link_does_not_converge() -> None:
    assert not migrations.simulate(AT, AT.remaining, WorkingSet(100 * MB, 1.0))[1]


def test_a_working_set_larger_than_the_downtime_carries_does_not_converge() -> None:
    """However slowly it grows: 60 MB are written in any time, and 30 MB may be sent while the guest stands still."""
    assert not migrations.simulate(AT, AT.remaining, WorkingSet(60 * MB, 0.0))[1]
    assert migrations.simulate(AT, AT.remaining, WorkingSet(25 * MB, 0.0))[1]


def test_auto_converge_ends_what_would_not_end() -> None:
    throttled = msgspec.structs.replace(AT, auto_converge=True)
    guest = WorkingSet(100 * MB, 0.6)
    assert not migrations.simulate(AT, AT.remaining, guest)[1]
    assert migrations.simulate(throttled, AT.remaining, guest)[1]


@given(st.floats(1, 500), st.floats(0.05, 1.0))
def test_a_working_set_is_found_in_its_passes(size: float, exponent: float) -> None:
    guest = WorkingSet(size * MB, exponent)
    found = migrations.working_set([Pass(s, guest.written(s)) for s in (20, 8, 3, 1, 0.5)], exponent)
    assert found is not None
    assert found.written(2) == pytest.approx(guest.written(2), rel=0.01)


def test_what_a_slowed_guest_wrote_counts_as_what_it_would_have_written() -> None:
    plain = migrations.working_set([Pass(4, 40 * MB), Pass(1, 20 * MB)])
    assert plain is not None
    slowed = migrations.working_set([Pass(4, 20 * MB, 0.5), Pass(1, 10 * MB, 0.5)])
    assert slowed is not None
    assert slowed.written(2) == pytest.approx(plain.written(2))


def test_empty_pages_shorten_the_rest_and_history_says_by_how_much() -> None:
    at = msgspec.structs.replace(AT, empty=600 * MB)
    assert migrations.rest_of_first_pass(at, 0) == AT.remaining
    assert migrations.rest_of_first_pass(at, 1) == pytest.approx(AT.remaining / 4)
    exponent = learned_exponent([at], pass_s=2 + 10 / 4)
    assert exponent == pytest.approx(1)


def test_nothing_learned_changes_what_has_been_measured() -> None:
    """Passes that have ended say what this guest writes; what other guests wrote does not count then."""
    measured = msgspec.structs.replace(AT, passes=(Pass(10, 90 * MB), Pass(1, 30 * MB), Pass(0.4, 20 * MB)))
    alone, taught = migrations.forecast(measured), migrations.forecast(measured, [Past(2.0, WorkingSet(900 * MB, 0.5))])
    assert taught.median_s == pytest.approx(alone.median_s, rel=0.05)
    assert alone.converges and taught.converges


def test_there_is_no_verdict_before_it_is_known_what_the_guest_writes() -> None:
    assert migrations.forecast(AT).converges is None
    assert migrations.forecast(msgspec.structs.replace(AT, passes=(Pass(10, 90 * MB),))).converges is None
    steady = tuple(Pass(1, 100 * MB) for _ in range(5))
    assert migrations.forecast(msgspec.structs.replace(AT, passes=steady)).converges is False


@given(
    st.floats(0, 1e4), st.floats(0, 1e12), st.floats(0, 1e11), st.floats(0, 1e12), st.floats(0, 1e12), st.booleans(),
    st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e11), st.floats(0, 1)), max_size=4),
)  # fmt: skip
def test_every_forecast_is_a_number_within_its_interval(
    elapsed_s: float, remaining: float, rate: float, sent: float, empty: float, auto_converge: bool,
    passes: list[tuple[float, float, float]],
) -> None:  # fmt: skip
    at = PassProgress(elapsed_s, remaining, rate, sent, empty, tuple(Pass(*item) for item in passes), 0, auto_converge)
    for history in ([], [Past(0.7, WorkingSet(100 * MB, 0.6)), Past(None, None)]):
        found = migrations.forecast(at, history)
        assert math.isfinite(found.upper_s)
        assert elapsed_s <= found.lower_s <= found.median_s <= found.upper_s
