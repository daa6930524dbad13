"""When VMs are due to be backed up: every time of a schedule counts once, for each VM at its own moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.cli.backup_policies import duration, parse_duration
from novacron.model.backup_policy import BackupPolicySpec
from novacron.model.backup_schedule import (
    RETRY_S_MIN,
    TRIES_MAX,
    VmHistory,
    asked_since,
    due_since,
    offset_s,
)
from novacron.model.errors import InvalidInput
from novacron.store.backup_calendar import Calendar, promise_s

NOW = datetime(2026, 6, 10, 12, 7, 3, 250_000, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def spec(schedule: str = "daily", time_zone: str = "UTC", **fields: int | None) -> BackupPolicySpec:
    return BackupPolicySpec(repository="repo-1", schedule=schedule, time_zone=time_zone, **fields)  # type: ignore[arg-type]


def due(now: datetime, history: VmHistory, *, offset: int = 0, within_s: int | None = None) -> datetime | None:
    return due_since(Calendar(spec()).until(now, now - DAY), offset, history, now, within_s)


@pytest.mark.parametrize(
    ("schedule", "newest"),
    [
        ("hourly", "2026-06-10T12:00"),
        ("@daily", "2026-06-10T00:00"),
        ("weekly", "2026-06-07T00:00"),
        ("monthly", "2026-06-01T00:00"),
        ("30 2 * * 1-5", "2026-06-10T02:30"),
        ("*/5  *  * * *", "2026-06-10T12:05"),
    ],
)
def test_a_schedule_is_a_word_or_a_line_of_crontab(schedule: str, newest: str) -> None:
    assert Calendar(spec(schedule)).until(NOW, NOW)[0] == datetime.fromisoformat(f"{newest}Z")


def test_a_time_of_the_schedule_belongs_to_its_own_moment() -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    assert Calendar(spec()).until(midnight, midnight) == [midnight]
    assert Calendar(spec()).until(midnight - timedelta(microseconds=1), midnight)[0] == midnight - DAY


def test_a_night_without_the_hour_of_the_schedule_has_its_backup_all_the_same() -> None:
    calendar = Calendar(spec("30 2 * * *", "Europe/Paris"))
    spring, autumn = datetime(2026, 3, 29, 12, tzinfo=UTC), datetime(2026, 10, 25, 12, tzinfo=UTC)
    assert calendar.until(spring, spring - DAY)[0] == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    assert len([at for at in calendar.until(autumn, autumn - DAY) if at > autumn - DAY]) == 1


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (spec("never"), "schedule"),
        (spec("@reboot"), "schedule"),
        (spec("61 * * * *"), "schedule"),
        (spec("0 0 30 2 *"), "schedule"),
        (spec("* * * * *"), "schedule"),
        (spec("0 0 0 * * *"), "schedule"),
        (spec(time_zone="Mars/Base"), "time_zone"),
        (spec(time_zone="../../etc/passwd"), "time_zone"),
        (spec(max_age_s=3600), "max_age_s"),
    ],
)
def test_what_no_schedule_can_keep_is_refused_by_the_name_of_its_field(bad: BackupPolicySpec, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        promise_s(bad, NOW)
    assert refused.value.field == field


def test_without_a_promise_of_its_own_a_policy_promises_what_its_schedule_makes_possible() -> None:
    assert promise_s(spec(jitter_s=0), NOW) == 25 * 3600
    assert promise_s(spec("0 2 * * 1-5", jitter_s=0), NOW) == 73 * 3600, "over a weekend"
    assert promise_s(spec(max_age_s=30 * 3600), NOW) == 30 * 3600


def test_a_vm_is_due_once_after_each_time_of_the_schedule() -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    assert due(NOW, VmHistory(LONG_AGO, None)) == midnight
    assert due(NOW, VmHistory(LONG_AGO, midnight - timedelta(hours=1))) == midnight
    assert due(NOW, VmHistory(LONG_AGO, midnight)) is None
    assert due(NOW, VmHistory(midnight + timedelta(hours=1), None)) is None, "a policy that is new waits for its time"


def test_a_server_that_was_away_catches_up_once() -> None:
    assert due(NOW, VmHistory(LONG_AGO, NOW - 40 * DAY)) is not None
    assert due(NOW, VmHistory(LONG_AGO, NOW)) is None


def test_a_vm_waits_for_its_own_moment_and_not_beyond_its_window() -> None:
    late = VmHistory(LONG_AGO, NOW - 2 * DAY)
    just_after = NOW.replace(hour=0, minute=10, second=0, microsecond=0)
    assert due(just_after, VmHistory(LONG_AGO, just_after - DAY + timedelta(hours=1)), offset=1800) is None, (
        "yesterday's is made"
    )
    assert due(just_after, late, offset=1800) == just_after - timedelta(minutes=10) - DAY + timedelta(minutes=30)
    assert due(NOW, late, within_s=3600) is None
    assert due(just_after, late, within_s=3600) is not None


def test_failures_are_tried_again_ever_more_rarely_and_few_times() -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    failed = midnight + timedelta(hours=1)

    def after(seconds: float, *times: datetime) -> datetime | None:
        return due(failed + timedelta(seconds=seconds), VmHistory(LONG_AGO, midnight - DAY, times))

    assert after(RETRY_S_MIN - 1, failed) is None
    assert after(RETRY_S_MIN, failed) == midnight
    assert after(2 * RETRY_S_MIN - 1, failed, failed) is None
    assert after(7200, *[failed] * TRIES_MAX) is None
    assert after(7200, *[midnight - timedelta(hours=1)] * TRIES_MAX) == midnight, "failures of the day before"


def test_a_run_that_is_asked_for_backs_each_vm_up_once() -> None:
    before, after = NOW - timedelta(minutes=1), NOW + timedelta(minutes=1)
    assert asked_since(None, VmHistory(LONG_AGO, None)) is None
    assert asked_since(NOW, VmHistory(LONG_AGO, None)) == NOW
    assert asked_since(NOW, VmHistory(LONG_AGO, before, [before])) == NOW
    assert asked_since(NOW, VmHistory(LONG_AGO, after)) is None
    assert asked_since(NOW, VmHistory(LONG_AGO, before, [after])) is None


def test_the_vms_of_a_policy_are_spread_over_its_jitter() -> None:
    offsets = [offset_s("policy-1", f"vm-{number}", 1799) for number in range(3000)]
    parts = [sum(part * 300 <= offset < (part + 1) * 300 for offset in offsets) for part in range(6)]
    assert sum(parts) == 3000 and all(400 < count < 600 for count in parts)
    assert offset_s("policy-1", "vm-1", 0) == 0


@given(
    st.sampled_from(["hourly", "daily", "30 2 * * 1-5", "0 4 1 * *"]),
    st.integers(0, 7200), st.integers(0, 400 * 86_400), st.integers(60, 40_000),
)  # fmt: skip
def test_a_policy_that_is_looked_at_often_makes_one_backup_for_each_time(
    schedule: str, offset: int, start_s: int, step_s: int
) -> None:
    """Of the times between its first and its last look."""
    calendar = Calendar(spec(schedule))
    began = LONG_AGO + timedelta(seconds=start_s)
    asked: list[datetime] = []
    for number in range(40):
        now = began + timedelta(seconds=number * step_s)
        history = VmHistory(began, asked[-1] if asked else None)
        times = calendar.until(now, now - timedelta(seconds=7200))
        since = due_since(times, offset, history, now, None)
        if since is not None:
            assert since > began and since <= now and all(moment < since for moment in asked)
            asked.append(now)
    ended = began + timedelta(seconds=39 * step_s)
    moments = {at + timedelta(seconds=offset) for at in calendar.until(ended, began - timedelta(seconds=7200))}
    counted = [at for at in moments if began < at <= ended]
    looks = {-(-int((at - began).total_seconds()) // step_s) for at in counted}
    assert len(asked) == len(looks), "one for all times between two looks"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (45, "45s"), (1800, "30m"), (91_800, "25.5h"), (90_000, "25h"), (604_800, "1w"), (91_801, "91801s")],
)
def test_durations_are_printed_as_they_are_typed(seconds: int, words: str) -> None:
    assert duration(seconds) == words and parse_duration(words) == seconds
