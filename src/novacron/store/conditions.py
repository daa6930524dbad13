"""Conditions of nodes, as they are stored: kept up to date, with an event at each change that nothing else tells."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

import asyncpg
import msgspec

from novacron.model import condition as conditions
from novacron.model.condition import NodeCondition, NodeFacts, PeersSeen, ReportedCondition
from novacron.model.node import NodeStatus
from novacron.store import events, nodes, unreconciled
from novacron.store.database import Connection
from novacron.store.rows import decode_each

ROWS = f"""
    SELECT n.name, n.status - 'inventory' AS status, l.renewed_at, clock_timestamp() AS now,
           coalesce({unreconciled.NOT_HEARD}, false) AS unheard
    FROM nodes n LEFT JOIN node_leases l ON l.node = n.name LEFT JOIN database_restored r ON true
"""
"""Inventories are large, and decide on no condition."""


class _NodeRow(msgspec.Struct, frozen=True):
    name: str
    status: NodeStatus
    renewed_at: datetime | None
    now: datetime
    unheard: bool


def _row(row: asyncpg.Record) -> _NodeRow:
    return msgspec.convert(dict(row), _NodeRow)


async def outdated(connection: Connection) -> list[str]:
    """Return the nodes whose conditions are no longer as they are stored."""
    rows = decode_each("nodes", await connection.fetch(ROWS + "ORDER BY n.name"), _row, key="name")
    heard = {row.name for row in rows if row.status.ready}
    return [row.name for row in rows if _now(row, row.status, heard, row.status.conditions) != row.status.conditions]


async def refresh(connection: Connection, name: str) -> None:
    """Bring a node's conditions up to date. A node that is gone is left out."""
    await _store(connection, name, None)


async def record(
    connection: Connection, name: str, reported: Iterable[ReportedCondition], peers: PeersSeen
) -> None:  # fmt: skip
    """Store what a node's agent has found."""
    await _store(connection, name, (tuple(reported), peers))


async def _store(
    connection: Connection, name: str, report: tuple[tuple[ReportedCondition, ...], PeersSeen] | None
) -> None:
    rows = await connection.fetch(ROWS + "WHERE n.name = $1 FOR UPDATE OF n", name)
    row = next(iter(decode_each("nodes", rows, _row, key="name")), None)
    if row is None:
        return
    before = row.status.conditions
    reported, peers = (before, row.status.peers) if report is None else report
    status = msgspec.structs.replace(row.status, peers=peers)
    now = _now(row, status, await _heard(connection, peers), reported)
    if now == before and status.peers == row.status.peers:
        return
    await nodes.set_conditions(connection, name, status.peers, now)
    for changed in conditions.worth_an_event(before, now):
        await events.record(connection, events.NewEvent("node", name, name, changed.reason, changed.message))


async def _heard(connection: Connection, peers: PeersSeen | None) -> set[str]:
    """Return those of the peers that do not answer that the control plane hears."""
    unreachable = [] if peers is None else [peer.name for peer in peers.unreachable]
    if not unreachable:
        return set()
    rows = await connection.fetch(
        "SELECT name FROM nodes WHERE name = ANY($1) AND status -> 'ready' = 'true'", unreachable
    )
    return {row["name"] for row in rows}


def _now(
    row: _NodeRow, status: NodeStatus, heard: Collection[str], reported: Iterable[ReportedCondition]
) -> tuple[NodeCondition, ...]:
    """Return a node's conditions as they are now."""
    facts = NodeFacts(
        row.name, status.ready, row.renewed_at, status.clock_skew_s, status.certificate_ends_at_s, status.peers,
        frozenset(heard), row.now, status.unreconciled_vms, row.unheard,
    )  # fmt: skip
    return conditions.dated(row.status.conditions, conditions.evaluate(facts, reported), row.now)
