"""The change feed loses nothing, whatever the order of commits."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import asyncpg
import pytest

from novacron.model import limits
from novacron.store import events, feed, garbage
from novacron.store.database import Connection, Database, Overtaken, connect
from novacron.store.feed import Batch, Change, Feed, FeedSnapshot
from tests.chance import fixed_seed
from tests.waiting import eventually, pause_async

WRITERS = 8
WRITES = 60

INSERT_USER = "INSERT INTO users (id, name, kind) VALUES ($1, $2, 'person')"


def _users(changes: list[Change]) -> list[Change]:
    """Return the changes of users: a database begins with a project."""
    return [change for change in changes if change.kind == "user"]


async def collect(url: str, into: list[Change], stop: asyncio.Event) -> None:
    """Follow the feed as a server does, and note every change."""
    async for item in Feed(url, 10).batches():
        into += item.batch.changes if isinstance(item, FeedSnapshot) else item.changes
        if stop.is_set():
            return


async def wait_until_followed(seen: list[Change]) -> None:
    """Wait until a follower has the rows of the new database, which begins with a project."""
    await eventually(lambda: seen, "the follower has what was there before")


async def test_nothing_is_lost_under_eight_concurrent_writers(database: Database) -> None:
    seed = fixed_seed()
    print(f"seed {seed}")
    committed: dict[str, list[str]] = {}
    seen: list[Change] = []
    stop = asyncio.Event()

    async def writer(number: int) -> None:
        rng = random.Random(seed + number)
        connection = await connect(database.url)
        for turn in range(WRITES):
            id, name = f"tok-{number}-{turn % 5}", f"{number}.{turn}"
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(
                "INSERT INTO users (id, name, kind) VALUES ($1, $2, 'person')"
                " ON CONFLICT (id) DO UPDATE SET name = excluded.name",
                id, name,
            )  # fmt: skip
            await pause_async(rng.choice((0, 0, 0.001, 0.02)))  # transactions overlap and commit out of order
            if rng.random() < 0.15:
                await transaction.rollback()
            else:
                await transaction.commit()
                committed.setdefault(id, []).append(name)
        await connection.close()

    follower = asyncio.create_task(collect(database.url, seen, stop))
    await wait_until_followed(seen)
    await asyncio.gather(*(writer(number) for number in range(WRITERS)))
    stop.set()
    async with database.transaction() as connection:
        await connection.execute(INSERT_USER, "tok-last", "last")
    await asyncio.wait_for(follower, 20)

    received: dict[str, list[str]] = {}
    for change in seen:
        if change.kind == "user" and change.key != "tok-last":
            assert change.body is not None
            received.setdefault(change.key, []).append(change.body["name"])
    assert received == committed, f"seed {seed}"
    revisions = [change.revision for change in seen]
    assert revisions == sorted(revisions), f"seed {seed}"


async def test_a_transaction_that_begins_first_and_commits_last_is_not_skipped(database: Database) -> None:
    slow, fast, reader = [await connect(database.url) for _ in range(3)]
    begun = slow.transaction()
    await begun.start()
    await slow.execute(INSERT_USER, "tok-slow", "slow")
    await fast.execute(INSERT_USER, "tok-fast", "fast")
    batch, behind = await feed.read(reader, 0)
    assert _users(batch.changes) == [] and behind
    await begun.commit()
    batch, behind = await feed.read(reader, batch.revision)
    assert [change.key for change in _users(batch.changes)] == ["tok-slow", "tok-fast"] and not behind
    for connection in (slow, fast, reader):
        await connection.close()


async def test_the_feeds_last_version_of_a_row_equals_the_database(database: Database) -> None:
    """Writers of the same rows, each with an id before it waits for a row: a later transaction may be first there."""
    seen: list[Change] = []
    stop, tries = asyncio.Event(), 0
    async with database.transaction() as connection:
        for number in range(3):
            await connection.execute(INSERT_USER, f"u{number}", f"n{number}")
    following = asyncio.create_task(collect(database.url, seen, stop))

    async def writer(number: int) -> None:
        rng = random.Random(number)
        for turn in range(WRITES // 2):

            async def work(connection: Connection, turn: int = turn) -> None:
                nonlocal tries
                tries += 1
                await connection.fetchval("SELECT pg_current_xact_id()::text")
                await pause_async(rng.choice((0, 0, 0.002)))
                row = f"u{rng.randrange(3)}"
                await connection.execute("UPDATE users SET name = $2 WHERE id = $1", row, f"{row}.{number}.{turn}")

            while True:
                try:
                    await database.transact(work)
                    break
                except Overtaken:
                    await pause_async(rng.random() / 50)

    await asyncio.wait_for(asyncio.gather(*(writer(number) for number in range(WRITERS))), 60)
    async with database.connection() as connection:
        rows = {row["id"]: row["name"] for row in await connection.fetch("SELECT id, name FROM users")}
        horizon = int(await connection.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))

    await eventually(
        lambda: {change.key: change.body["name"] for change in _users(seen) if change.body} == rows,
        "the follower has every row",
    )
    following.cancel()
    assert {change.key: change.body["name"] for change in _users(seen) if change.body} == rows
    assert max(change.revision for change in seen) < horizon
    assert tries > WRITERS * (WRITES // 2), "nobody came between: this tests nothing"


async def test_a_transaction_larger_than_a_page_arrives_whole(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.executemany(INSERT_USER, [(f"tok-{n}", f"n-{n}") for n in range(feed.BATCH_MAX + 5)])
    async with database.connection() as connection:
        batch, _ = await feed.read(connection, 0)
        rest, _ = await feed.read(connection, batch.revision)
    assert len(_users(batch.changes + rest.changes)) == feed.BATCH_MAX + 5
    assert len({change.key for change in _users(batch.changes)}) in (0, feed.BATCH_MAX + 5), "all of it, or none yet"


async def test_a_reader_that_starts_again_gets_everything_and_the_recent_history(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(INSERT_USER, "tok-a", "first")
    async with database.transaction() as connection:
        await connection.execute("UPDATE users SET name = 'second'")
    items: list[FeedSnapshot | Batch] = []
    async for item in Feed(database.url, 10).batches():
        items.append(item)
        break
    snapshot = items[0]
    assert isinstance(snapshot, FeedSnapshot)
    assert [change.body["name"] for change in _users(snapshot.batch.changes) if change.body] == ["second"]
    assert [change.body["name"] for change in _users(snapshot.history) if change.body] == ["first", "second"]
    assert snapshot.history_after == 0


async def test_history_is_cut_at_a_whole_transaction(database: Database) -> None:
    for n in range(4):
        async with database.transaction() as connection:
            await connection.executemany(INSERT_USER, [(f"tok-{n}-{m}", f"n-{n}-{m}") for m in range(3)])
    async with database.transaction(isolation="repeatable_read") as connection:
        snapshot = await feed.snapshot(connection, 10, history_max=7)
    assert [change.key for change in snapshot.history] == [f"tok-{n}-{m}" for n in (2, 3) for m in range(3)]
    assert all(change.revision > snapshot.history_after for change in snapshot.history)


async def test_pruned_history_is_not_offered(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(INSERT_USER, "tok-old", "old")
    async with database.transaction() as connection:
        last: Any = await connection.fetchval("SELECT max(txid)::text FROM changes")
        await connection.execute("UPDATE changes SET at = now() - interval '2 hours'")
    async with database.transaction() as connection:
        for collect in garbage.COLLECTORS.values():
            await collect(connection)
    async with database.transaction(isolation="repeatable_read") as connection:
        snapshot = await feed.snapshot(connection, 10)
    assert snapshot.history == [] and snapshot.history_after >= int(last)
    assert [change.key for change in _users(snapshot.batch.changes)] == ["tok-old"], "objects outlive their changes"
    assert limits.CHANGES_RETENTION_S < 2 * 3600


async def test_a_reader_reports_at_once_that_the_database_went_away(database: Database) -> None:
    seen: list[Change] = []
    ended = asyncio.create_task(collect(database.url, seen, asyncio.Event()))
    await wait_until_followed(seen)
    async with database.connection() as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError, asyncpg.AdminShutdownError)):
        await asyncio.wait_for(ended, feed.POLL_S / 2)  # before it would look by itself


async def test_a_reader_lags_while_committed_rows_are_withheld(database: Database) -> None:
    reader, seen = Feed(database.url, 10), list[Change]()
    assert reader.lag_s() > 0, "it has not read anything"

    async def follow() -> None:
        async for item in reader.batches():
            seen.extend(item.batch.changes if isinstance(item, FeedSnapshot) else item.changes)

    following = asyncio.create_task(follow())
    slow, fast = await connect(database.url), await connect(database.url)
    try:
        await eventually(lambda: reader.lag_s() == 0)
        begun = slow.transaction()
        await begun.start()
        await slow.execute(INSERT_USER, "tok-slow", "slow")
        await fast.execute(INSERT_USER, "tok-fast", "fast")
        await eventually(lambda: reader.lag_s() > 0.3)
        assert _users(seen) == []
        await begun.commit()
        await eventually(lambda: reader.lag_s() == 0)
        assert len(_users(seen)) == 2
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        for connection in (slow, fast):
            await connection.close()
    assert reader.lag_s() > 0, "nobody reads any more"


class _Hooked:
    """A connection that lets somebody else write after each page that it reads."""

    def __init__(self, connection: Connection, url: str) -> None:
        self._connection, self._url, self.pages = connection, url, list[int]()

    async def fetchval(self, *args: Any) -> Any:
        return await self._connection.fetchval(*args)

    async def fetch(self, query: str, *args: Any) -> Any:
        rows = await self._connection.fetch(query, *args)
        if " FROM users " in query:
            self.pages.append(len(rows))
            other = await connect(self._url)
            await other.execute("UPDATE users SET name = name || 'x'")
            await other.execute(INSERT_USER, f"zzz-{len(self.pages)}", f"late-{len(self.pages)}")
            await other.execute("DELETE FROM users WHERE id = 'u-6'")
            await other.close()
        return rows


@pytest.mark.parametrize("count", [0, 6, 7])
async def test_a_snapshot_read_in_pages_is_of_one_moment(database: Database, count: int) -> None:
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM users")
        for number in range(count):
            await connection.execute(INSERT_USER, f"u-{number}", f"user-{number}")
    async with database.transaction(isolation="repeatable_read") as connection:
        hooked = _Hooked(connection, database.url)
        read = await feed.snapshot(hooked, 10, page_max=3)  # type: ignore[arg-type]  # only what it calls
    assert sum(hooked.pages) == count and max(hooked.pages) <= 3 and len(hooked.pages) == count // 3 + 1
    users = _users(read.batch.changes)
    assert [(user.key, user.body and user.body["name"]) for user in users] == [
        (f"u-{number}", f"user-{number}") for number in range(count)
    ]
    assert all(user.revision <= read.batch.revision for user in users)


async def test_the_rows_of_a_statement_come_in_its_order_and_are_written_at_once(database: Database) -> None:
    seen: list[Change] = []
    stop = asyncio.Event()
    following = asyncio.create_task(collect(database.url, seen, stop))
    await wait_until_followed(seen)
    ids = [f"vm-{number}" for number in range(50)]
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL track_functions = 'all'")
        await connection.execute(
            "INSERT INTO vms (id, name, spec, status, epoch, project)"
            " SELECT id, id, $2, '{}', 0, 'default' FROM unnest($1::text[]) id",
            ids, {"image": "tiny", "vcpus": 1, "memory_mib": 64},
        )  # fmt: skip
        happened = [events.NewEvent("vm", id, id, "Created", "x", "ann", "default") for id in ids]
        await connection.execute(events.EVENTS.insert, *events.EVENTS.arguments(events.rows_of(happened)))
        await connection.execute(events.EVENTS.insert, *([] for _ in events.EVENTS.columns))
        rows = await connection.fetch("SELECT funcname, calls FROM pg_stat_xact_user_functions")
        calls = {row["funcname"]: row["calls"] for row in rows}
        stored = {row["id"]: row["revision"] for row in await connection.fetch("SELECT id, revision FROM vms")}
    assert calls["nova_changes_of_new"] == 3 and "nova_change" not in calls, "a call for each row costs more"
    await eventually(lambda: len([c for c in seen if c.kind == "event"]) >= 50, "the follower has the events")
    following.cancel()
    made = [change for change in seen if change.kind == "vm"]
    assert [change.key for change in made] == ids
    assert [(change.body or {})["revision"] for change in made] == [stored[id] for id in ids]
    assert {(change.project, (change.body or {})["spec"]["image"]) for change in made} == {("default", "tiny")}
    assert sorted((c.body or {})["object"] for c in seen if c.kind == "event") == sorted(ids)
