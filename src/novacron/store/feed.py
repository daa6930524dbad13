"""The change feed: every write of every object, once, in an order that no reader can miss.

A plain sequence is not safe: transaction 8 may commit before 7, and a reader that has passed 8 never sees 7. Here the
order is the transaction id, and a reader stops at the oldest transaction that is still running
(``pg_snapshot_xmin``): everything below it is finished, so nothing can appear there any more. A *revision* is a
transaction id; all changes of one transaction arrive together. NOTIFY only wakes the reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec

from novacron.store.database import LOST, Connection, connect

BATCH_MAX = 1000
HISTORY_MAX = 10_000
PAGE_MAX = 5_000
"""Rows that one statement of a snapshot reads: each statement has a time limit, whatever the number of objects."""
POLL_S = 2.0
BEHIND_POLL_S = 0.005
"""How soon to look again when a change is committed but an older transaction still runs."""
BEHIND_POLL_S_MAX = 0.2


class Change(msgspec.Struct, frozen=True):
    """One write. ``body`` is the row as JSON values, or None when it was deleted."""

    revision: int
    kind: str
    key: str
    body: dict[str, Any] | None
    project: str | None = None
    """Whose it is, or was; None: the fleet's."""


class Batch(msgspec.Struct, frozen=True):
    """Whole transactions in order. After it, everything up to ``revision`` has been seen."""

    revision: int
    changes: list[Change]


class FeedSnapshot(msgspec.Struct, frozen=True):
    """Every object as it is, and what changed lately.

    ``history`` holds every change after revision ``history_after`` up to ``batch.revision``, in order: a reader that
    was there can go on from it.
    """

    batch: Batch
    history: list[Change]
    history_after: int


TABLES = {
    "node": ("nodes", "name"),
    "vm": ("vms", "id"),
    "unreconciled-vm": ("unreconciled_vms", "id"),
    "import": ("imports", "id"),
    "snapshot": ("snapshots", "id"),
    "volume": ("volumes", "id"),
    "export": ("exports", "id"),
    "backup-repository": ("backup_repositories", "id"),
    "backup-policy": ("backup_policies", "id"),
    "backup": ("backups", "id"),
    "replica": ("replicas", "id"),
    "plan": ("plans", "id"),
    "migration": ("migrations", "id"),
    "drain": ("drains", "id"),
    "drill": ("drills", "id"),
    "link": ("links", "id"),
    "network": ("networks", "name"),
    "security-group": ("security_groups", "name"),
    "floating-address": ("floating_addresses", "address"),
    "forward": ("forwards", "id"),
    "flavor": ("flavors", "name"),
    "template": ("templates", "name"),
    "token": ("tokens", "id"),
    "project": ("projects", "name"),
    "user": ("users", "id"),
    "grant": ("grants", "id"),
    "image-owner": ("image_owners", "name"),
    "image-metadata": ("image_metadata", "name"),
}


def _owner(kind: str, key: str, project: str | None) -> str | None:
    return key if kind == "project" else project


def _change(row: asyncpg.Record) -> Change:
    kind, key = row["kind"], row["key"]
    return Change(int(row["txid"]), kind, key, row["body"], _owner(kind, key, row["project"]))


async def _objects(connection: Connection, kind: str, page_max: int) -> AsyncIterator[Change]:
    """Yield every object of a kind, read in pages. In a REPEATABLE READ transaction all pages are of one moment."""
    table, key = TABLES[kind]
    after = ""  # below every key
    while True:
        rows = await connection.fetch(
            f"SELECT {key} AS key, to_jsonb(t) AS body FROM {table} t WHERE {key} > $1 ORDER BY {key} LIMIT $2",
            after, page_max,
        )  # fmt: skip
        for row in rows:
            body = row["body"]
            yield Change(body["revision"], kind, row["key"], body, _owner(kind, row["key"], body.get("project")))
        if len(rows) < page_max:
            return
        after = rows[-1]["key"]


async def snapshot(
    connection: Connection, events_max: int, history_max: int = HISTORY_MAX, page_max: int = PAGE_MAX
) -> FeedSnapshot:  # fmt: skip
    """Return every object as changes, and the revision from which the feed goes on.

    Must run in a REPEATABLE READ transaction. Changes at or above the revision may be repeated by the feed.
    """
    horizon = int(await connection.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))
    changes = [change for kind in TABLES async for change in _objects(connection, kind, page_max)]
    rows = await connection.fetch(
        "SELECT id::text AS key, to_jsonb(t) AS body FROM events t ORDER BY id DESC LIMIT $1", events_max
    )
    events = [(row["key"], row["body"]) for row in reversed(rows)]
    changes += [Change(body["revision"], "event", key, body, body["project"]) for key, body in events]
    after = int(await connection.fetchval("SELECT last_value FROM feed_pruned"))
    rows = await connection.fetch(
        "SELECT txid::text AS txid, kind, key, body, project FROM changes WHERE txid < $1::text::xid8"
        " ORDER BY txid DESC, seq DESC LIMIT $2",
        str(horizon),
        history_max + 1,
    )
    history = [_change(row) for row in reversed(rows)]
    if len(history) > history_max:
        after = history[0].revision
        history = [change for change in history if change.revision > after]
    return FeedSnapshot(Batch(horizon - 1, changes), history, after)


