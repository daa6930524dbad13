"""What VMs usually use at each hour of the day (UTC), in processors: made once a day, read when VMs are to be moved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import NamedTuple

import asyncpg

from novacron.model.overload import HOURS, HourlyUse
from novacron.store.database import Connection

BATCH = 2000
"""VMs whose days are read at once."""
KEPT_DAYS = 14
"""An older profile does not count, and is removed: nothing is known of the VM since."""

NEW = "new_profiles"
STORE = f"""
    INSERT INTO vm_profiles (vm, day, means, variances)
    SELECT n.vm, n.day, n.means, n.variances FROM {NEW} n JOIN vms v ON v.id = n.vm
    ON CONFLICT (vm) DO UPDATE SET day = excluded.day, means = excluded.means, variances = excluded.variances
"""
CAPPED = "least(1, c.vcpus / nullif(p.means[{hour}], 0))"
USUAL = ", ".join(
    f"sum(coalesce(p.means[{hour}] * {CAPPED.format(hour=hour)}, l.cpus))" for hour in range(1, HOURS + 1)
)
SPREADS = ", ".join(
    f"sum(coalesce(p.variances[{hour}] * {CAPPED.format(hour=hour)} ^ 2, ($1 * l.cpus) ^ 2))"
    for hour in range(1, HOURS + 1)
)
USES = f"""
    SELECT coalesce(m.target, v.node) AS node, sum(l.cpus)::float AS now, count(*)::int AS vms,
        (count(*) FILTER (WHERE p.vm IS NULL))::int AS unusual,
        ARRAY[{USUAL}]::float[] AS means, ARRAY[{SPREADS}]::float[] AS variances
    FROM vms v JOIN vm_loads l ON l.vm = v.id LEFT JOIN vm_profiles p ON p.vm = v.id AND p.day >= $2
        LEFT JOIN migrations m ON m.id = v.migration AND m.finished_at IS NULL
        CROSS JOIN LATERAL (SELECT (v.spec ->> 'vcpus')::float AS vcpus OFFSET 0) c
    WHERE v.node IS NOT NULL AND v.status ->> 'state' IN ('starting', 'running', 'paused', 'stopping', 'unknown')
    GROUP BY 1
"""
"""A VM that is on its way counts where it is going to: what it does on the other node is over soon. No more is
usual of a VM than it has processors (as in ``HourlyUse.capped``)."""


class NewProfile(NamedTuple):
    vm: str
    day: date
    means: list[float]
    variances: list[float]


class NodeUses(NamedTuple):
    """What the VMs of each node use; of how many VMs, and of how many nothing usual is known."""

    of: dict[str, HourlyUse]
    vms: int
    unusual: int


async def batches(connection: Connection, day: date) -> list[list[str]]:
    """Return the VMs without a profile of a day, a limited number together."""
    rows = await connection.fetch(
        "SELECT v.id FROM vms v WHERE NOT EXISTS (SELECT FROM vm_profiles p WHERE p.vm = v.id AND p.day = $1)"
        " ORDER BY v.id",
        day,
    )
    ids = [row["id"] for row in rows]
    return [ids[first : first + BATCH] for first in range(0, len(ids), BATCH)]


async def days(connection: Connection, vms: Sequence[str], first: date, today: date) -> list[asyncpg.Record]:
    """Return the hours of VMs, in percent of a processor, a row a day."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT vm, day, means_percent, peaks_percent FROM vm_load_days"
        " WHERE vm = ANY($1) AND day >= $2 AND day < $3"
        " AND cardinality(means_percent) = $4 AND cardinality(peaks_percent) = $4",
        vms, first, today, HOURS,
    )  # fmt: skip
    return rows


async def store(connection: asyncpg.Connection, made: Sequence[NewProfile]) -> None:
    """Store profiles in the place of older ones. VMs that are gone are left out."""
    async with connection.transaction():
        await connection.execute(f"CREATE TEMPORARY TABLE {NEW} (LIKE vm_profiles) ON COMMIT DROP")
        await connection.copy_records_to_table(NEW, records=made, columns=NewProfile._fields)
        await connection.execute(STORE)


async def uses(connection: Connection, unknown_spread: float, today: date) -> NodeUses:
    """Return what the VMs of each node use together. A VM without a profile is taken to go on as in the last hour."""
    rows = await connection.fetch(USES, unknown_spread, oldest(today))
    return NodeUses(
        {row["node"]: HourlyUse(row["now"], row["means"], row["variances"]) for row in rows},
        sum(row["vms"] for row in rows), sum(row["unusual"] for row in rows),
    )  # fmt: skip


async def of_vms(connection: Connection, vms: Iterable[str], today: date) -> dict[str, tuple[list[float], list[float]]]:
    """Return means and variances of the VMs that have a profile."""
    rows = await connection.fetch(
        "SELECT vm, means, variances FROM vm_profiles WHERE vm = ANY($1) AND day >= $2", list(vms), oldest(today)
    )
    return {row["vm"]: (row["means"], row["variances"]) for row in rows}


def oldest(today: date) -> date:
    """Return the day of the oldest profile that counts."""
    return today - timedelta(days=KEPT_DAYS)
