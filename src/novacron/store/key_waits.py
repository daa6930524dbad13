"""What the rotation of a key waits for: servers and nodes that do not know a generation yet, or need the one before."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from novacron.model import limits
from novacron.model.key import KeyName, KeyPhase
from novacron.store.certificates import REJOIN
from novacron.store.database import Connection
from novacron.store.keys import SPREAD_S, StoredKey

LIVE_S = 30.0
"""A server that has not said for so long what it has is away: it takes everything over when it starts."""

SEALED_ANEW_S = 60.0
"""Several times as long as servers take to seal anew what one of them sealed while it did not know yet that another
generation is used."""


async def waits_for(connection: Connection, phase: KeyPhase, generations: Sequence[StoredKey]) -> list[str]:
    """Return what keeps a rotation from going on, or from being finished. ``generations`` of one key, oldest first."""
    newest = generations[-1]
    match newest.name, phase:
        case _, KeyPhase.STEADY:
            return []
        case KeyName.CA, KeyPhase.SPREADING:
            return await _distrusting(connection, newest.mark)
        case KeyName.CA, KeyPhase.OVERLAPPING:
            return await _certified_otherwise(connection, newest.mark)
        case KeyName.CA, _:
            return await _servers_certified_otherwise(connection, newest.mark)
        case _, KeyPhase.SPREADING:
            return [f"servers load generation {newest.generation} within {SPREAD_S:.0f} s"]
    assert newest.used_from is not None
    return await _older(connection, newest.name, newest.used_from)


async def _older(connection: Connection, name: KeyName, used_from: datetime) -> list[str]:
    """Return what may have been made with the generation before, and is still to be checked."""
    if name is KeyName.PAGE:
        rows = await connection.fetch(
            "SELECT id FROM migrations WHERE finished_at IS NULL AND created_at < $1 ORDER BY id", used_from
        )
        return [f"migration {row['id']} started with the previous generation" for row in rows]
    if name is KeyName.SEAL:
        return await _until(connection, used_from, limits.LOGIN_STEP_S_MAX, "logins that started earlier")
    if name is KeyName.FACTOR:
        count = await connection.fetchval(
            "SELECT count(*) FROM second_factors WHERE kind = 'totp' AND sealed_at < $1", used_from
        )
        if count:
            return [f"servers are sealing the secrets of {count} authenticator apps with the new generation"]
        return await _until(connection, used_from, SEALED_ANEW_S, "secrets that a server was sealing at that moment")
    return await _until(connection, used_from, limits.IDEMPOTENCY_RETENTION_S, "repeats of earlier requests")


async def _until(connection: Connection, used_from: datetime, keep_s: float, what: str) -> list[str]:
    until = await connection.fetchval(
        "SELECT until FROM (SELECT $1::timestamptz + make_interval(secs => $2) AS until) u"
        " WHERE until > clock_timestamp()",
        used_from, float(keep_s),
    )  # fmt: skip
    return [] if until is None else [f"{what} are possible until {until:%Y-%m-%d %H:%M} UTC"]


async def _distrusting(connection: Connection, mark: str) -> list[str]:
    """Return which servers and connected nodes do not trust a CA yet, and which servers lack the seal that belongs to
    it."""
    servers = await connection.fetch(
        "SELECT server FROM server_keys WHERE seen_at > clock_timestamp() - make_interval(secs => $2)"
        " AND (NOT $1 = ANY(trusts) OR EXISTS (SELECT FROM key_seals k WHERE k.mark <> server_keys.seal))"
        " ORDER BY server",
        mark, LIVE_S,
    )  # fmt: skip
    nodes = await connection.fetch(
        "SELECT name FROM nodes WHERE status -> 'ready' = 'true'"
        " AND NOT coalesce(status -> 'trusted_authorities', '[]') ? $1 ORDER BY name",
        mark,
    )
    return [
        *(f"server {row['server']} does not trust the new CA yet" for row in servers),
        *(f"node {row['name']} does not trust the new CA yet" for row in nodes),
    ]


async def _certified_otherwise(connection: Connection, mark: str) -> list[str]:
    """Return which nodes have a certificate that another CA has issued, and that has not ended."""
    rows = await connection.fetch(
        "SELECT name, status -> 'ready' = 'true' AS ready FROM nodes"
        " WHERE coalesce(status ->> 'certificate_authority', '') <> $1"
        " AND (status ->> 'certificate_ends_at_s')::float8 > extract(epoch FROM clock_timestamp()) ORDER BY name",
        mark,
    )
    away = "is not connected and has a certificate of the previous CA: start its agent; or, after the rotation: "
    return [
        f"node {row['name']} "
        + ("has a certificate of the previous CA" if row["ready"] else away + REJOIN.format(name=row["name"]))
        for row in rows
    ]


async def _servers_certified_otherwise(connection: Connection, mark: str) -> list[str]:
    rows = await connection.fetch(
        "SELECT server FROM server_keys WHERE seen_at > clock_timestamp() - make_interval(secs => $2)"
        " AND (authority <> $1 OR EXISTS (SELECT FROM key_seals k WHERE k.mark <> server_keys.seal)) ORDER BY server",
        mark, LIVE_S,
    )  # fmt: skip
    return [f"server {row['server']} has a certificate of the previous CA" for row in rows]
