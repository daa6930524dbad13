"""The process that archives a database while the server runs: it follows its WAL into a repository, and makes base
backups. The server's process starts it, and starts it again; it ends with the server.

``pg_receivewal`` writes the WAL into a spool, a folder on this machine, and so holds a replication slot: the database
keeps what was not received, up to its ``max_slot_wal_keep_size``, and never waits. See
docs/adr/0063-archiving-the-database.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from novacron.backup import restic
from novacron.backup.errors import RepositoryError
from novacron.backup.locks import RepositoryLock
from novacron.backup.places import place_of
from novacron.backup.repository import Repository
from novacron.backup.restic import PruneLimits
from novacron.child_environment import POSTGRES, clean
from novacron.local import database_archive, database_backup, database_recovery, database_wal
from novacron.local.database_archive import WalArchive
from novacron.local.database_backup import BackupFailed, BackupPlace
from novacron.local.database_connection import DatabaseConnection
from novacron.local.postgres import ARCHIVER_SLOT, PostgresFailed, programs
from novacron.store import hosts
from novacron.supervise import BackoffPolicy, supervise
from novacron.telemetry import logs
from novacron.telemetry.shared import Processes
from novacron.telemetry.values import counter, gauge

log = logs.get(__name__)

SLOT = ARCHIVER_SLOT
"""Also the application's name."""
STORE_S = 20.0
"""How often what was received is stored."""
RECEIVED_S_MAX = 10.0
"""How long to wait until what was committed is received."""
CONNECT_S, QUERY_S = 5.0, 10.0
STANDBY_S = 5.0
"""How often to look whether the archiver of another server has ended."""
SPOOL_BYTES_MAX = 1 << 30
"""What waits for the repository on this machine; beyond, the database keeps the rest."""
FAILS_MAX = 3
"""Ends of ``pg_receivewal`` in a row after which it does not go on where it was, but anew."""
RUN_S_MIN = 10.0
"""It worked if it ran for longer."""
BASE_LOOK_S = 5.0
PRUNE = PruneLimits(600.0, unused="10%", repacked="1G")
"""Nothing is stored meanwhile."""
LAST_STORE_S = 20.0
"""For what is received when the server stops."""
BACKOFF = BackoffPolicy(first_s=1.0, most_s=30.0)
BASE_BACKOFF = BackoffPolicy(first_s=30.0, most_s=3600.0, steady_s=7200.0)
FAILURES = "novacron_database_wal_failures_total"
ARCHIVED_AT = "novacron_database_wal_archived_timestamp_seconds"
BASE_AT = "novacron_database_base_backup_timestamp_seconds"

CANT = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, RepositoryError, BackupFailed,
        PostgresFailed)  # fmt: skip
"""What may go wrong from time to time; anything else is a defect."""


class ArchiverSettings(msgspec.Struct, frozen=True):
    """What is archived, and where."""

    url: str
    """Of the database."""
    repository: str
    password_file: str
    spool: str
    metrics: str
    """Directory in which the server's processes share what they count."""
    base_every_s: float
    keep_days: int

    @property
    def place(self) -> BackupPlace:
        return BackupPlace(place_of(self.repository), Path(self.password_file))


