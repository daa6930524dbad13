"""Leases of nodes: heartbeats, what others see of them, and whose VMs may be started elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.model.lease import LEASE_S, MARGIN_S, STEADY_S, VOTERS_MAX, Sign
from novacron.store.database import Connection

ANOTHER_HOST_S = LEASE_S + MARGIN_S
"""For how long a node that was heard keeps another host from its place: until it surely runs no highly available VM any
more. A host that is booted again takes about as long."""
SIGN_S = 8.0
"""How long it counts that a node was seen by another one."""

GENERATION = "(random() * 9007199254740991)::bigint"
"""Of a node's heartbeats, in SQL. Not counted: an older database that is put back would count to the same number again,
and take heartbeats for another's."""


async def another_host(connection: Connection, node: str, boot: str) -> bool:
    """Say whether a node was heard a moment ago from a host that was booted at another time than this one."""
    elsewhere: bool | None = await connection.fetchval(
        "SELECT boot <> $2 AND renewed_at > clock_timestamp() - make_interval(secs => $3) FROM node_leases"
        " WHERE node = $1 AND boot <> ''",
        node, boot, ANOTHER_HOST_S,
    )  # fmt: skip
    return bool(boot and elsewhere)


async def begin(connection: Connection, node: str, damaged: Sequence[str] = (), boot: str = "") -> int:
    """A node has connected: return the generation that its heartbeats belong to. Only those renew its lease: a node
    that connects again and again, and says nothing, has none. ``damaged``: the VMs of which it can't read what it has
    written down; ``boot``: what tells this start of its host from others."""
    await connection.execute(
        f"INSERT INTO node_leases (node, renewed_at, generation) VALUES ($1, clock_timestamp(), {GENERATION})"
        " ON CONFLICT DO NOTHING",
        node,
    )
    generation: int = await connection.fetchval(
        "UPDATE node_leases SET record_damaged = EXISTS (SELECT FROM unnest($2::text[]) AS d (vm)"
        " WHERE NOT EXISTS (SELECT FROM unreconciled_vms u WHERE u.vm = d.vm AND u.node = $1"
        " AND u.proven))"
        ", boot = $3 WHERE node = $1 RETURNING generation",
        node, list(damaged), boot,
    )  # fmt: skip
    return generation


async def begin_again(connection: Connection) -> None:
    """Let every node connect again before its heartbeats count: what each said when it connected, it said to a database
    that was replaced since."""
    await connection.execute(f"UPDATE node_leases SET generation = {GENERATION}")


class Beat(msgspec.Struct, frozen=True):
    """A heartbeat. ``hears_until``: when, on this process's clock, the node surely hears us yet; ``voters``: by whose
    word it would go on without us; ``seen``: whom it has heard from, and whether those hear nothing from us."""

    node: str
    generation: int
    hears_until: float | None = None
    steady_s: float = 0.0
    voters: tuple[str, ...] = ()
    seen: tuple[tuple[str, bool], ...] = ()


async def renew(connection: Connection, beats: Sequence[Beat], now: float) -> set[str]:
    """Store heartbeats, before they are acknowledged; ``now`` is what this process's clock says.

    Return the nodes of which one was stored: the VMs of others were given away since they connected, and they have to
    be told everything anew.
    """
    rows = await connection.fetch(
        "UPDATE node_leases l SET renewed_at = clock_timestamp(), fenced_at = NULL, cut_off = false,"
        " voters = string_to_array(b.voters, ','),"
        " steady_since = clock_timestamp() - make_interval(secs => b.steady_s),"
        " hears_until = clock_timestamp() + make_interval(secs => b.hears_s)"
        " FROM unnest($1::text[], $2::bigint[], $3::float[], $4::float[], $5::text[])"
        " AS b (node, generation, hears_s, steady_s, voters)"
        " WHERE l.node = b.node AND l.generation = b.generation RETURNING l.node",
        [beat.node for beat in beats],
        [beat.generation for beat in beats],
        [None if beat.hears_until is None else beat.hears_until - now for beat in beats],
        [beat.steady_s for beat in beats],
        [",".join(beat.voters) for beat in beats],
    )
    seen = {(node, beat.node): silent for beat in beats for node, silent in beat.seen}
    if seen:
        await connection.execute(
            "INSERT INTO node_signs (node, seen_by, seen_at, silent)"
            " SELECT s.node, s.seen_by, clock_timestamp(), s.silent"
            " FROM unnest($1::text[], $2::text[], $3::boolean[]) AS s (node, seen_by, silent)"
            " WHERE EXISTS (SELECT FROM nodes n WHERE n.name = s.node)"
            " AND EXISTS (SELECT FROM nodes n WHERE n.name = s.seen_by)"
            " ON CONFLICT (node, seen_by) DO UPDATE SET seen_at = clock_timestamp(), silent = excluded.silent",
            [node for node, _ in seen], [by for _, by in seen], list(seen.values()),
        )  # fmt: skip
    return {row["node"] for row in rows}


