"""What keeps objects from what was asked, when that is their node: it is not connected, or it says so."""

from __future__ import annotations

from typing import NamedTuple

from novacron.model.waiting import WaitCode
from novacron.store import events
from novacron.store.database import Connection

ERROR_LENGTH_MAX, CODE_LENGTH_MAX = 500, 40
EVENTS_MAX = 100
"""Objects of one node of which an event says that the node is lost; the node's own event is about all."""


class Dependents(NamedTuple):
    """Objects of a kind that wait for a node. ``$1`` is the node."""

    table: str
    event: str
    """Kind, object, name and project of their events, as columns."""
    where: str


WAITING = (
    Dependents(
        "volumes", "'volume', id, name, project",
        "((node = $1 AND phase IN ('creating', 'deleting'))"
        " OR (detaching AND vm IN (SELECT id FROM vms WHERE node = $1)))",
    ),
    Dependents("imports", "'import', id, spec ->> 'name', project", "node = $1 AND finished_at IS NULL"),
    Dependents("exports", "'vm', vm, vm_name, project", "node = $1 AND phase = 'making'"),
    Dependents("backups", "'vm', vm, vm_name, project", "node = $1 AND phase IN ('making', 'verifying', 'deleting')"),
    Dependents(
        "snapshots", "'vm', vm, vm_name, project",
        "phase IN ('creating', 'reverting', 'deleting') AND vm IN (SELECT id FROM vms WHERE node = $1)",
    ),
)  # fmt: skip
CODE = WaitCode.NODE_LOST


def hindrance(error: str, code: str) -> str:
    """Return the code of what a node says, none if nothing is wrong. Agents of before say no code."""
    if not error:
        return ""
    return code if code.isalpha() and len(code) <= CODE_LENGTH_MAX else WaitCode.STEP_FAILED


async def node_lost(connection: Connection, node: str) -> None:
    """Say of what waits for a node that is lost what it waits for: its agent can't."""
    why = f"waits for node {node}, which is not connected; see: novacron node show {node}"
    told = []
    for waiting in WAITING:
        rows = await connection.fetch(
            f"UPDATE {waiting.table} SET error = $2, reason_code = $3 WHERE {waiting.where} AND reason_code <> $3"
            f" RETURNING {waiting.event}",
            node, why, CODE,
        )  # fmt: skip
        told += [tuple(row) for row in rows]
    await events.record_all(
        connection,
        [events.NewEvent(kind, id, name, CODE, why, project=project) for kind, id, name, project in told[:EVENTS_MAX]],
    )


async def node_back(connection: Connection, node: str) -> None:
    """Nothing waits for a node any more that is connected: if something is wrong its agent says so."""
    for waiting in WAITING:
        await connection.execute(
            f"UPDATE {waiting.table} SET error = '', reason_code = '' WHERE {waiting.where} AND reason_code = $2",
            node, CODE,
        )  # fmt: skip
