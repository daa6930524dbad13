"""A round of forecasts, in a process of its own: it needs numpy and a processor for seconds, and so would hold up
whatever else its process does.

``python -m novacron.control.forecast_round`` reads a ``RoundOrder`` from its standard input and writes a
``RoundSummary`` to its standard output, both as JSON.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

import asyncpg
import msgspec
import numpy as np
from numpy.typing import NDArray

from novacron.model.capacity_forecast import (
    CapacityForecast,
    CapacityResource,
    GrowthRate,
    ResourceHistory,
    certificate,
    forecast_of,
)
from novacron.model.load_forecast import ForecastKind, ForecastModel, judge
from novacron.model.load_hours import KEPT
from novacron.prediction import rounds, unusual
from novacron.prediction.load import Floats, Hours
from novacron.prediction.profiles import PROFILE_DAYS, usual
from novacron.prediction.trend import trend
from novacron.store import capacity, forecasts, load_history, load_profiles, unusual_loads
from novacron.store.database import connect
from novacron.store.forecasts import NewForecast, RoundSummary
from novacron.store.unusual_loads import NewUnusualLoad

NICE = 10
"""Others on the machine go first."""
STATEMENT_S_MAX = 45.0
HISTORY_DAYS = 28
WEEKS = 5
PERCENT = 100.0
FIELDS = ("peak", "mean", "last", "quarter", "second")
PRUNES_MAX = 20
"""Steps of pruning in a round; what is left is pruned in the next one."""
T = TypeVar("T")


class RoundOrder(msgspec.Struct, frozen=True):
    """What a round needs. ``hour_s`` is when the hour began that is foreseen, in seconds since 1970."""

    database_url: str
    hour_s: int

    @property
    def hour(self) -> datetime:
        return datetime.fromtimestamp(self.hour_s, UTC)


async def make(connection: asyncpg.Connection, hour: datetime) -> RoundSummary:
    """Score what came, find VMs that are unlike themselves, forecast the hour and the capacity, and once a day the week
    of VMs, and in the round after that their profiles: each reads all VMs' days."""
    began = time.perf_counter()
    await forecasts.score_nodes(connection, hour)
    await forecasts.score_vms(connection, hour.date())
    await _judge(connection, hour)
    nodes, fit_s = await _foresee_nodes(connection, hour)
    vms = await _foresee_vms(connection, hour.date())
    if not vms:
        await _make_profiles(connection, hour.date())
    await unusual_loads.replace(connection, await _unusual(connection, hour - timedelta(hours=1)))
    await _foresee_capacity(connection, hour.date())
    await _prune(connection, hour.date())
    summary = RoundSummary(round(time.perf_counter() - began, 3), nodes, vms, round(fit_s, 3))
    await forecasts.round_made(connection, hour, summary)
    return summary


async def _judge(connection: asyncpg.Connection, hour: datetime) -> None:
    states = await forecasts.models(connection)
    for kind in ForecastKind:
        sums = await forecasts.sums(connection, kind, hour - timedelta(days=forecasts.SCORED_DAYS))
        await forecasts.judged(connection, kind, judge(states[kind].aside_since is not None, sums))


async def _is_aside(connection: asyncpg.Connection, kind: ForecastKind) -> bool:
    return (await forecasts.models(connection))[kind].aside_since is not None


def hours_of(rows: Sequence[asyncpg.Record], names: list[str], hour: datetime) -> tuple[Hours, Floats]:
    """Return what is known of the hours before ``hour``, in percent of a processor, and of the memory."""
    first_day = hour.date() - timedelta(days=HISTORY_DAYS)
    values = np.full((len(FIELDS) + 1, len(names), (HISTORY_DAYS + 1) * 24), np.nan)
    place = {name: number for number, name in enumerate(names)}
    for row in rows:
        at = (row["day"] - first_day).days * 24
        if 0 <= at < values.shape[2]:
            table = np.array([row[field] for field in (*FIELDS, "memory_mib")], dtype=np.float64)  # None is NaN
            values[:, place[row["node"]], at : at + 24] = table
    values = values[:, :, : HISTORY_DAYS * 24 + hour.hour]
    peak, mean, end, quarter, second = values[:-1] * PERCENT
    return Hours(peak, mean, end, quarter, second), values[-1]


