"""What keeps objects from what was asked, when that is their node: it is not connected, or it says so."""

from __future__ import annotations

from typing import NamedTuple

from novacron.model.waiting import WaitCode
from novacron.store.database import Connection

ERROR_LENGTH_MAX, CODE_LENGTH_MAX = 500, 40


class Dependents(NamedTuple):
    """Objects of a kind that wait for a node. ``$1`` is the node."""

    table: str
    where: str


WAITING = (
    Dependents(
        "volumes", "((node = $1 AND phase IN ('creating', 'deleting'))"
        " OR (detaching AND vm IN (SELECT id FROM vms WHERE node = $1)))",
    ),
    Dependents("imports", "node = $1 AND finished_at IS NULL"),
    Dependents("exports", "node = $1 AND phase = 'making'"),
    Dependents("backups", "node = $1 AND phase IN ('making', 'verifying', 'deleting')"),
    Dependents(
        "replicas", "(node = $1 OR phase = 'following' AND vm IN (SELECT id FROM vms WHERE node = $1))",
    ),
    Dependents(
        "snapshots", "phase IN ('creating', 'reverting', 'deleting') AND vm IN (SELECT id FROM vms WHERE node = $1)",
    ),
)  # fmt: skip
CODE = WaitCode.NODE_LOST


def hindrance(error: str, code: str) -> str:
    """Return the code of what a node says, none if nothing is wrong. Agents of before say no code."""
    if not error:
        return ""
    return code if code.isalpha() and len(code) <= CODE_LENGTH_MAX else WaitCode.STEP_FAILED


def waits_for(node: str) -> str:
    """Return what is said of whatever waits for a node that is lost."""
    return f"waits for node {node}, which is not connected; see: novacron node show {node}"


async def node_lost(connection: Connection, node: str) -> list[str]:
    """Say of what waits for a node that is lost what it waits for: its agent can't. Return how many objects of each
    kind do, in words: one event of the node tells of all, however many they are."""
    counts = list[str]()
    for waiting in WAITING:
        result = await connection.execute(
            f"UPDATE {waiting.table} SET error = $2, reason_code = $3 WHERE {waiting.where} AND reason_code <> $3",
            node, waits_for(node), CODE,
        )  # fmt: skip
        counts += counted(result, waiting.table)
    return counts


def counted(result: str, table: str) -> list[str]:
    """Return, in words, how many rows of a table a statement has changed; nothing for none."""
    count, noun = int(result.rpartition(" ")[2]), {"vms": "VMs"}.get(table, table)
    return [f"{count} {noun if count > 1 else noun[:-1]}"] if count else []


async def node_back(connection: Connection, node: str) -> None:
    """Nothing waits for a node any more that is connected: if something is wrong its agent says so."""
    for waiting in WAITING:
        await connection.execute(
            f"UPDATE {waiting.table} SET error = '', reason_code = '' WHERE {waiting.where} AND reason_code = $2"
            " AND error = $3",
            node, CODE, waits_for(node),
        )  # fmt: skip
