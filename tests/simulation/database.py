"""A real PostgreSQL whose clock is the simulation's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from novacron.store.database import Connection, Database

CLOCK_SQL = """
CREATE SCHEMA IF NOT EXISTS simulation;
CREATE TABLE IF NOT EXISTS simulation.clock (at timestamptz NOT NULL);
CREATE OR REPLACE FUNCTION simulation.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
  AS 'SELECT at FROM simulation.clock';
CREATE OR REPLACE FUNCTION simulation.now() RETURNS timestamptz LANGUAGE sql STABLE
  AS 'SELECT at FROM simulation.clock';
DELETE FROM simulation.clock;
INSERT INTO simulation.clock VALUES (pg_catalog.clock_timestamp());
ALTER DATABASE postgres SET synchronous_commit = off;
ALTER DATABASE postgres SET search_path = simulation, pg_catalog, public;
"""

TIMES_OF_ROWS = """
SELECT format('ALTER TABLE %I ALTER %I SET DEFAULT simulation.now()', table_name, column_name) AS statement
FROM information_schema.columns WHERE table_schema = 'public' AND column_default ~ '(now|clock_timestamp)\\(\\)'
"""
"""Defaults of columns know the functions that they call, whatever the search path is."""
BEGINS_AT = datetime(2030, 1, 1, tzinfo=UTC)


class SimulatedDatabase(Database):
    """A database whose clock is told how much time has passed when it is used next."""

    behind_s = 0.0
    _telling: asyncio.Lock | None = None

    def step_clock(self, seconds: float) -> None:
        self.behind_s += seconds

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with super().connection() as connection:
            if self.behind_s:
                self._telling = self._telling or asyncio.Lock()
                async with self._telling:
                    await self._tell(connection)
            yield connection

    async def _tell(self, connection: Connection) -> None:
        if self.behind_s:
            await connection.execute("UPDATE simulation.clock SET at = at + $1", timedelta(seconds=self.behind_s))
            self.behind_s = 0.0


async def open_database(url: str) -> Database:
    """Open a database whose clock is the simulation's."""
    database = await Database.open(url)
    async with database.connection() as connection:
        await connection.execute(CLOCK_SQL)
        for row in await connection.fetch(TIMES_OF_ROWS):
            await connection.execute(row["statement"])
        await connection.execute("ALTER SYSTEM SET fsync = off")  # hosts crash here, the database's does not
        await connection.execute("SELECT pg_reload_conf()")
    await database.close()
    return await SimulatedDatabase.open(url)
