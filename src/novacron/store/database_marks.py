"""How far each server has counted in the database, and whether that is less than others have seen."""

from __future__ import annotations

from novacron.model.database_mark import DatabaseMark
from novacron.store import events, unreconciled
from novacron.store.database import Connection

OBJECT = "database"
"""Of events: there is one."""


def lock_of(server: str) -> str:
    """Return the name of the lock that a server holds for as long as it runs."""
    return f"mark.{server}"


async def doubt(connection: Connection, mark: DatabaseMark | None) -> str:
    """Return why a server that begins can't be sure that the database is the latest; nothing: it can.

    ``mark``: what the server wrote down last. It may be one less than the database's, for it is written after.
    """
    if await _another_runs(connection, mark):
        return ""
    if mark is None:
        used = await connection.fetchval("SELECT EXISTS (SELECT FROM database_marks)")
        return "this server has not used it before, and no other server runs" if used else ""
    number = await connection.fetchval(
        "SELECT number FROM database_marks WHERE server = $1 AND NOT superseded", mark.server
    )
    if number is None or number < mark.number:
        return "it is older than what this server has seen"
    if number > mark.number + 1:
        return "this server's own files are older than the database"
    other = await connection.fetchval(
        "SELECT server FROM database_marks WHERE NOT ended AND server <> $1 LIMIT 1", mark.server
    )
    return "another server, which was not stopped, may have seen newer changes" if other is not None else ""


async def _another_runs(connection: Connection, mark: DatabaseMark | None) -> bool:
    """Say whether another server holds its lock: then the database was in use all the while."""
    rows = await connection.fetch("SELECT server FROM database_marks WHERE NOT ended")
    for row in rows:
        if mark is not None and row["server"] == mark.server:
            continue
        free = await connection.fetchval(
            "SELECT pg_try_advisory_xact_lock(hashtext($1))", f"novacron.{lock_of(row['server'])}"
        )
        if not free:
            return True
    return False


async def begin(connection: Connection, server: str) -> DatabaseMark:
    """A server begins to count, or goes on."""
    number = await connection.fetchval(
        "INSERT INTO database_marks AS m (server, number) VALUES ($1, 1)"
        " ON CONFLICT (server) DO UPDATE SET number = m.number + 1, ended = false, superseded = false"
        " RETURNING number",
        server,
    )
    return DatabaseMark(server, number)


async def count(connection: Connection, mark: DatabaseMark) -> DatabaseMark | None:
    """Count one further; None: the database is not the one in which was counted."""
    number = await connection.fetchval(
        "UPDATE database_marks SET number = number + 1 WHERE server = $1 AND number >= $2 AND NOT superseded"
        " RETURNING number",
        mark.server, mark.number,
    )  # fmt: skip
    return None if number is None else DatabaseMark(mark.server, number)


async def end(connection: Connection, mark: DatabaseMark) -> None:
    """A server has stopped: nobody has seen more than it wrote down."""
    await connection.execute("UPDATE database_marks SET ended = true WHERE server = $1", mark.server)


async def end_all(connection: Connection) -> None:
    """No server runs, and what they have seen is waited for: none is asked for it again."""
    await connection.execute("UPDATE database_marks SET ended = true")


async def suspect(connection: Connection, why: str) -> None:
    """The database may be older than what nodes know: let every node be heard before any VM is begun that may be
    elsewhere."""
    await unreconciled.restored(connection)
    waits = ", ".join(await unreconciled.not_heard(connection))
    if waits:
        message = f"the database may be older than nodes' records: {why}; VMs that may run elsewhere start only after"
        await _record(connection, "DatabaseSuspected", f"{message} these nodes have connected: {waits}")


async def compare(connection: Connection, node: str, mark: DatabaseMark | None) -> None:
    """Compare what a node has seen of the database with what it is."""
    if mark is None:
        return
    row = await connection.fetchrow("SELECT number, superseded FROM database_marks WHERE server = $1", mark.server)
    known = row is not None and (row["superseded"] or row["number"] >= mark.number)
    if not known:  # what else this server had seen is waited for from now on, and is no news in a year
        await connection.execute(
            "INSERT INTO database_marks AS m (server, number, ended, superseded) VALUES ($1, $2, true, true)"
            " ON CONFLICT (server) DO UPDATE SET ended = true, superseded = true",
            mark.server, mark.number,
        )  # fmt: skip
    if not known and not await unreconciled.not_heard(connection):  # else they are waited for already
        await suspect(connection, f"node {node} has seen newer changes")


async def settle(connection: Connection) -> unreconciled.Hold | None:
    """Return what VMs have to wait for; once every node was heard, that is over."""
    hold = await unreconciled.hold(connection)
    if hold is None or hold.nodes:
        return hold
    done = await connection.execute("DELETE FROM database_restored WHERE found_at = $1", hold.found_at)
    if done == "DELETE 1":
        await _record(
            connection, "DatabaseTrusted", "every node that may have newer records than the database has connected"
        )
    return None


async def _record(connection: Connection, reason: str, message: str) -> None:
    await events.record(connection, events.NewEvent(OBJECT, OBJECT, OBJECT, reason, message))
