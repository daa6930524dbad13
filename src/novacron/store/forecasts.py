"""Forecasts of load: what they are made from, as they are served, what came, and how good they were."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.model.load_forecast import (
    ForecastAccuracy,
    ForecastKind,
    ForecastModel,
    ModelVerdict,
    NodeForecast,
    ScoreSums,
    VmForecast,
    accuracy,
    why,
)
from novacron.store.database import Connection

SCORED_DAYS = 7
"""Over which errors are added up."""
WEEK_DAYS_MIN = 5
"""A week of a VM with fewer known days is not known."""
KNOWN_HOURS_MIN = 72
KNOWN_DAYS_MIN = 15
VM_BATCH = 5000
FRESH, FRESH_DAYS = timedelta(hours=3), timedelta(days=2)
"""A forecast for a time before that says nothing of now."""

LOOK_BACK = timedelta(days=2)
"""What came is looked up for so long; a server may store an hour late."""

NODE_CAME = """
    UPDATE node_forecasts f SET came = d.peak[extract(hour FROM f.hour AT TIME ZONE 'UTC')::int + 1]
    FROM node_load_days d
    WHERE f.came IS NULL AND f.hour >= $1 AND f.hour < $2 AND d.node = f.node
      AND d.day = (f.hour AT TIME ZONE 'UTC')::date
      AND d.peak[extract(hour FROM f.hour AT TIME ZONE 'UTC')::int + 1] IS NOT NULL
"""
VM_CAME = f"""
    UPDATE vm_forecasts f SET came = w.came FROM (
        SELECT d.vm, max(d.peak_percent) / 100.0 AS came FROM vm_load_days d
        WHERE d.day >= $1::date AND d.day < $1::date + 7 GROUP BY d.vm HAVING count(*) >= {WEEK_DAYS_MIN}
    ) w WHERE f.vm = w.vm AND f.day = $1 AND f.came IS NULL
"""
SUMS = """
    count(*)::int AS count, sum(came)::float AS came, sum(abs(peak - came))::float AS error,
    sum(abs(last - came))::float AS last_error, count(learned)::int AS learned_count,
    coalesce(sum(came) FILTER (WHERE learned IS NOT NULL), 0)::float AS learned_came,
    coalesce(sum(abs(learned - came)), 0)::float AS learned_error,
    coalesce(sum(abs(last - came)) FILTER (WHERE learned IS NOT NULL), 0)::float AS learned_last_error,
    count(upper)::int AS intervals, (count(*) FILTER (WHERE came BETWEEN lower AND upper))::int AS inside,
"""
FIELDS = ScoreSums.__struct_fields__
NODE_SCORES = f"""
    INSERT INTO forecast_scores (kind, at, {", ".join(FIELDS)})
    SELECT $3, hour + interval '1 hour', {SUMS}
        sum(extract(epoch FROM hour + interval '1 hour' - made_at))::float AS lead_s
    FROM node_forecasts WHERE came IS NOT NULL AND hour >= $1 AND hour < $2 GROUP BY hour
    ON CONFLICT (kind, at) DO UPDATE SET {", ".join(f"{field} = excluded.{field}" for field in FIELDS)}
"""
VM_SCORES = f"""
    INSERT INTO forecast_scores (kind, at, {", ".join(FIELDS)})
    SELECT $2, (day + 7)::timestamp AT TIME ZONE 'UTC', {SUMS}
        sum(extract(epoch FROM (day + 7)::timestamp AT TIME ZONE 'UTC' - made_at))::float AS lead_s
    FROM vm_forecasts WHERE came IS NOT NULL AND day = $1 GROUP BY day
    ON CONFLICT (kind, at) DO UPDATE SET {", ".join(f"{field} = excluded.{field}" for field in FIELDS)}
"""
STORE_NODES = """
    INSERT INTO node_forecasts
        (node, hour, model, peak, lower, upper, last, learned, memory_mib, known_hours)
    SELECT u.node, $1, u.model, u.peak, u.lower, u.upper, u.last, u.learned, u.memory_mib, u.known
    FROM unnest($2::text[], $3::text[], $4::real[], $5::real[], $6::real[], $7::real[], $8::real[], $9::int[],
                $10::int[]) AS u (node, model, peak, lower, upper, last, learned, memory_mib, known)
    JOIN nodes n ON n.name = u.node ON CONFLICT (node, hour) DO NOTHING