class Archiver:
    """Archives one database; its loops end when they are cancelled."""

    def __init__(self, settings: ArchiverSettings) -> None:
        self.settings = settings
        self._spool = Path(settings.spool)
        """Below it, a folder for each cluster."""
        self._cluster = ""
        self._archive: WalArchive | None = None
        self._stored: dict[str, int] = {}
        """When the files in the spool that are stored were written last (ns), by their names."""
        self._base_at: datetime | None = None
        self._base_wanted = asyncio.Event()
        self._gaps_known = False
        self.makes_base = False
        self._prune_wanted = False
        self._receiving = False
        self._begun = asyncio.Event()
        """Receiving has begun: WAL is stored at once."""
        self._alone = asyncio.Lock()
        """Held by whoever writes WAL into the repository, or prunes it."""

    # receiving

    async def receive(self) -> None:
        """Keep pg_receivewal running."""
        pause_s, fails = 0.0, 0
        while True:
            began = time.monotonic()
            try:
                if not await self._may_receive(fails):
                    await asyncio.sleep(STANDBY_S)
                    continue
                await self._receive_once()
                lasted_s = time.monotonic() - began
                fails = 0 if lasted_s > RUN_S_MIN else fails + 1
            except CANT as error:
                lasted_s = 0.0
                self._failed("WAL can't be received", error)
            pause_s = BACKOFF.after(pause_s, lasted_s)
            await asyncio.sleep(pause_s)

    async def _may_receive(self, fails: int) -> bool:
        """Prepare the database; return False while another server archives it, or too much waits here."""
        async with self._database() as connection:
            await self._check(connection)
            await self._know_cluster(connection)
            active = await connection.fetchval("SELECT active FROM pg_replication_slots WHERE slot_name = $1", SLOT)
            if active or _spooled_bytes(self._spool) > SPOOL_BYTES_MAX:
                return False
            if fails >= FAILS_MAX:
                await self._begin_anew(connection)
            await connection.execute(
                "SELECT pg_create_physical_replication_slot($1, true)"
                " WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)", SLOT,
            )  # fmt: skip
        return True

    async def _receive_once(self) -> None:
        """Run pg_receivewal until it ends."""
        process = await self._start_receiver()
        self._receiving = True
        self._begun.set()
        try:
            assert process.stderr is not None
            reading = asyncio.create_task(_tail(process.stderr))
            watching = asyncio.create_task(supervise("watch-spool", partial(self._watch_spool, process)))
            try:
                words, _ = await reading, await process.wait()
            finally:
                watching.cancel()
                reading.cancel()
            counter(FAILURES).add()
            log.warning("pg_receivewal has ended", code=process.returncode, error=words)
        finally:
            self._receiving = False
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()

    async def _start_receiver(self) -> asyncio.subprocess.Process:
        server = DatabaseConnection.of(self.settings.url)
        return await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "TERM", "--", str(programs() / "pg_receivewal"), "--directory", str(self._spool),
            "--slot", SLOT, "--synchronous", "--no-loop", "--no-password", "--dbname", server.url,
            env=clean({**server.secrets, "PGAPPNAME": SLOT}, prefix=POSTGRES), stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def _watch_spool(self, process: asyncio.subprocess.Process) -> None:
        """Stop receiving when too much waits for the repository."""
        while _spooled_bytes(self._spool) <= SPOOL_BYTES_MAX:  # noqa: ASYNC110 (a folder tells nobody)
            await asyncio.sleep(STANDBY_S)
        log.warning("too much WAL waits for the repository: the database keeps the rest", bytes_max=SPOOL_BYTES_MAX)
        process.terminate()

    async def _check(self, connection: asyncpg.Connection) -> None:
        """Raise BackupFailed where this database can't be archived without danger for it."""
        if await connection.fetchval("SELECT pg_is_in_recovery()"):
            raise BackupFailed("the database is a standby: use the URL of the primary")
        if await connection.fetchval("SHOW max_slot_wal_keep_size") == "-1":
            raise BackupFailed(
                "max_slot_wal_keep_size of PostgreSQL is -1: its disk would fill up if archiving stopped;"
                " ALTER SYSTEM SET max_slot_wal_keep_size = '4GB'; SELECT pg_reload_conf()"
            )

    async def _begin_anew(self, connection: asyncpg.Connection) -> None:
        """Store and empty the spool, so that receiving goes on where the slot is; if it is empty, drop the slot, too.

        Either the spool is of another timeline, or the database has removed what comes next. Raises one of ``CANT``.
        """
        async with self._alone:
            await asyncio.to_thread(self._store_spool, None)
            is_empty = not any(self._spool.iterdir())
            shutil.rmtree(self._spool)
            self._spool.mkdir(mode=0o700)
            self._stored.clear()
        if is_empty:
            await connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", SLOT
            )
        log.warning("archiving begins anew: a base backup will be made", slot_dropped=is_empty)
        self._base_wanted.set()

    @contextlib.asynccontextmanager
    async def _database(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await hosts.connect(self.settings.url, timeout=CONNECT_S, command_timeout=QUERY_S)
        try:
            yield connection
        finally:
            await connection.close(timeout=QUERY_S)

    # storing

    async def store(self) -> None:
        """Store what is received, again and again."""
        while True:
            await self._try("WAL can't be stored", self.store_once)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), STORE_S)
            self._begun.clear()

    async def store_once(self) -> None:
        """Store what was committed until now. Raises one of ``CANT``."""
        if not self._receiving:
            if self._cluster:  # the database is away: what had come before is to be safe
                async with self._alone:
                    await asyncio.to_thread(self._store_spool, None)
            return
        until, caught_up = await self._received()
        async with self._alone:
            await asyncio.to_thread(self._store_spool, until if caught_up else None)
        if not caught_up:
            raise BackupFailed(f"WAL is received more than {RECEIVED_S_MAX:.0f} s late")
        if not self._gaps_known and not self.makes_base:  # what is being made may be what is missing
            if await asyncio.to_thread(self._has_gap):
                log.warning("WAL is missing in the repository: a base backup will be made")
                self._base_wanted.set()
            self._gaps_known = True
        gauge(ARCHIVED_AT).set(until.timestamp())
        gauge(BASE_AT).set(0.0 if self._base_at is None else self._base_at.timestamp())

    async def _received(self) -> tuple[datetime, bool]:
        """Wait until what is committed now is received; return the database's time, and whether it was in time."""
        async with self._database() as connection:
            row = await connection.fetchrow("SELECT clock_timestamp(), pg_current_wal_flush_lsn()::text")
            assert row is not None
            now, flushed = row
            deadline = time.monotonic() + RECEIVED_S_MAX
            while not await connection.fetchval(
                "SELECT bool_or(flush_lsn >= $2::text::pg_lsn) FROM pg_stat_replication WHERE application_name = $1",
                SLOT, flushed,
            ):  # fmt: skip
                if time.monotonic() > deadline:
                    return now, False
                await asyncio.sleep(0.1)
        return now, True

    async def _know_cluster(self, connection: asyncpg.Connection) -> None:
        """Find out which database it is: another one may be there since."""
        cluster = str(await connection.fetchval("SELECT system_identifier FROM pg_control_system()"))
        async with self._alone:
            if cluster != self._cluster:
                self._cluster, self._archive = cluster, None
                self._stored.clear()
                self._spool = Path(self.settings.spool) / cluster
                self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _open(self, cluster: str) -> WalArchive:
        place, self._gaps_known = self.settings.place, False
        with database_backup.explained():
            repository = database_backup.open_repository(place, create=not place.password_file.exists())
            self._base_at = max(
                (made.at for made in database_backup.stored_backups(repository)
                 if database_archive.cluster_of(repository, made.id) == cluster), default=None,
            )  # fmt: skip
            return WalArchive(repository, cluster)

    def _store_spool(self, until: datetime | None) -> None:
        """Store what is in the spool and not yet in the repository. ``until``: all that was committed before is in it;
        None: that is not known. Raises BackupFailed, RepositoryError, OSError."""
        if self._archive is None:
            self._archive = self._open(self._cluster)
        archive = self._archive
        until = until or archive.until
        written = {path.name: path.stat().st_mtime_ns for path in self._spool.iterdir()
                   if database_wal.is_wal(path.name)}  # fmt: skip
        self._check_names(archive, sorted(written))
        new = [name for name, at in sorted(written.items()) if not self._is_stored(archive, name, at)]
        if new:
            archive.store([self._spool / name for name in new], until)
        self._stored = written
        whole = [name for name in sorted(written) if not database_wal.is_partial(name)]
        for name in whole[:-1]:  # from the last one on, pg_receivewal goes on
            (self._spool / name).unlink()

    def _has_gap(self) -> bool:
        """Say whether what was stored last can't be reached from a base backup, as after the loss of a spool."""
        assert self._archive is not None
        newest = self._archive.until
        bases = [source for source in database_recovery.restorable(self.settings.place)
                 if source.base is not None and source.base.cluster == self._cluster]  # fmt: skip
        return bool(bases) and all(source.until < newest for source in bases)

    def _is_stored(self, archive: WalArchive, name: str, written_at: int) -> bool:
        """Say whether the repository has a file as it is in the spool."""
        if database_wal.is_partial(name):
            return self._stored.get(name) == written_at
        return name in archive.files

    def _check_names(self, archive: WalArchive, names: list[str]) -> None:
        """Raise BackupFailed where the repository has another file of a name, as after a copy of the database was put
        back that went on along the same timeline."""
        partial = [name.removesuffix(database_wal.PARTIAL) for name in names if database_wal.is_partial(name)]
        other = [name for name in partial[-1:] if name in archive.files]
        other += [
            name for name in names
            if name in archive.files and name not in self._stored and not archive.is_same(self._spool / name)
        ]  # fmt: skip
        if other:
            raise BackupFailed(
                f"the repository has another WAL file {other[0]}: if the database was restored without a new timeline,"
                " use another --backup-repository"
            )

    # base backups

    async def make_bases(self) -> None:
        """Make base backups when they are due, and free room after each."""
        pause_s = 0.0
        while True:
            await asyncio.sleep(max(BASE_LOOK_S, pause_s))
            ok = True
            if self._base_due():
                ok = await self._try("no base backup was made", self._make_base)
            elif self._prune_wanted:
                ok = await self._try("the repository is not pruned", self._prune)
            pause_s = 0.0 if ok else BASE_BACKOFF.after(pause_s, 0.0)

    def _base_due(self) -> bool:
        if not self._receiving or self._archive is None:
            return False
        due_at = None if self._base_at is None else self._base_at + timedelta(seconds=self.settings.base_every_s)
        return self._base_wanted.is_set() or due_at is None or datetime.now(UTC) >= due_at

    async def _make_base(self) -> None:
        self._base_wanted.clear()
        self.makes_base = True
        try:
            made = await asyncio.to_thread(
                database_backup.backup, self.settings.place, self.settings.url, scheduled=True
            )  # fmt: skip
        except BaseException:
            self._base_wanted.set()
            raise
        finally:
            self.makes_base = False
        self._base_at = made.at
        gauge(BASE_AT).set(made.at.timestamp())
        log.info("a base backup was made", id=made.id[:8], bytes=made.size_bytes)
        self._prune_wanted = True
        async with self._alone:
            await asyncio.to_thread(self._thin_out)

    def _thin_out(self) -> None:
        """Remove what is older than is to be kept."""
        archive = self._archive
        if archive is not None:
            repository = database_backup.open_repository(self.settings.place)
            with RepositoryLock(repository, exclusive=False):
                thin_out(repository, archive, datetime.now(UTC), timedelta(days=self.settings.keep_days))

    async def _prune(self) -> None:
        """Free the room of what was removed, also of unfinished segments."""
        async with self._alone:
            place = self.settings.place
            password = await asyncio.to_thread(place.password_file.read_bytes)
            await restic.prune(place.repository, password.strip(), PRUNE)
        self._prune_wanted = False

    # failures

    async def _try(self, what: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Do something once; return whether it went well. What goes wrong is logged and counted."""
        try:
            await work()
        except CANT as error:
            self._failed(what, error)
            return False
        return True

    async def unless_defect(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run one of the loops; after a defect in it the repository is opened anew, as if the process began again."""
        try:
            await loop()
        except Exception as error:
            self._failed("one of the archiver's loops met a defect", error)
            raise

    def _failed(self, what: str, error: Exception) -> None:
        counter(FAILURES).add()
        if isinstance(error, RepositoryError) or not isinstance(error, CANT):
            self._archive = None  # opened again: another one may be there now
            self._stored.clear()
        log.warning(what, error=str(error) or type(error).__name__)


def thin_out(repository: Repository, archive: WalArchive, now: datetime, keep: timedelta) -> None:
    """Take base backups out that the server made and that are older than is to be kept, and the WAL before those that
    are left. Raises RepositoryError."""
    bases = {made.id: made for made in database_backup.stored_backups(repository)
             if database_archive.cluster_of(repository, made.id) == archive.cluster}  # fmt: skip
    scheduled = [(id, made.at) for id, made in bases.items() if made.scheduled]
    for id in database_wal.expired_bases(scheduled, now, keep):
        database_archive.remove_snapshot(repository, id)
        scheduled = [entry for entry in scheduled if entry[0] != id]
    if scheduled:
        oldest = database_archive.base_of(repository, min(scheduled, key=lambda entry: entry[1])[0])
        archive.remove_before(oldest.first_segment, oldest.segment_bytes)


def _spooled_bytes(spool: Path) -> int:
    total = 0
    for path in spool.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


async def _tail(stream: asyncio.StreamReader) -> str:
    """Read a stream to its end; return its last words."""
    kept = b""
    while part := await stream.read(4096):
        kept = (kept + part)[-1000:]
    return kept.decode(errors="replace").strip()


async def run(archiver: Archiver, stop: asyncio.Event) -> None:
    """Archive until ``stop``; then once more what is received. A defect in one loop ends none of the others."""
    metrics = Path(archiver.settings.metrics)
    metrics.mkdir(mode=0o700, parents=True, exist_ok=True)
    processes = Processes(metrics)
    loops = {
        "receive-wal": archiver.receive, "store-wal": archiver.store, "base-backups": archiver.make_bases,
        "shared-metrics": processes.run,
    }  # fmt: skip
    tasks = [
        asyncio.create_task(supervise(name, partial(archiver.unless_defect, loop))) for name, loop in loops.items()
    ]
    stopped: asyncio.Task[Any] = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        with contextlib.suppress(*CANT):
            await asyncio.wait_for(archiver.store_once(), LAST_STORE_S)
    finally:
        for task in (*tasks, stopped):
            task.cancel()
        await asyncio.wait([*tasks, stopped], timeout=QUERY_S)


async def _main(settings: ArchiverSettings, owner: int) -> None:
    """Archive until the server has ended, or closes the other end of ``owner``."""
    stop = asyncio.Event()
    # A service manager ends all processes at once, and the server writes on; restic unlock sends SIGHUP to whoever has
    # a lock, to see whether it is there.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    asyncio.get_running_loop().add_reader(owner, stop.set)
    archiver = Archiver(settings)
    await run(archiver, stop)
    if archiver.makes_base:  # nothing of it counts, and its thread would be waited for
        os._exit(0)


def main() -> None:
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=ArchiverSettings)
    logs.set_up("archiver", os.environ.get("NOVACRON_LOG_LEVEL", "info"))
    os.umask(0o077)
    asyncio.run(_main(settings, sys.stdin.fileno()))


if __name__ == "__main__":
    main()
