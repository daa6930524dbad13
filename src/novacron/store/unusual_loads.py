"""VMs that are unlike themselves: what they used in the last hour, and what is usual of them in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg

from novacron.model.load_forecast import UnusualLoad, unusual_words
from novacron.store.database import Connection
from novacron.store.load_history import place
from novacron.store.load_profiles import oldest

NEW = "new_unusual"
BUSY_SHARE = 0.9
"""A node whose VMs used so much of its processors in an hour had some of them wait."""
FRESH = timedelta(hours=3)

HOURS_OF_VMS = """
    SELECT l.vm,
        l.means_percent[$2::int] / 100.0::float AS used, b.means_percent[$4::int] / 100.0::float AS used_before,
        p.means[$2] AS usual, p.means[$4] AS usual_before,
        p.variances[$2] AS variance, p.variances[$4] AS variance_before
    FROM vm_load_days l JOIN vm_load_days b ON b.vm = l.vm AND b.day = $3 JOIN vm_profiles p ON p.vm = l.vm
    WHERE l.day = $1 AND p.day >= $5 AND l.means_percent[$2] IS NOT NULL AND b.means_percent[$4] IS NOT NULL
"""
FORGET = f"DELETE FROM vm_unusual_loads u WHERE NOT EXISTS (SELECT FROM {NEW} n WHERE n.vm = u.vm)"
STORE = f"""
    INSERT INTO vm_unusual_loads AS u (vm, since, hour, used, usual, deviation)
    SELECT n.vm, n.since, n.hour, n.used, n.usual, n.deviation FROM {NEW} n JOIN vms v ON v.id = n.vm
    ON CONFLICT (vm) DO UPDATE SET hour = excluded.hour, used = excluded.used, usual = excluded.usual,
        deviation = excluded.deviation,
        since = CASE WHEN (u.used > u.usual) = (excluded.used > excluded.usual) THEN u.since ELSE excluded.since END
"""
OF_VMS = """
    SELECT u.*, u.used > u.usual AND EXISTS (
        SELECT FROM vms v JOIN nodes n ON n.name = v.node
            JOIN node_load_days d ON d.node = n.name AND d.day = (u.hour AT TIME ZONE 'UTC')::date
        WHERE v.id = u.vm AND d.mean[extract(hour FROM u.hour AT TIME ZONE 'UTC')::int + 1]
                >= $3 * (n.status -> 'inventory' ->> 'cpus')::float
            AND EXISTS (SELECT FROM vms o WHERE o.node = n.name AND o.id <> v.id)
    ) AS noisy FROM vm_unusual_loads u WHERE u.vm = ANY($1) AND u.hour > $2
"""


class NewUnusualLoad(NamedTuple):
    """Loads are in processors, on average of the hour that began at ``hour``."""

    vm: str
    since: datetime
    hour: datetime
    used: float
    usual: float
    deviation: float


async def hours_of_vms(connection: Connection, hour: datetime) -> list[asyncpg.Record]:
    """Return what VMs used in the hour that began at ``hour`` and in the one before, and what is usual then."""
    (day, at), (day_before, at_before) = (place(int(each.timestamp())) for each in (hour, hour - timedelta(hours=1)))
    rows: list[asyncpg.Record] = await connection.fetch(
        HOURS_OF_VMS, day, at, day_before, at_before, oldest(hour.date())
    )
    return rows


async def replace(connection: asyncpg.Connection, made: Sequence[NewUnusualLoad]) -> None:
    """Store which VMs are unlike themselves now, and forget all others. Since when stays."""
    async with connection.transaction():
        await connection.execute(f"CREATE TEMPORARY TABLE {NEW} (LIKE vm_unusual_loads) ON COMMIT DROP")
        await connection.copy_records_to_table(NEW, records=made, columns=NewUnusualLoad._fields)
        await connection.execute(FORGET)
        await connection.execute(STORE)


async def ids(connection: Connection, now: datetime) -> frozenset[str]:
    """Return the VMs that are unlike themselves."""
    rows = await connection.fetch("SELECT vm FROM vm_unusual_loads WHERE hour > $1", now - FRESH)
    return frozenset(row["vm"] for row in rows)


async def count(connection: Connection, now: datetime) -> int:
    number: int = await connection.fetchval("SELECT count(*) FROM vm_unusual_loads WHERE hour > $1", now - FRESH)
    return number


async def of_vms(connection: Connection, vms: Iterable[str], now: datetime) -> dict[str, UnusualLoad]:
    """Return what is unusual of these VMs; of those that are as usual, nothing."""
    rows = await connection.fetch(OF_VMS, list(vms), now - FRESH, BUSY_SHARE)
    return {
        row["vm"]: UnusualLoad(
            row["since"], row["hour"], round(row["used"], 3), round(row["usual"], 3), round(row["deviation"], 3),
            row["noisy"], unusual_words(row["used"], row["usual"], row["deviation"], noisy=row["noisy"]),
        )
        for row in rows
    }  # fmt: skip