async def read(connection: Connection, after: int) -> tuple[Batch, bool]:
    """Return the changes after revision ``after``, and whether more are waiting."""
    rows = await connection.fetch(
        """
        WITH horizon AS (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xmin),
             page AS (SELECT c.txid, c.seq, c.kind, c.key, c.body, c.project FROM changes c
                      WHERE c.txid > $1::text::xid8 AND c.txid < (SELECT xmin FROM horizon)
                      ORDER BY c.txid, c.seq LIMIT $2)
        SELECT h.xmin::text AS xmin,
               coalesce((SELECT c.txid FROM changes c ORDER BY c.txid DESC, c.seq DESC LIMIT 1) >= h.xmin, false)
               AS behind,
               p.txid::text AS txid, p.kind, p.key, p.body, p.project
        FROM horizon h LEFT JOIN page p ON true ORDER BY p.txid, p.seq
        """,
        str(after),
        BATCH_MAX,
    )
    horizon, behind = int(rows[0]["xmin"]), bool(rows[0]["behind"])
    changes = [_change(row) for row in rows if row["txid"] is not None]
    if len(changes) < BATCH_MAX:
        return Batch(max(after, horizon - 1), changes), behind
    last = changes[-1].revision
    whole = [change for change in changes if change.revision < last]
    if not whole:  # one transaction larger than a page: take all of it
        rows = await connection.fetch(
            "SELECT txid::text AS txid, kind, key, body, project FROM changes WHERE txid = $1::text::xid8 ORDER BY seq",
            str(last),
        )
        whole = [_change(row) for row in rows]
        return Batch(last, whole), True
    return Batch(whole[-1].revision, whole), True


async def newest(connection: Connection) -> int:
    """Return the newest revision that there can be by now."""
    return int(await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))


async def prune(connection: Connection, older_than_s: float) -> int:
    """Forget changes older than ``older_than_s`` seconds; return how many."""
    last = await connection.fetchval(
        "WITH gone AS (DELETE FROM changes WHERE at < now() - make_interval(secs => $1) RETURNING txid)"
        " SELECT max(txid)::text FROM gone",
        float(older_than_s),
    )
    if last is None:
        return 0
    await connection.execute("SELECT setval('feed_pruned', greatest(last_value, $1)) FROM feed_pruned", int(last))
    return int(last)


class Feed:
    """Follows the changes from a revision on, over its own connection, through restarts of the database."""

    def __init__(self, url: str, events_max: int) -> None:
        self._url = url
        self._events_max = events_max
        self._wake = asyncio.Event()
        self._behind, self._complete_at = True, time.monotonic()

    def lag_s(self) -> float:
        """Return for how many seconds the reader has not had everything that there was: 0 if it had when it looked
        last, as it does every two seconds at least."""
        since_s = time.monotonic() - self._complete_at
        return since_s if self._behind or since_s > 2 * POLL_S else 0.0

    async def batches(self) -> AsyncIterator[FeedSnapshot | Batch]:
        """Yield first a snapshot of everything there is, then what changes, for ever.

        Raises one of ``database.LOST`` when the connection breaks: call again after a pause. A reader that starts
        again gets everything again, so nothing is lost however long it was away.
        """
        self._behind = True
        connection = await connect(self._url)
        try:
            # A connection that ends wakes the reader too: it must not take silence for peace.
            connection.add_termination_listener(lambda *_: self._wake.set())
            await connection.add_listener("nova_feed", lambda *_: self._wake.set())
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                everything = await snapshot(connection, self._events_max)
            yield everything
            after, pause_s = everything.batch.revision, BEHIND_POLL_S
            while True:
                self._wake.clear()
                looked_at = time.monotonic()
                batch, behind = await read(connection, after)
                if batch.changes or batch.revision > after:
                    after = batch.revision
                    yield batch
                self._behind = behind
                if not behind:
                    self._complete_at = looked_at
                if batch.changes:
                    pause_s = BEHIND_POLL_S
                    continue
                timeout_s = POLL_S
                if behind:
                    timeout_s, pause_s = pause_s, min(pause_s * 2, BEHIND_POLL_S_MAX)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await self._wake.wait()
        finally:
            self._behind = True
            with contextlib.suppress(*LOST, asyncpg.PostgresError):
                await connection.close(timeout=2)
