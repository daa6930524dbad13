"""What sites, pools, quotas and the database have had each day, and when they are full."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.capacity_forecast import CapacityForecast, CapacityResource
from novacron.model.project import Quota
from novacron.store import nodes
from novacron.store.database import Connection

COUNTED_QUOTAS = ("vms", "vcpus", "memory_mib", "disk_mib", "snapshots", "networks")
"""Of which a project's usage is counted as it changes."""
assert set(COUNTED_QUOTAS) <= set(Quota.__struct_fields__)

HUGE_2M_OF_NODE, HUGE_1G_OF_NODE = (
    f"coalesce((n.status #>> '{{inventory,{field}}}')::float, 0)" for field in ("huge_2m_mib", "huge_1g_mib")
)
HUGE_IN_USE = "coalesce(o.huge_2m_mib + o.huge_1g_mib, 0)"
MEMORY_OF_NODE = (
    f"((n.status #>> '{{inventory,memory_mib}}')::float - {limits.NODE_MEMORY_RESERVE_MIB}"
    f" - {HUGE_2M_OF_NODE} - {HUGE_1G_OF_NODE}) * coalesce((n.spec ->> 'memory_overcommit')::float, 1)"
)
VCPU_OVERCOMMIT = f"coalesce((n.spec ->> 'vcpu_overcommit')::float, {limits.VCPU_OVERCOMMIT_DEFAULT})"
VCPUS_OF_NODE = f"(n.status #>> '{{inventory,cpus}}')::float * {VCPU_OVERCOMMIT}"
VCPUS_LEFT_OUT = f"coalesce(o.dedicated_vcpus, 0) * ({VCPU_OVERCOMMIT} - 1)"
"""vCPUs that fewer fit on a node because some of its CPUs are dedicated, each to one."""
COUNTED_NODE = (
    "n.status -> 'inventory' ->> 'memory_mib' IS NOT NULL AND n.spec -> 'accepted' IS DISTINCT FROM 'false'"
    " AND n.spec -> 'cordoned' IS DISTINCT FROM 'true'"
)
"""Its room counts."""


def _of_sites(resource: CapacityResource, used: str, size: str, *, less: str = "0", having: str = "true") -> str:
    """Return what is used and what there is of a resource in each site, in SQL. ``size``: what an empty node has of it;
    ``less``: what it has less as it is; ``having``: which sites are named."""
    return (
        f"SELECT '{resource}', coalesce(n.spec ->> 'site', 'default'), sum({used})::float,"
        f" coalesce(sum({size} - {less}) FILTER (WHERE {COUNTED_NODE}), 0),"
        f" percentile_cont(0.5) WITHIN GROUP (ORDER BY {size}) FILTER (WHERE {COUNTED_NODE})"
        f" FROM nodes n JOIN node_loads l ON l.node = n.name LEFT JOIN ({nodes.OWN_OF_NODES}) o ON o.node = n.name"
        f" GROUP BY 2 HAVING {having}"
    )


def _of_huge_pages(resource: CapacityResource, used: str, size: str) -> str:
    used = f"coalesce(o.{used}, 0)"
    return _of_sites(resource, used, size, having=f"sum({size}) > 0 OR sum({used}) > 0")