async def _foresee_nodes(connection: asyncpg.Connection, hour: datetime) -> tuple[int, float]:
    """Forecast the hour; return of how many nodes, and how long the fit took."""
    rows = await forecasts.node_hours(connection, hour.date() - timedelta(days=HISTORY_DAYS))
    names = sorted({row["node"] for row in rows})
    if not names:
        return 0, 0.0
    known, memory = hours_of(rows, names, hour)
    began = time.perf_counter()
    outlook = rounds.forecast_peaks(known, rounds.fit_peaks(known))
    fit_s = time.perf_counter() - began
    set_aside = await _is_aside(connection, ForecastKind.NODE_HOUR)
    counts = np.isfinite(known.peak).sum(1)
    newest_memory = rounds.newest(memory[:, -rounds.NEWEST_HOURS_MAX :])
    made = [
        item._replace(memory_mib=_finite(newest_memory[number], int))
        for number, item in enumerate(chosen(names, outlook, counts, set_aside))
        if item is not None
    ]
    await forecasts.store_nodes(connection, hour, made)
    return len(made), fit_s


async def _foresee_vms(connection: asyncpg.Connection, today: date) -> int:
    """Forecast the seven days from today, once a day; return of how many VMs."""
    if await forecasts.vms_are_foreseen(connection, today):
        return 0
    rows = await forecasts.vm_weeks(connection, today, WEEKS)
    names = sorted({row["vm"] for row in rows})
    if not names:
        return 0
    place = {name: number for number, name in enumerate(names)}
    maxima, days = np.full((len(names), WEEKS), np.nan), np.zeros(len(names), dtype=np.int64)
    partly = np.full((len(names), WEEKS), np.nan)
    for vm, week, peak, count in rows:
        at, column = place[vm], WEEKS - 1 - week
        days[at] += count
        partly[at, column] = peak
        if count >= forecasts.WEEK_DAYS_MIN:
            maxima[at, column] = peak
    outlook = rounds.forecast_weeks(maxima)
    last = np.where(np.isfinite(outlook.last), outlook.last, rounds.newest(partly))
    set_aside = await _is_aside(connection, ForecastKind.VM_WEEK)
    made = [item for item in chosen(names, outlook._replace(last=last), days, set_aside) if item is not None]
    async with connection.transaction():  # all of a day's or none: they are looked for once a day
        await forecasts.store_vms(connection, today, made)
    return len(made)


async def _make_profiles(connection: asyncpg.Connection, today: date) -> None:
    """Say what VMs usually use at each hour, once a day. A round that was ended halfway is gone on with by the next."""
    first = today - timedelta(days=PROFILE_DAYS)
    for vms in await load_profiles.batches(connection, today):
        rows = await load_profiles.days(connection, vms, first, today)
        await load_profiles.store(connection, profiles_of(rows, first, today))


def profiles_of(rows: Sequence[asyncpg.Record], first: date, today: date) -> list[load_profiles.NewProfile]:
    """Return the profile of each VM that has one. ``rows``: its days from ``first`` on, in percent of a processor."""
    names = sorted({row["vm"] for row in rows})
    if not names:
        return []
    place = {name: number for number, name in enumerate(names)}
    where = np.array([(place[row["vm"]], (row["day"] - first).days) for row in rows]).T
    hours = []
    for field in ("means_percent", "peaks_percent"):
        table = np.full((len(names), (today - first).days, 24), np.nan)
        table[where[0], where[1]] = np.array([row[field] for row in rows], dtype=np.float64) / PERCENT  # None is NaN
        hours.append(table)
    means, variances = usual(*hours)
    known = np.isfinite(means).all(1) & np.isfinite(variances).all(1)
    return [
        load_profiles.NewProfile(names[number], today, means[number].tolist(), variances[number].tolist())
        for number in np.flatnonzero(known)
    ]


