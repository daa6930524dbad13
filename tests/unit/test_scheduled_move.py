"""When a move that waits for its time begins, and how people write times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import typer

from novacron.cli import output
from novacron.cli.move_options import parse_moment
from novacron.model.errors import InvalidInput
from novacron.model.scheduled_move import AHEAD_MAX, TRIED_FOR, cheapest, window

NOW = datetime(2026, 3, 2, 12, 20, tzinfo=UTC)
DAY = [1.0] * 24
QUIET_AT_3 = [*DAY[:3], 0.1, *DAY[4:]]


def at(hour: int, minute: int = 0, day: int = 2) -> datetime:
    return datetime(2026, 3, day, hour, minute, tzinfo=UTC)


def test_a_move_begins_in_the_hour_in_which_the_vm_does_least() -> None:
    time = cheapest(NOW, at(12, day=3), QUIET_AT_3, 60.0)
    assert time.at == at(3, day=3)
    assert "0.10 processors" in time.why and "12:00 it uses 1.00" in time.why


def test_it_begins_at_once_where_no_hour_is_better() -> None:
    assert cheapest(NOW, at(12, day=3), DAY, 60.0).at == NOW
    assert cheapest(NOW, at(12, day=3), [0.01 + hour / 1e4 for hour in range(24)], 60.0).at == NOW, "all are idle"


def test_of_hours_that_are_about_as_cheap_the_first_is_taken() -> None:
    usual = [1.0] * 24
    usual[15], usual[18] = 0.54, 0.5
    assert cheapest(NOW, at(12, day=3), usual, 60.0).at == at(15)


def test_it_begins_early_enough_to_be_over_by_the_deadline() -> None:
    assert cheapest(NOW, at(3, 30, day=3), QUIET_AT_3, 600.0).at == at(3, day=3)
    assert cheapest(NOW, at(3, 10, day=3), QUIET_AT_3, 600.0).at == NOW, "twice 10 minutes do not fit"
    assert cheapest(NOW, NOW + timedelta(seconds=30), QUIET_AT_3, 600.0).at == NOW


def test_where_the_time_is_not_foreseen_some_is_kept() -> None:
    assert cheapest(NOW, at(3, 5, day=3), QUIET_AT_3, None).at == NOW
    assert cheapest(NOW, at(3, 15, day=3), QUIET_AT_3, None).at == at(3, day=3)


def test_without_knowledge_it_begins_as_early_as_it_may_and_says_so() -> None:
    time = cheapest(NOW, at(12, day=3), None, 60.0)
    assert time.at == NOW and "too little is known" in time.why


def test_hours_are_those_of_utc_whatever_zone_was_written() -> None:
    west = NOW.astimezone(datetime.fromisoformat("2026-01-01T00:00:00-08:00").tzinfo)
    assert cheapest(west, at(12, day=3), QUIET_AT_3, 60.0).at == at(3, day=3)


def test_a_window_begins_now_at_the_earliest_and_ends_a_day_later_if_nobody_says_when() -> None:
    assert window(at(1), at(13), NOW) == (NOW, at(13), False)
    assert window(at(20), None, NOW) == (at(20), at(20) + TRIED_FOR, True)


@pytest.mark.parametrize(
    ("not_before", "deadline", "field"),
    [
        (None, None, None),
        (at(20), at(19), "deadline"),
        (None, at(12, 20), "deadline"),
        (datetime(2026, 3, 3), None, "not_before"),
        (None, datetime(2026, 3, 3), "deadline"),
        (NOW + AHEAD_MAX + timedelta(minutes=1), None, "not_before"),
        (None, NOW + AHEAD_MAX + timedelta(minutes=1), "deadline"),
    ],
)
def test_a_window_that_can_not_be_is_refused_by_its_field(
    not_before: datetime | None, deadline: datetime | None, field: str | None
) -> None:
    with pytest.raises(InvalidInput) as raised:
        window(not_before, deadline, NOW)
    assert raised.value.field == field


def test_times_are_written_as_a_clock_shows_them_as_a_duration_or_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "time_zone", lambda: UTC)
    now = datetime.now(UTC)
    clock = datetime.fromisoformat(parse_moment("22:00"))
    assert (clock.hour, clock.minute) == (22, 0) and now < clock <= now + timedelta(days=1)
    assert abs(datetime.fromisoformat(parse_moment("2h")) - now - timedelta(hours=2)) < timedelta(minutes=1)
    assert parse_moment("2026-12-01T22:00") == "2026-12-01T22:00:00+00:00"
    assert parse_moment("2026-12-01T22:00+02:00") == "2026-12-01T20:00:00+00:00"


@pytest.mark.parametrize("text", ["tonight", "24:00", "12", "", "2026-13-01", "-2h"])
def test_what_is_no_time_is_refused_in_words(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="write it like 22:00, 2h"):
        parse_moment(text)