POOL = "CASE WHEN p ->> 'kind' = 'shared' THEN p ->> 'name' ELSE n.name || '/' || (p ->> 'name') END"
"""The name of a pool: a shared one is the same on all of its nodes."""
POOLS = f"""
    SELECT DISTINCT ON (2) 'pool', {POOL}, (p ->> 'bytes_total')::float - (p ->> 'bytes_free')::float,
        (p ->> 'bytes_total')::float, NULL::float
    FROM nodes n, jsonb_array_elements(
        CASE WHEN jsonb_typeof(n.status -> 'inventory' -> 'pools') = 'array'
        THEN n.status -> 'inventory' -> 'pools' ELSE '[]' END) AS p
    WHERE n.spec -> 'accepted' IS DISTINCT FROM 'false'
    ORDER BY 2, n.name
"""
QUOTAS = " UNION ALL ".join(
    f"(SELECT 'quota', p.name || '/{field}', u.{field}::float, (p.quota ->> '{field}')::float, NULL::float"
    f" FROM projects p JOIN project_usage u ON u.project = p.name WHERE p.quota ->> '{field}' IS NOT NULL)"
    for field in COUNTED_QUOTAS
)
NOW = (
    "SELECT * FROM ("
    f"({_of_sites(CapacityResource.SITE_MEMORY, f'l.memory_mib - {HUGE_IN_USE}', MEMORY_OF_NODE)})"
    f" UNION ALL ({_of_sites(CapacityResource.SITE_VCPUS, 'l.vcpus', VCPUS_OF_NODE, less=VCPUS_LEFT_OUT)})"
    f" UNION ALL ({_of_huge_pages(CapacityResource.SITE_HUGE_2M, 'huge_2m_mib', HUGE_2M_OF_NODE)})"
    f" UNION ALL ({_of_huge_pages(CapacityResource.SITE_HUGE_1G, 'huge_1g_mib', HUGE_1G_OF_NODE)})"
    f" UNION ALL ({POOLS}) UNION ALL {QUOTAS}"
    " UNION ALL SELECT 'database', '', pg_database_size(current_database())::float, NULL::float, NULL::float"
    ") AS c (resource, name, used, size, usual_node)"
)
DAYS_MAX = 90
"""Older days say little of now."""


async def record(connection: Connection, today: date) -> list[asyncpg.Record]:
    """Store what everything has now, as what it has had today, and return it."""
    rows: list[asyncpg.Record] = await connection.fetch(NOW)
    await connection.execute(
        "INSERT INTO capacity_days (resource, name, day, used, size)"
        " SELECT u.resource, u.name, $1, u.used, u.size"
        " FROM unnest($2::text[], $3::text[], $4::float[], $5::float[]) AS u (resource, name, used, size)"
        " ON CONFLICT (resource, name, day) DO UPDATE SET used = excluded.used, size = excluded.size",
        today, *([row[field] for row in rows] for field in ("resource", "name", "used", "size")),
    )  # fmt: skip
    return rows


async def history(connection: Connection, today: date) -> dict[tuple[str, str], tuple[list[date], list[float]]]:
    """Return what everything has had on the last days, today included: days and amounts, in their order."""
    rows = await connection.fetch(
        "SELECT resource, name, array_agg(day ORDER BY day) AS days, array_agg(used ORDER BY day) AS used"
        " FROM capacity_days WHERE day > $1::date - $2::int GROUP BY resource, name",
        today, DAYS_MAX,
    )  # fmt: skip
    return {(row["resource"], row["name"]): (row["days"], row["used"]) for row in rows}


async def first_certificate(connection: Connection) -> tuple[str, float] | None:
    """Return the node whose certificate ends first, and when, in seconds since 1970."""
    row = await connection.fetchrow(
        "SELECT name, (status ->> 'certificate_ends_at_s')::float AS ends_s FROM nodes"
        " WHERE (status ->> 'certificate_ends_at_s')::float > 0 ORDER BY 2, 1 LIMIT 1"
    )
    return None if row is None else (row["name"], row["ends_s"])


async def replace(connection: Connection, made: Sequence[CapacityForecast]) -> None:
    """Store forecasts in place of all earlier ones."""
    await connection.execute("DELETE FROM capacity_forecasts")
    await connection.executemany(
        "INSERT INTO capacity_forecasts (resource, name, forecast) VALUES ($1, $2, $3)",
        [(item.resource, item.name, msgspec.to_builtins(item)) for item in made],
    )


async def page(
    connection: Connection, resource: CapacityResource | None, name: str | None, after: tuple[str, str], limit: int
) -> list[CapacityForecast]:
    """Return a limited number of forecasts, by resource and name, after a place in that order. ``name``: only those
    of this site, pool, quota or node."""
    conditions, values = ["(resource, name) > ($1, $2)"], list[Any](after)
    for field, value in (("resource", resource), ("name", name)):
        if value is not None:
            values.append(value)
            conditions.append(f"{field} = ${len(values)}")
    rows = await connection.fetch(
        f"SELECT forecast FROM capacity_forecasts WHERE {' AND '.join(conditions)}"
        f" ORDER BY resource, name LIMIT {limit:d}",
        *values,
    )
    return [msgspec.convert(row["forecast"], CapacityForecast) for row in rows]