async def _unusual(connection: asyncpg.Connection, hour: datetime) -> list[NewUnusualLoad]:
    """Return the VMs that were unlike themselves in the hour that began at ``hour``, and in the one before."""
    rows = await unusual_loads.hours_of_vms(connection, hour)
    if not rows:
        return []
    used, expected, variances = (
        np.array([(row[field], row[f"{field}_before"]) for row in rows], dtype=np.float64)
        for field in ("used", "usual", "variance")
    )
    directions = unusual.lasting(unusual.of_hours(used, expected, variances))
    since = hour - timedelta(hours=unusual.HOURS - 1)
    return [
        NewUnusualLoad(
            rows[number]["vm"], since, hour, float(used[number, 0]), float(expected[number, 0]),
            float(np.sqrt(variances[number, 0])),
        )
        for number in np.flatnonzero(directions)
    ]  # fmt: skip


def chosen(
    names: list[str], outlook: rounds.Outlook, known: NDArray[np.int64], set_aside: bool
) -> list[NewForecast | None]:
    """Return what is served of each node or VM, in processors: what was learned, unless there is nothing or it is set
    aside; None where nothing is known. ``known``: of how many hours or days something is known of each."""
    made: list[NewForecast | None] = []
    for number, name in enumerate(names):
        last, learned, lower, upper, last_lower, last_upper = (_finite(values[number], _cpus) for values in outlook)
        if last is None:
            made.append(None)
        elif learned is not None and not set_aside:
            made.append(
                NewForecast(name, ForecastModel.LEARNED, learned, lower, upper, last, learned, None, int(known[number]))
            )
        else:
            made.append(
                NewForecast(
                    name, ForecastModel.LAST, last, last_lower, last_upper, last, learned, None, int(known[number])
                )
            )
    return made


def _cpus(percent: np.float64) -> float:
    return float(percent) / PERCENT


def _finite(value: np.float64, make: Callable[[np.float64], T]) -> T | None:
    return make(value) if np.isfinite(value) else None


async def _foresee_capacity(connection: asyncpg.Connection, today: date) -> None:
    rows = await capacity.record(connection, today)
    known = await capacity.history(connection, today)
    made: list[CapacityForecast] = []
    for row in rows:
        days, used = known[row["resource"], row["name"]]
        seen = ResourceHistory(
            CapacityResource(row["resource"]), row["name"], row["used"], row["size"], len(days), row["usual_node"]
        )
        made.append(forecast_of(seen, growth(days, used), today))
    first = await capacity.first_certificate(connection)
    if first is not None:
        made.append(certificate(first[0], datetime.fromtimestamp(first[1], UTC).date(), today))
    async with connection.transaction():
        await capacity.replace(connection, made)


def growth(days: list[date], used: list[float]) -> GrowthRate | None:
    """Return how much more is used each day."""
    fitted = trend(np.array([at.toordinal() for at in days], dtype=np.float64), np.array(used))
    return None if fitted is None else GrowthRate(*fitted)


PRUNED = (
    ("node_load_days", "day", KEPT.node_days),
    ("vm_load_days", "day", KEPT.vm_days),
    ("node_forecasts", "hour", KEPT.node_forecast_days),
    ("vm_forecasts", "day", KEPT.vm_forecast_days),
    ("forecast_rounds", "hour", KEPT.node_forecast_days),
    ("capacity_days", "day", KEPT.capacity_days),
    ("vm_profiles", "day", load_profiles.KEPT_DAYS),
)


async def _prune(connection: asyncpg.Connection, today: date) -> None:
    """Delete what is too old, a limited number of rows."""
    steps = 0
    for table, column, days in PRUNED:
        while steps < PRUNES_MAX:
            steps += 1
            if await load_history.prune(connection, table, column, days, today) < load_history.PRUNED_AT_ONCE_MAX:
                break


async def run(order: RoundOrder) -> RoundSummary:
    connection = await connect(order.database_url, STATEMENT_S_MAX)
    try:
        await connection.execute("SET work_mem = '64MB'; SET max_parallel_workers_per_gather = 0")
        return await make(connection, order.hour)
    finally:
        await connection.close()


def main() -> None:
    os.nice(NICE)
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is said, such as of slow queries, is no answer
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=RoundOrder)
    try:
        summary = asyncio.run(run(order))
    except Exception as error:  # whoever began this reads the last line
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    with os.fdopen(answer, "wb") as file:
        file.write(msgspec.json.encode(summary))


if __name__ == "__main__":
    main()
