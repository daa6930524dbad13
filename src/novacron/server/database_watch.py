"""Whether the database is the latest that there is: this server counts in it, and remembers elsewhere how far it was.

See docs/adr/0047-older-databases.md.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import msgspec

from novacron.model.database_mark import DatabaseMark
from novacron.model.errors import MALFORMED, NovaError
from novacron.store import database_marks, leases
from novacron.store.database import LOST, Connection, Database
from novacron.store.leader import leadership
from novacron.supervise import Rarely
from novacron.telemetry import logs

log = logs.get(__name__)

COUNT_S = 1.0
"""How often it counts. What an older database can lack that nobody but one node knows is of less time than this."""
WRITTEN_S_MAX = 10.0
"""How much later than its content says a file may have been written."""
LENGTH = 192


class _MarkOnDisk(msgspec.Struct):
    """What is in the file. A copy of it, put back with an older database, has another inode, or is younger than it
    says: it proves nothing."""

    mark: DatabaseMark
    written_at: float
    inode: int


class MarkFile:
    """How far this server has counted, on its own disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> DatabaseMark | None:
        """Return what was written last; None: nothing, or the file is a copy or damaged. Raises OSError."""
        try:
            status, raw = self._path.stat(), self._path.read_bytes()
            kept = msgspec.json.decode(raw, type=_MarkOnDisk)
        except (FileNotFoundError, *MALFORMED):
            return None
        copied = kept.inode != status.st_ino or abs(status.st_ctime - kept.written_at) > WRITTEN_S_MAX
        return None if copied else kept.mark

    def write(self, mark: DatabaseMark) -> None:
        """Write a mark durably, in place: that needs no room on a disk that is full. Raises OSError."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            kept = _MarkOnDisk(mark, time.time(), os.fstat(descriptor).st_ino)
            os.pwrite(descriptor, msgspec.json.encode(kept).ljust(LENGTH - 1) + b"\n", 0)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


class DatabaseWatch:
    """Counts in the database; ``begin`` before any node is served, then ``run``.

    ``changed`` is called when VMs wait for other nodes to be heard than before, or for none any more.
    """

    def __init__(self, database: Database, path: Path, changed: Callable[[], None]) -> None:
        self._database, self._file, self._changed = database, MarkFile(path), changed
        self._waits_for: tuple[str, ...] = ()
        self._log_now = Rarely()
        self.mark: DatabaseMark | None = None
        """What nodes are to remember."""

    async def begin(self) -> None:
        """Find out whether the database may be older than what was seen of it. Raises NovaError, OSError."""
        kept = await asyncio.to_thread(self._file.read)

        async def work(connection: Connection) -> DatabaseMark:
            why = await database_marks.doubt(connection, kept)
            if why:
                log.warning("the database may be older than what nodes know", why=why)
                await database_marks.suspect(connection, why)
                await database_marks.end_all(connection)
            goes_on = kept is not None and not why
            return await database_marks.begin(connection, kept.server if kept and goes_on else secrets.token_hex(8))

        await self._keep(await self._database.transact(work))

    async def step(self) -> None:
        """Count one further, and look what VMs wait for. Raises NovaError, OSError."""
        before = self.mark
        assert before is not None

        async def work(connection: Connection) -> tuple[DatabaseMark, tuple[str, ...]]:
            mark = await database_marks.count(connection, before)
            if mark is None:
                await database_marks.suspect(connection, "it knows less than this server has seen of it")
                await leases.begin_again(connection)
                await database_marks.end(connection, before)
                mark = await database_marks.begin(connection, secrets.token_hex(8))
            hold = await database_marks.settle(connection)
            return mark, () if hold is None else hold.nodes

        mark, waits_for = await self._database.transact(work)
        if mark.server != before.server:
            log.warning("the database was replaced by an older one: nodes have to connect again")
        await self._keep(mark)
        was, self._waits_for = self._waits_for, waits_for
        if was != waits_for:
            self._changed()

    async def _keep(self, mark: DatabaseMark) -> None:
        await asyncio.to_thread(self._file.write, mark)
        self.mark = mark  # nodes are told of what is written down

    async def run(self) -> None:
        """Count until cancelled."""
        while True:
            await asyncio.sleep(COUNT_S)
            try:
                await self.step()
            except (NovaError, asyncpg.PostgresError, *LOST) as error:
                if self._log_now.due("count"):
                    log.warning("the database's mark can't be kept", error=str(error))

    async def be_seen(self) -> None:
        """Hold this server's lock until cancelled: others that begin see that the database is in use."""
        while True:
            try:
                await self._hold_lock()
            except (NovaError, asyncpg.PostgresError, *LOST) as error:
                if self._log_now.due("lock"):
                    log.warning("this server's lock in the database was lost, and is taken again", error=str(error))
            await asyncio.sleep(COUNT_S)

    async def _hold_lock(self) -> None:
        assert self.mark is not None
        async with leadership(self._database.url, database_marks.lock_of(self.mark.server)) as lock:
            while True:
                await asyncio.sleep(COUNT_S)
                await lock.execute("SELECT 1")

    async def end(self) -> None:
        """The server has stopped: no node was told anything that is not in the database."""
        mark = self.mark
        if mark is not None:
            await self._database.transact(lambda connection: database_marks.end(connection, mark))