async def neighbours(connection: Connection) -> list[tuple[str, str]]:
    """Return the name and DWCP endpoint of every node that has one and was accepted, the oldest first."""
    rows = await connection.fetch(
        "SELECT name, status -> 'inventory' ->> 'dwcp_endpoint' AS endpoint FROM nodes"
        " WHERE status -> 'inventory' ->> 'dwcp_endpoint' IS NOT NULL"
        " AND spec -> 'accepted' IS DISTINCT FROM 'false' ORDER BY created_at, name"
    )
    return [(row["name"], row["endpoint"]) for row in rows]


def voters_of(every: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of all nodes, the oldest first, by whose word others may go on."""
    return list(every[:VOTERS_MAX])


class Silent(msgspec.Struct, frozen=True):
    """A node whose lease is over, and what others say of it."""

    node: str
    generation: int
    sign: Sign
    seen_by: tuple[str, ...]
    silent_s: float
    voters: tuple[str, ...]
    fenced: bool


async def over(connection: Connection) -> list[Silent]:
    """Return the nodes whose lease is over that still own highly available VMs which should run."""
    rows = await connection.fetch(
        """
        SELECT l.node, l.generation, l.voters, l.fenced_at IS NOT NULL AS fenced,
               extract(epoch FROM clock_timestamp() - l.renewed_at)::float AS silent_s,
               (SELECT array_agg(seen_by ORDER BY seen_by) FROM node_signs s
                WHERE s.node = l.node AND seen_at > clock_timestamp() - make_interval(secs => $2)) AS seen_by,
               (SELECT bool_and(silent) FROM node_signs s
                WHERE s.node = l.node AND seen_at > clock_timestamp() - make_interval(secs => $2)) AS all_silent
        FROM node_leases l
        WHERE l.renewed_at < clock_timestamp() - make_interval(secs => $1)
          AND EXISTS (SELECT FROM vms v WHERE v.node = l.node AND (v.spec ->> 'ha')::bool AND NOT v.deleting)
        ORDER BY l.node
        """,
        LEASE_S + MARGIN_S,
        SIGN_S,
    )
    silent = []
    for row in rows:
        seen_by = tuple(row["seen_by"] or ())
        sign = Sign.DEAD if not seen_by else Sign.ISOLATED if row["all_silent"] else Sign.PARTITIONED
        silent.append(
            Silent(row["node"], row["generation"], sign, seen_by, row["silent_s"], tuple(row["voters"]), row["fenced"])
        )
    return silent


async def dead(connection: Connection) -> set[str]:
    """Return the nodes whose lease is over, and which no other node has heard from lately either."""
    rows = await connection.fetch(
        "SELECT node FROM node_leases l WHERE renewed_at < clock_timestamp() - make_interval(secs => $1)"
        " AND NOT EXISTS (SELECT FROM node_signs s WHERE s.node = l.node"
        " AND seen_at > clock_timestamp() - make_interval(secs => $2))",
        LEASE_S + MARGIN_S, SIGN_S,
    )  # fmt: skip
    return {row["node"] for row in rows}


async def steady(connection: Connection) -> set[str]:
    """Return the nodes that have heard from us all the while, and hear us yet."""
    rows = await connection.fetch(
        "SELECT node FROM node_leases WHERE hears_until > clock_timestamp()"
        " AND steady_since < clock_timestamp() - make_interval(secs => $1)",
        STEADY_S,
    )
    return {row["node"] for row in rows}


async def take_over(connection: Connection, node: str) -> bool:
    """Say whether a node's lease is still over, and see to it that it is not renewed as it was.

    In the same transaction its VMs may be given to others.
    """
    done = await connection.execute(
        f"UPDATE node_leases SET generation = {GENERATION}"
        " WHERE node = $1 AND renewed_at < clock_timestamp() - make_interval(secs => $2)",
        node,
        LEASE_S + MARGIN_S,
    )
    return done == "UPDATE 1"


async def fenced(connection: Connection, node: str, *, cut_off: bool, silent_s: float = 0.0) -> None:
    """Store that a node was fenced since it was heard last, and whether the fence command has ``cut_off`` it.

    A node that was heard within the last ``silent_s`` seconds, since fencing began, is left as it is.
    """
    await connection.execute(
        "UPDATE node_leases SET fenced_at = clock_timestamp(), cut_off = $2"
        " WHERE node = $1 AND renewed_at < clock_timestamp() - make_interval(secs => $3)",
        node, cut_off, silent_s,
    )  # fmt: skip


class Silence(msgspec.Struct, frozen=True):
    """What is known of a node that is said to be gone. ``over``: its lease is, so its highly available VMs have ended.
    ``cut_off``: the fence command has cut it off since it was heard last, so all have."""

    silent_s: float
    over: bool
    cut_off: bool


async def silence(connection: Connection, node: str) -> Silence | None:
    """Return what is known of a node's silence, None if it was never connected."""
    row = await connection.fetchrow(
        "SELECT extract(epoch FROM clock_timestamp() - renewed_at)::float AS silent_s, cut_off FROM node_leases"
        " WHERE node = $1 FOR UPDATE",
        node,
    )
    return None if row is None else Silence(row["silent_s"], row["silent_s"] > LEASE_S + MARGIN_S, row["cut_off"])
