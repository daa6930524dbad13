"""Which backups are kept: the newest of each period, as restic's ``forget`` has it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from novacron.retention import Keep, to_keep

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
HOURLY = {f"h{hours}": NOON - timedelta(hours=hours) for hours in range(24 * 40)}


def test_the_newest_of_each_period_is_kept() -> None:
    keeping = to_keep(HOURLY, Keep(last=2, hourly=3, daily=2, weekly=2, monthly=2))
    assert keeping == {
        "h0": ["last", "hourly", "daily", "weekly", "monthly"],
        "h1": ["last", "hourly"],
        "h2": ["hourly"],
        "h13": ["daily", "weekly"],  # Sunday: a week before, too
        "h37": ["monthly"],  # February
    }


def test_periods_without_backups_do_not_count() -> None:
    made = {"a": NOON, "b": NOON - timedelta(days=400), "c": NOON - timedelta(days=800)}
    assert set(to_keep(made, Keep(daily=2))) == {"a", "b"}
    assert set(to_keep(made, Keep(yearly=9))) == {"a", "b", "c"}
    assert to_keep(made, Keep()) == {} == to_keep({}, Keep(last=1))


counts = st.builds(Keep, *[st.integers(0, 5)] * 6)


@given(st.sets(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)), max_size=30), counts)
def test_the_newest_is_kept_by_every_rule_and_no_rule_keeps_more_than_it_says(
    times: set[datetime], counts: Keep
) -> None:
    made = {str(number): at.replace(tzinfo=UTC) for number, at in enumerate(times)}
    keeping = to_keep(made, counts)
    rules = [rule for rules in keeping.values() for rule in rules]
    for rule in ("last", "hourly", "daily", "weekly", "monthly", "yearly"):
        assert rules.count(rule) <= getattr(counts, f"{rule}")
    if made and counts != Keep():
        assert max(made, key=lambda id: (made[id], id)) in keeping
