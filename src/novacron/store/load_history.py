"""The load of past hours: a row for each node or VM and day (UTC), with an entry for each hour."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TypeVar

from novacron.model.load_hours import NodeHour, PastHour, VmHour
from novacron.store.database import Connection

BATCH = 2000
"""Rows that one statement writes."""
PRUNED_AT_ONCE_MAX = 20_000

Hour = TypeVar("Hour", NodeHour, VmHour)

NODE_ROW = "array_fill(NULL::real, ARRAY[24])"
STORE_NODES = f"""
    INSERT INTO node_load_days AS d (node, day, peak, mean, last, quarter, second, memory_mib)
    SELECT n.name, $2, {", ".join([NODE_ROW] * 5)}, array_fill(NULL::integer, ARRAY[24])
    FROM unnest($1::text[]) AS u (name) JOIN nodes n ON n.name = u.name
    ON CONFLICT (node, day) DO NOTHING
"""
SET_NODES = """
    UPDATE node_load_days d SET
        peak[$2::int] = greatest(d.peak[$2], u.peak), mean[$2] = u.mean, last[$2] = u.last, quarter[$2] = u.quarter,
        second[$2] = u.second, memory_mib[$2] = l.memory_mib
    FROM unnest($3::text[], $4::real[], $5::real[], $6::real[], $7::real[], $8::real[])
        AS u (node, peak, mean, last, quarter, second) JOIN node_loads l ON l.node = u.node
    WHERE d.node = u.node AND d.day = $1
"""
STORE_VMS = """
    INSERT INTO vm_load_days AS d (vm, day, peak_percent, hours, peaks_percent, means_percent)
    SELECT v.id, $1, u.peak, 1, row.peaks, row.means
    FROM unnest($3::text[], $4::smallint[], $5::smallint[]) AS u (vm, peak, mean) JOIN vms v ON v.id = u.vm,
        LATERAL (SELECT
            array_agg(CASE WHEN hour = $2::int THEN u.peak END ORDER BY hour) AS peaks,
            array_agg(CASE WHEN hour = $2 THEN u.mean END ORDER BY hour) AS means
            FROM generate_series(1, 24) AS hour) row
    ON CONFLICT (vm, day) DO UPDATE SET
        peak_percent = greatest(d.peak_percent, excluded.peak_percent),
        hours = d.hours + (d.peaks_percent[$2] IS NULL)::int,
        peaks_percent[$2] = greatest(d.peaks_percent[$2], excluded.peak_percent),
        means_percent[$2] = excluded.means_percent[$2]
"""
READ_NODE = """
    SELECT day, hour, peak[hour], mean[hour] FROM node_load_days, generate_series(1, 24) AS hour
    WHERE node = $1 AND day >= $2 AND peak[hour] IS NOT NULL ORDER BY day, hour
"""
READ_VM = """
    SELECT day, hour, peaks_percent[hour] / 100.0::float, means_percent[hour] / 100.0::float
    FROM vm_load_days, generate_series(1, 24) AS hour
    WHERE vm = $1 AND day >= $2 AND peaks_percent[hour] IS NOT NULL ORDER BY day, hour
"""


def place(hour_s: int) -> tuple[date, int]:
    """Return the day of an hour, and where it is in that day's row, from 1."""
    at = datetime.fromtimestamp(hour_s, UTC)
    return at.date(), at.hour + 1


async def store_nodes(connection: Connection, hours: Sequence[NodeHour]) -> None:
    """Store hours of nodes, all of one hour, with the memory of the VMs that are placed on them now. Nodes that are
    gone are left out."""
    if not hours:
        return
    day, hour = place(hours[0].hour_s)
    names = [item.node for item in hours]
    await connection.execute(STORE_NODES, names, day)
    columns = [[getattr(item, field) for item in hours] for field in ("peak", "mean", "end", "quarter", "second")]
    await connection.execute(SET_NODES, day, hour, names, *columns)


async def store_vms(connection: Connection, hours: Sequence[VmHour]) -> None:
    """Store hours of VMs, all of one hour. VMs that are gone are left out."""
    if not hours:
        return
    day, hour = place(hours[0].hour_s)
    await connection.execute(
        STORE_VMS, day, hour, [item.vm for item in hours], [item.peak_percent for item in hours],
        [item.mean_percent for item in hours],
    )  # fmt: skip


async def of_node(connection: Connection, name: str, since: date) -> list[PastHour]:
    """Return the known hours of a node from a day on."""
    return [_past(*row) for row in await connection.fetch(READ_NODE, name, since)]


async def of_vm(connection: Connection, id: str, since: date) -> list[PastHour]:
    """Return the known hours of a VM from a day on."""
    return [_past(*row) for row in await connection.fetch(READ_VM, id, since)]


def _past(day: date, hour: int, peak: float, mean: float) -> PastHour:
    return PastHour(datetime.combine(day, time(hour - 1), UTC), round(peak, 3), round(mean, 3))


def batches(hours: Sequence[Hour]) -> list[list[Hour]]:
    """Return what one statement each writes: hours of one time, a limited number of them, in an order in which servers
    that write at the same time do not wait for one another in a circle."""
    of_time: dict[int, list[Hour]] = {}
    for item in sorted(hours):
        of_time.setdefault(item.hour_s, []).append(item)
    return [hours[i : i + BATCH] for hours in of_time.values() for i in range(0, len(hours), BATCH)]


async def prune(connection: Connection, table: str, column: str, days: int, today: date) -> int:
    """Delete a limited number of rows that are older than so many days; return how many."""
    done = await connection.execute(
        f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("
        f"SELECT ctid FROM {table} WHERE {column} < $1 LIMIT {PRUNED_AT_ONCE_MAX}))",
        today - timedelta(days=days),
    )
    return int(done.split()[-1])
