"""How the database is reached: one pool, its limits, and what its failures mean to callers."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import asyncpg
import msgspec

from novacron import __version__
from novacron.model.errors import InvalidInput, Unavailable
from novacron.store import deferred_writes, hosts
from novacron.store.connection import Connection as Connection
from novacron.supervise import is_cancelled
from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter, histogram

log = logs.get(__name__)

SCHEMA_VERSION = "0070"
SERVER_VERSION_MIN = 150000
POOL_DEFAULT = 25
POOL_IDLE_S, POOL_QUERIES_MAX = 300.0, 50_000
"""A connection that was idle so long, or did so much, is closed; another one is opened when it is needed."""
STATEMENT_TIMEOUT_S = 10
SLOW_S = 1.0
"""A query that takes longer is logged."""
QUERY_TEXT_MAX = 400
"""Of a query's text, which holds no values, in traces and logs."""
ACQUIRE_TIMEOUT_S = 5.0

YIELDS: ContextVar[bool] = ContextVar("yields", default=False)
"""What is done leaves a part of the connections to others: nodes, controllers, operators."""
RESERVED = 5
"""So many."""
FULL_RETRY_S, FULL_RETRY_S_MAX = 0.02, 0.5
"""How soon to try again to open a connection that PostgreSQL has no room for: the first pause and the longest."""
FULL_SAID_S = 60.0
"""How often that is logged."""

SYNC_WAIT = "SyncRepWaitForLSN"
"""The function of PostgreSQL that waits until a standby has a commit. What it says comes as a warning: the commit
stands here, but is perhaps nowhere else."""


class Unconfirmed(ConnectionError):
    """A commit was answered before a standby had it, because its wait was cancelled: it may be lost in a failover."""


LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.QueryCanceledError,
    asyncpg.TooManyConnectionsError,
    TimeoutError,
)
"""What asyncpg raises when the database is away, restarting or too slow: retry, nothing is wrong with the request."""

UNSTORABLE = asyncpg.DataError
"""What it raises for a value that PostgreSQL can't store or compare: the request is wrong."""

OVERTAKEN = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
"""What it raises when another transaction came between: retry, at once."""
TRIES_MAX = 5

ACQUIRED = histogram("novacron_database_acquire_duration_seconds")
QUERIES = histogram("novacron_database_query_duration_seconds")
ENDED = counter("novacron_database_transactions_total")
OPERATIONS = {
    "SELECT": "select", "INSERT": "insert", "UPDATE": "update", "DELETE": "delete", "WITH": "with", "BEGIN;": "begin",
    "BEGIN": "begin", "COMMIT": "commit",
}  # fmt: skip

T = TypeVar("T")


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + msgspec.json.encode(value),
        decoder=lambda raw: msgspec.json.decode(raw[1:]),
        format="binary",
    )


