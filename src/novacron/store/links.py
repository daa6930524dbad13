"""Budgets of the links between sites."""

from __future__ import annotations

import asyncpg
import msgspec

from novacron.model.errors import NotFound, PreconditionFailed
from novacron.model.link_sharing import Link, LinkSpec, link_id
from novacron.store import events
from novacron.store.database import Connection
from novacron.store.rows import decode_each, object_of


def _link(row: asyncpg.Record | None) -> Link:
    return object_of(Link, row)


async def all(connection: Connection) -> list[Link]:
    """Return the budgets of all links. One that can't be decoded is left out: its link has no limit."""
    return decode_each("links", await connection.fetch("SELECT * FROM links ORDER BY id"), _link)


async def put(connection: Connection, site: str, other: str, spec: LinkSpec, if_match: int | None, actor: str) -> Link:
    """Set the budget of the link between two sites. Raises PreconditionFailed."""
    id, sites = link_id(site, other), sorted((site, other))
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"link {id}")
    revision = await connection.fetchval("SELECT revision FROM links WHERE id = $1", id)
    if if_match is not None and if_match != revision:
        raise PreconditionFailed(f"link {id} is at revision {revision}", field="If-Match", hint="read it again")
    row = await connection.fetchrow(
        "INSERT INTO links (id, sites, spec) VALUES ($1, $2, $3)"
        " ON CONFLICT (id) DO UPDATE SET spec = excluded.spec RETURNING *",
        id,
        sites,
        msgspec.to_builtins(spec),
    )
    what = f"{spec.rate_bytes_per_s * 8 / 1e6:g} Mbit/s, {len(spec.schedule)} time windows with another limit"
    await events.record(connection, events.NewEvent("link", id, id, "Configured", what, actor))
    return _link(row)


async def remove(connection: Connection, site: str, other: str, actor: str) -> None:
    """Let migrations between two sites use all there is. Raises NotFound."""
    id = link_id(site, other)
    if await connection.fetchval("DELETE FROM links WHERE id = $1 RETURNING id", id) is None:
        raise NotFound(f"there is no limit on the link between {site!r} and {other!r}", hint="see: novacron link list")
    await events.record(connection, events.NewEvent("link", id, id, "Removed", "limit removed", actor))
