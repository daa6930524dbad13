"""The times of schedules of backup policies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from novacron.model.backup_policy import AGE_S_MAX, DAY_S, BackupPolicySpec
from novacron.model.errors import InvalidInput

NICKNAMES = {"hourly": "0 * * * *", "daily": "0 0 * * *", "weekly": "0 0 * * 0", "monthly": "0 0 1 * *"}
FIELDS = 5
PERIOD_S_MIN = 300
"""Between two times of a schedule."""
LOOKED_AT = 64
"""Times of a schedule that are looked at to know its shortest and its longest period."""
TICKS_MAX = 2 * DAY_S // PERIOD_S_MIN
"""Times of a schedule within its jitter."""
PROMISE_SLACK_S = 3600
"""How long a backup may wait and take, where the policy promises nothing else."""


class Calendar:
    """The times of a policy's schedule."""

    def __init__(self, spec: BackupPolicySpec) -> None:
        """Raises InvalidInput for a schedule or a time zone that can't be read."""
        text = " ".join(spec.schedule.split())
        self._text = NICKNAMES.get(text.removeprefix("@"), text)
        try:
            self._zone = ZoneInfo(spec.time_zone)
        except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
            raise _unknown_zone(spec.time_zone) from None
        if len(self._text.split()) != FIELDS:
            raise _unreadable(spec.schedule, "it does not have five fields")
        try:
            CronSim(self._text, datetime.now(self._zone))
        except CronSimError as error:
            raise _unreadable(spec.schedule, str(error).lower()) from None

    def after(self, moment: datetime, count: int) -> list[datetime]:
        """Return the next times, fewer if the schedule ends."""
        return [at.astimezone(UTC) for at in islice(CronSim(self._text, moment.astimezone(self._zone)), count)]

    def until(self, moment: datetime, since: datetime) -> list[datetime]:
        """Return the times up to ``moment``, newest first, and as far back as the first one that is not after
        ``since``."""
        # A reversed schedule begins before its moment; one that falls on a minute belongs to it.
        start = moment.astimezone(self._zone) + timedelta(microseconds=1)
        moments = list[datetime]()
        for at in islice(CronSim(self._text, start, reverse=True), TICKS_MAX):
            moments.append(at.astimezone(UTC))
            if moments[-1] <= since:
                break
        return moments

    def periods_s(self, moment: datetime) -> list[float]:
        """Return the seconds between the next times of the schedule."""
        times = self.after(moment, LOOKED_AT)
        return [(later - earlier).total_seconds() for earlier, later in pairwise(times)]


def _unknown_zone(name: str) -> InvalidInput:
    return InvalidInput(f"there is no time zone {name!r}", field="time_zone", hint="write it like Europe/Paris")


def _unreadable(schedule: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{schedule!r} is not a schedule: {why}", field="schedule",
        hint="write hourly, daily, weekly, monthly, or five fields as in crontab(5), such as '30 2 * * *'",
    )  # fmt: skip


def promise_s(spec: BackupPolicySpec, now: datetime) -> int:
    """Return how old a VM's newest backup may become. Raises InvalidInput for a schedule that can't be used."""
    periods = Calendar(spec).periods_s(now)
    if not periods:
        raise _unreadable(spec.schedule, "it runs once at most")
    if min(periods) < PERIOD_S_MIN:
        raise InvalidInput(
            f"{spec.schedule!r} runs more often than every {PERIOD_S_MIN // 60} minutes", field="schedule",
            hint="choose a longer interval",
        )  # fmt: skip
    possible = int(max(periods)) + spec.jitter_s + PROMISE_SLACK_S
    if spec.max_age_s is None:
        return min(possible, AGE_S_MAX)
    if spec.max_age_s < max(periods):
        raise InvalidInput(
            f"the schedule leaves up to {max(periods) / 3600:g} hours between two backups, more than max_age_s allows",
            field="max_age_s", hint="back up more often, or raise max_age_s",
        )  # fmt: skip
    return spec.max_age_s