class PooledConnection(asyncpg.Connection):
    """A connection that leaves nothing behind for its next user: neither settings nor locks of its session.

    It measures its queries: asyncpg's own way to hear of them costs several times as much.
    """

    _unconfirmed = False

    def get_reset_query(self) -> str:
        return ""

    async def execute(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._confirmed(query, super().execute(query, *args, **more))

    async def executemany(self, command: str, args: Any, **more: Any) -> Any:
        return await self._confirmed(command, super().executemany(command, args, **more))

    async def fetch(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._confirmed(query, super().fetch(query, *args, **more))

    async def fetchrow(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._confirmed(query, super().fetchrow(query, *args, **more))

    async def fetchval(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._confirmed(query, super().fetchval(query, *args, **more))

    async def copy_records_to_table(self, table_name: str, **more: Any) -> Any:
        return await self._confirmed(f"COPY {table_name}", super().copy_records_to_table(table_name, **more))

    async def _confirmed(self, query: str, done: Coroutine[Any, Any, T]) -> T:
        """Do a query. Raises Unconfirmed when it was committed without the standby that had to have it.

        A connection to a server that has become a standby is closed: the next one finds the primary.
        """
        try:
            answer = await _measured(query, done)
        except asyncpg.ReadOnlySQLTransactionError:
            if getattr(self.get_settings(), "in_hot_standby", None) == "on":  # poolers don't pass it on
                self.terminate()
            raise
        if self._unconfirmed:
            self._unconfirmed = False
            raise Unconfirmed("the wait for a standby was cancelled: it may not have the latest writes")
        return answer

    def _process_log_message(self, fields: dict[str, str], last_query: str) -> None:
        # Called while the answer is read, so before whoever waits for it goes on; a listener would be called later.
        if fields.get("R") == SYNC_WAIT:
            self._unconfirmed = True
        super()._process_log_message(fields, last_query)  # type: ignore[misc]  # private, not in its types


async def _measured(query: str, done: Coroutine[Any, Any, T]) -> T:
    operation = OPERATIONS.get(query.lstrip()[:6].upper().rstrip(), "other")
    began = time.perf_counter()
    try:
        if not traces.recording():
            return await done
        with traces.span(
            f"db {operation}", kind=traces.SpanKind.CLIENT, db__system__name="postgresql",
            db__operation__name=operation, db__query__text=_text(query),
        ):  # fmt: skip
            return await done
    finally:
        took_s = time.perf_counter() - began
        QUERIES.observe(took_s, operation, trace=traces.recorded_id())
        if took_s > SLOW_S or logs.debugging():
            say = log.warning if took_s > SLOW_S else log.debug
            say("query", operation=operation, took_s=round(took_s, 4), text=_text(query))


def _text(query: str) -> str:
    return " ".join(query.split())[:QUERY_TEXT_MAX]


class Overtaken(Unavailable):
    """Another transaction came between: nothing was written."""


class Database:
    """A pool of connections to one PostgreSQL database."""

    def __init__(self, pool: asyncpg.Pool, url: str) -> None:
        self.url = url
        self._yielding = asyncio.Semaphore(max(1, int(pool.get_max_size()) - RESERVED))
        self._pool = pool
        self._giving_back: set[asyncio.Task[None]] = set()
        self._no_room = asyncio.Lock()
        """Held by the one who waits because PostgreSQL takes no more connections; others stand in line behind."""
        self._given_back = asyncio.Event()
        self._say_full_at = 0.0

    @classmethod
    async def open(cls, url: str, connections: int = POOL_DEFAULT) -> Database:
        """Connect to ``url`` (``postgresql://...``, see ``hosts``), with so many connections at most, and bring its
        schema up to date."""
        await migrate(url)
        pool = await asyncpg.create_pool(  # type: ignore[call-overload]  # its types want no named arguments of connect
            url,
            min_size=0,
            max_size=connections,
            connection_class=PooledConnection,
            timeout=ACQUIRE_TIMEOUT_S,
            init=_prepare,
            connect=hosts.connect,
            max_inactive_connection_lifetime=POOL_IDLE_S,
            max_queries=POOL_QUERIES_MAX,
            server_settings={
                "application_name": "novacron",
                "statement_timeout": str(STATEMENT_TIMEOUT_S * 1000),
                "idle_in_transaction_session_timeout": "15000",
                "client_min_messages": "warning",
            },
        )
        return cls(pool, url)

    async def close(self) -> None:
        try:
            await asyncio.wait_for(self._pool.close(), 5)
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection outside a transaction. Raises Unavailable when the database is away."""
        began = time.perf_counter()
        turn = self._yielding if YIELDS.get() else None
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT_S):  # the pool's own time-out costs turns of the loop
                if turn is not None:
                    await turn.acquire()
                try:
                    connection = await self._acquire()
                except BaseException:
                    if turn is not None:
                        turn.release()
                    raise
            ACQUIRED.observe(time.perf_counter() - began)
            try:
                yield connection
            finally:
                self._give_back(connection)
                if turn is not None:
                    turn.release()
        except LOST as error:
            if is_cancelled():  # what is lost came on its way out, such as a rollback that failed
                raise asyncio.CancelledError from error
            counter("novacron_database_unavailable_total").add()
            raise Unavailable(
                f"the database can't be reached: {error or type(error).__name__}",
                hint="try again in a few seconds",
            ) from error

    async def _acquire(self) -> asyncpg.pool.PoolConnectionProxy:
        """Return a connection of the pool. Where PostgreSQL has no room for another one (servers that share a database
        may have larger pools in all than its ``max_connections``), wait for one that is in use here."""
        if not self._no_room.locked():
            with suppress(asyncpg.TooManyConnectionsError):
                return await self._pool.acquire()
        async with self._no_room:
            backoff_s = FULL_RETRY_S
            while True:
                self._given_back.clear()
                try:
                    return await self._pool.acquire()
                except asyncpg.TooManyConnectionsError as error:
                    self._say_full(error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(backoff_s):
                        await self._given_back.wait()
                backoff_s = min(2 * backoff_s, FULL_RETRY_S_MAX)

    def _say_full(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._say_full_at:
            self._say_full_at = now + FULL_SAID_S
            hint = "raise its max_connections, or lower --pool of the servers"
            log.warning(
                "the database accepts no more connections", open=self._pool.get_size(), error=str(error), hint=hint
            )

    def _give_back(self, connection: asyncpg.pool.PoolConnectionProxy) -> None:
        """Let the pool have a connection again. Nobody waits for that: it costs turns of the loop, too."""

        def done(task: asyncio.Task[None]) -> None:
            self._giving_back.discard(task)
            self._given_back.set()
            if not task.cancelled() and task.exception() is not None:
                log.debug("a connection was lost when it was given back", error=str(task.exception()))

        task = asyncio.create_task(self._pool.release(connection, timeout=ACQUIRE_TIMEOUT_S))
        self._giving_back.add(task)
        task.add_done_callback(done)

    @asynccontextmanager
    async def transaction(self, isolation: Literal["repeatable_read"] | None = None) -> AsyncIterator[Connection]:
        """Lend a connection inside a transaction, committed at the end of the block. Raises Unavailable, also when
        another transaction came between."""
        try:
            async with self.connection() as connection, connection.transaction(isolation=isolation):
                with deferred_writes.waiting() as pending:
                    yield connection
                await deferred_writes.write(connection, pending)
            ENDED.add("committed")
        except OVERTAKEN as error:
            ENDED.add("overtaken")
            raise Overtaken(f"another change came first: {error}", hint="try again") from error
        except BaseException:
            ENDED.add("failed")
            raise

    def connections(self) -> dict[tuple[str, ...], float]:
        """Return how many connections are used, and how many idle."""
        idle = self._pool.get_idle_size()
        return {("used",): self._pool.get_size() - idle, ("idle",): idle}

    @property
    def connections_max(self) -> int:
        return int(self._pool.get_max_size())

    async def transact(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do ``work`` in a transaction, and again, a few times, when another one came between.

        Raises Unavailable, and what ``work`` does.
        """
        for _ in range(TRIES_MAX - 1):
            with suppress(Overtaken):
                async with self.transaction() as connection:
                    return await work(connection)
        async with self.transaction() as connection:
            return await work(connection)

    async def at_once(
        self, statement: str, arguments: Sequence[object],
        rows: Mapping[deferred_writes.Table, Sequence[Sequence[object]]],
        answer: tuple[str, Sequence[object]] | None = None, turn: tuple[str, Sequence[object]] | None = None,
    ) -> asyncpg.Record | None:  # fmt: skip
        """Do a statement that returns a row, and add ``rows`` if it does, in one round trip; return that row, or None.

        ``answer``: a statement, with its arguments, that stores what is made of that row (``done``) and returns columns
        that are added to the row. ``turn``: see ``deferred_writes.all_at_once``. Raises Unavailable.
        """
        text, values = deferred_writes.all_at_once(statement, arguments, rows, answer, turn)
        try:
            async with self.connection() as connection:
                return await connection.fetchrow(text, *values)
        except OVERTAKEN:
            return None

    async def ping(self) -> None:
        """Raise Unavailable unless the database answers."""
        async with self.connection() as connection:
            await connection.execute("SELECT 1")


async def connect(url: str, command_timeout_s: float = STATEMENT_TIMEOUT_S) -> asyncpg.Connection:
    """Open a connection outside the pool, for listeners, long-held locks and work in a process of its own."""
    connection = await hosts.connect(
        url, timeout=ACQUIRE_TIMEOUT_S, command_timeout=command_timeout_s, connection_class=PooledConnection
    )
    await _prepare(connection)
    return connection


async def migrate(url: str) -> None:
    """Bring the schema up to date, if it is not. Servers that start together take turns."""
    connection = await connect(url)
    try:
        version_number = int(await connection.fetchval("SHOW server_version_num"))
        if version_number < SERVER_VERSION_MIN:
            raise InvalidInput(
                f"PostgreSQL is version {version_number // 10000}",
                field="database",
                hint="use version 15 or later",
            )
        await connection.execute("SELECT pg_advisory_lock(hashtext('novacron.schema'))", timeout=60)
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is not None:
            version = await connection.fetchval("SELECT version_num FROM alembic_version")
            if version == SCHEMA_VERSION:
                return
            if version > SCHEMA_VERSION:
                refuse_later(version, await oldest_served(connection))
                log.warning("the schema is of a later version", schema=version, known=SCHEMA_VERSION)
                return
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "novacron.store.schema",
            env={**os.environ, "NOVACRON_DATABASE_URL": url},
            stderr=asyncio.subprocess.PIPE,
        )
        _, stderr = await asyncio.wait_for(process.communicate(), 120)
        if process.returncode != 0:
            raise RuntimeError(f"the schema migration failed: {stderr.decode(errors='replace')[-2000:]}")
    finally:
        await connection.close()


async def oldest_served(connection: asyncpg.Connection) -> str | None:
    """Return the oldest schema that a server may know to work over this database; None: it does not say."""
    if await connection.fetchval("SELECT to_regclass('schema_serves')") is None:
        return None
    oldest: str | None = await connection.fetchval("SELECT oldest FROM schema_serves")
    return oldest


def refuse_later(version: str, oldest: str | None = None) -> None:
    """Raise InvalidInput if a later NovaCron has changed the schema in a way that this one can't work with. ``oldest``:
    the oldest version that a server may know to work over this database."""
    if version > SCHEMA_VERSION and (oldest is None or oldest > SCHEMA_VERSION):
        raise InvalidInput(
            f"its schema is version {version}, but this NovaCron ({__version__}) supports at most {SCHEMA_VERSION}",
            field="database",
            hint="start the version that upgraded it, or a later one; or restore an earlier backup: "
            " novacron database restore --to TIME",
        )