"""
STORE_VMS = """
    INSERT INTO vm_forecasts (vm, day, model, peak, lower, upper, last, learned, known_days)
    SELECT u.vm, $1, u.model, u.peak, u.lower, u.upper, u.last, u.learned, u.known
    FROM unnest($2::text[], $3::text[], $4::real[], $5::real[], $6::real[], $7::real[], $8::real[], $9::int[])
        AS u (vm, model, peak, lower, upper, last, learned, known)
    JOIN vms v ON v.id = u.vm ON CONFLICT (vm, day) DO NOTHING
"""


class NewForecast(NamedTuple):
    """A forecast of a node or VM. Loads are in processors; ``known``: hours or days."""

    object: str
    model: ForecastModel
    peak: float
    lower: float | None
    upper: float | None
    last: float
    learned: float | None
    memory_mib: int | None
    known: int


async def node_hours(connection: Connection, since: date) -> list[asyncpg.Record]:
    """Return the hours of nodes that are still there, a row a day."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT node, day, peak, mean, last, quarter, second, memory_mib FROM node_load_days WHERE day >= $1", since
    )
    return rows


async def vm_weeks(connection: Connection, today: date, weeks: int) -> list[asyncpg.Record]:
    """Return the maximum of each VM in each of the last weeks that end before today, and how many days of it are
    known: week 0 is the last one."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT vm, ($1::date - 1 - day) / 7 AS week, max(peak_percent)::int AS peak, count(*)::int AS days"
        " FROM vm_load_days WHERE day < $1 AND day >= $1::date - 7 * $2::int GROUP BY 1, 2",
        today, weeks,
    )  # fmt: skip
    return rows


def _columns(forecasts: Sequence[NewForecast], *fields: str) -> list[list[Any]]:
    return [[getattr(item, field) for item in forecasts] for field in fields]


async def store_nodes(connection: Connection, hour: datetime, made: Sequence[NewForecast]) -> None:
    """Store what was foreseen of nodes for an hour; what is there already stays."""
    columns = _columns(made, "object", "model", "peak", "lower", "upper", "last", "learned", "memory_mib", "known")
    await connection.execute(STORE_NODES, hour, *columns)


async def store_vms(connection: Connection, day: date, made: Sequence[NewForecast]) -> None:
    """Store what was foreseen of VMs for the seven days from ``day``; what is there already stays."""
    for first in range(0, len(made), VM_BATCH):
        batch = made[first : first + VM_BATCH]
        columns = _columns(batch, "object", "model", "peak", "lower", "upper", "last", "learned", "known")
        await connection.execute(STORE_VMS, day, *columns)
        if first == 0:  # else reads go by plans that were made for an empty table
            await connection.execute("ANALYZE vm_forecasts")


async def vms_are_foreseen(connection: Connection, day: date) -> bool:
    exists: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM vm_forecasts WHERE day = $1)", day)
    return exists


async def score_nodes(connection: Connection, hour: datetime) -> None:
    """Compare the forecasts of hours before ``hour`` with what came."""
    await connection.execute(NODE_CAME, hour - LOOK_BACK, hour)
    await connection.execute(NODE_SCORES, hour - LOOK_BACK, hour, ForecastKind.NODE_HOUR)


async def score_vms(connection: Connection, today: date) -> None:
    """Compare the forecasts whose seven days are over with what came."""
    for day in (today - timedelta(days=7), today - timedelta(days=8)):
        await connection.execute(VM_CAME, day)
        await connection.execute(VM_SCORES, day, ForecastKind.VM_WEEK)


async def sums(connection: Connection, kind: ForecastKind, since: datetime) -> ScoreSums:
    """Return the sums of all scores since a time."""
    row = await connection.fetchrow(
        "SELECT " + ", ".join(f"coalesce(sum({field}), 0) AS {field}" for field in FIELDS)
        + " FROM forecast_scores WHERE kind = $1 AND at > $2",
        kind, since,
    )  # fmt: skip
    return ScoreSums(**dict(row or {}))


class ModelState(NamedTuple):
    """Since when a model is set aside (None: it is not), and what it was judged by."""

    aside_since: datetime | None = None
    reason: str = ""


async def models(connection: Connection) -> dict[ForecastKind, ModelState]:
    """Return how the model of each kind stands."""
    rows = await connection.fetch("SELECT kind, aside_since, reason FROM forecast_models")
    known = {row["kind"]: ModelState(row["aside_since"], row["reason"]) for row in rows}
    return {kind: known.get(kind, ModelState()) for kind in ForecastKind}


async def judged(connection: Connection, kind: ForecastKind, verdict: ModelVerdict) -> None:
    """Store whether a model is set aside; since when stays."""
    await connection.execute(
        "INSERT INTO forecast_models AS m (kind, aside_since, reason)"
        " VALUES ($1, CASE WHEN $2::bool THEN now() END, $3) ON CONFLICT (kind) DO UPDATE SET"
        " aside_since = CASE WHEN $2::bool THEN coalesce(m.aside_since, now()) END, reason = excluded.reason",
        kind, verdict.aside, verdict.reason,
    )  # fmt: skip


async def accuracies(connection: Connection, now: datetime, days: int = SCORED_DAYS) -> list[ForecastAccuracy]:
    """Return how good the forecasts of each kind were over the last days."""
    since, states = now - timedelta(days=days), await models(connection)
    return [accuracy(kind, since, await sums(connection, kind, since), *states[kind]) for kind in ForecastKind]


async def of_nodes(connection: Connection, names: Iterable[str], now: datetime) -> dict[str, NodeForecast]:
    """Return the newest forecast of each of these nodes that has one which is not too old."""
    rows = await connection.fetch(
        "SELECT f.* FROM unnest($1::text[]) AS n (name), LATERAL"
        " (SELECT * FROM node_forecasts WHERE node = n.name AND hour > $2 ORDER BY hour DESC LIMIT 1) f",
        list(names),
        now - FRESH,
    )
    kind = ForecastKind.NODE_HOUR
    return {
        row["node"]: NodeForecast(
            row["hour"], *_peaks(row), row["memory_mib"], ForecastModel(row["model"]), row["known_hours"],
            row["made_at"],
            why(kind, ForecastModel(row["model"]), row["known_hours"], KNOWN_HOURS_MIN, row["learned"] is not None),
        )
        for row in rows
    }  # fmt: skip


async def of_vms(connection: Connection, ids: Iterable[str], now: datetime) -> dict[str, VmForecast]:
    """Return the newest forecast of each of these VMs that has one which is not too old."""
    rows = await connection.fetch(
        "SELECT f.* FROM unnest($1::text[]) AS v (id), LATERAL"
        " (SELECT * FROM vm_forecasts WHERE vm = v.id AND day > $2 ORDER BY day DESC LIMIT 1) f",
        list(ids),
        (now - FRESH_DAYS).date(),
    )
    kind = ForecastKind.VM_WEEK
    return {
        row["vm"]: VmForecast(
            row["day"], *_peaks(row), ForecastModel(row["model"]), row["known_days"], row["made_at"],
            why(kind, ForecastModel(row["model"]), row["known_days"], KNOWN_DAYS_MIN, row["learned"] is not None),
        )
        for row in rows
    }  # fmt: skip


def _peaks(row: asyncpg.Record) -> tuple[float, float | None, float | None]:
    peak, lower, upper = (None if row[field] is None else round(row[field], 4) for field in ("peak", "lower", "upper"))
    assert peak is not None
    return peak, lower, upper


class RoundSummary(msgspec.Struct, frozen=True):
    """A round of forecasts."""

    took_s: float
    nodes: int
    vms: int
    fit_s: float = 0.0


async def round_is_made(connection: Connection, hour: datetime) -> bool:
    """Say whether the round of an hour was made."""
    made: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM forecast_rounds WHERE hour = $1)", hour)
    return made


async def last_round(connection: Connection) -> tuple[datetime, float] | None:
    """Return when the last round was made, and how long it took in seconds."""
    row = await connection.fetchrow("SELECT made_at, took_s FROM forecast_rounds ORDER BY hour DESC LIMIT 1")
    return None if row is None else (row["made_at"], row["took_s"])


async def round_made(connection: Connection, hour: datetime, summary: RoundSummary) -> None:
    await connection.execute(
        "INSERT INTO forecast_rounds (hour, took_s, nodes, vms) VALUES ($1, $2, $3, $4) ON CONFLICT (hour) DO NOTHING",
        hour, summary.took_s, summary.nodes, summary.vms,
    )  # fmt: skip
