"""A rehearsal of a restore: the newest backup of the database is recovered in a folder of its own, looked at, and
thrown away. The embedded database, its server and the repository stay as they are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import msgspec

from novacron.child_environment import clean
from novacron.local import database_recovery
from novacron.local.database_backup import BackupFailed, BackupPlace
from novacron.local.database_recovery import Recovery
from novacron.local.postgres import Postgres, PostgresFailed, programs
from novacron.state_lock import FolderInUse, FolderLock
from novacron.store.database import SCHEMA_VERSION

PREFIX, LOCK = "nv-rehearsal-", "rehearsal.lock"
SCRATCH_PATH_MAX = 45
"""Longest directory: the paths of Unix sockets below it must stay under 108 bytes."""
ROOM_FACTOR = 3
"""So many times the size of the backup has to be free, beside the WAL after it: its files, and what PostgreSQL adds."""
ROOM_BYTES_MIN = 1 << 30
RESERVE_BYTES_MIN, RESERVE_SHARE = 1 << 30, 0.05
"""What has to stay free, of the file system too: the server and others write to it meanwhile."""
CONNECT_S_MAX = 30.0
CHECK_S_MAX = 2 * 3600.0
SAID_MAX = 1500
NEVER_EMPTY = ("projects", "users")
"""Tables that have rows in each database of an installation."""


class Rehearsal(msgspec.Struct, frozen=True):
    """What a rehearsal found."""

    backup: str
    restorable_until: datetime
    """What was committed later would be lost."""
    loss_s: float
    """How long ago that is."""
    recover_s: float
    """Until the recovered database answered."""
    schema_version: str
    tables: dict[str, int]
    """How many rows each table has."""
    marks: int
    """Servers that have marked the database: by that, one that begins knows whether it is an older one."""


def rehearse(place: BackupPlace, scratch: Path | None = None) -> Rehearsal:
    """Recover the newest backup, look at it, and throw it away. Raises BackupFailed: there is none, there is no room
    for it, or it is not what a server could begin with."""
    recovery = database_recovery.choose(place, None)
    loss_s = (datetime.now(UTC) - recovery.moment).total_seconds()
    with _scratch_folder(recovery, scratch) as folder:
        began = time.monotonic()
        database_recovery.restore(place, folder, recovery)
        postgres = Postgres(folder / "postgres")
        try:
            url = postgres.start()
            version, tables = asyncio.run(_look(url))
            recover_s = time.monotonic() - began
            _check_files(postgres)
        except (PostgresFailed, asyncpg.PostgresError, TimeoutError) as error:
            raise BackupFailed(
                f"backup {recovery.source.backup.id[:8]} was recovered, but is not usable: {error}"
            ) from error
        finally:
            postgres.stop()
    _check(version, tables)
    return Rehearsal(
        recovery.source.backup.id, recovery.moment, max(loss_s, 0.0), recover_s, version, tables,
        tables.get("database_marks", 0),
    )  # fmt: skip


@contextlib.contextmanager
def _scratch_folder(recovery: Recovery, scratch: Path | None) -> Iterator[Path]:
    """Make a folder with room for a backup, which PostgreSQL's user may enter; remove it afterwards. Raises
    BackupFailed."""
    parent = scratch or Path(tempfile.gettempdir())
    if len(os.fsencode(parent.absolute())) > SCRATCH_PATH_MAX:
        raise BackupFailed(
            f"{parent}: its path is longer than {SCRATCH_PATH_MAX} bytes, too long for PostgreSQL's socket: name"
            " another directory with --scratch"
        )
    try:
        disk = shutil.disk_usage(parent)
        problem = room_problem(recovery, disk.free, disk.total)
        if problem:
            raise BackupFailed(f"{parent} {problem}: choose another directory with --scratch")
        _remove_leftovers(parent)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = FolderLock(folder, LOCK)
    except OSError as error:
        raise BackupFailed(f"{parent}: {error.strerror or error}: choose another directory with --scratch") from error
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def room_problem(recovery: Recovery, free_bytes: int, total_bytes: int) -> str:
    """Return why a file system has no room for a rehearsal; empty: it has."""
    database = max(ROOM_FACTOR * recovery.source.backup.size_bytes, ROOM_BYTES_MIN)
    reserve = max(RESERVE_BYTES_MIN, int(RESERVE_SHARE * total_bytes))
    if free_bytes >= database + recovery.wal_bytes + reserve:
        return ""
    return (
        f"has {free_bytes >> 20} MiB free, and a rehearsal takes up to {database >> 20} MiB for the database and"
        f" {recovery.wal_bytes >> 20} MiB for {len(recovery.source.coverage.files)} WAL files; {reserve >> 20} MiB have"
        " to stay free"
    )


def _remove_leftovers(parent: Path) -> None:
    """Remove what rehearsals have left that were killed, with the PostgreSQL that may still run in it."""
    for folder in parent.glob(f"{PREFIX}*"):
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid() or not (folder / LOCK).exists():
            continue
        with contextlib.suppress(FolderInUse, PostgresFailed, OSError):
            lock = FolderLock(folder, LOCK)
            try:
                with Postgres(folder / "postgres").held():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                lock.release()


async def _look(url: str) -> tuple[str, dict[str, int]]:
    """Return the version of the schema, and the rows of each table."""
    connection = await asyncpg.connect(url, timeout=CONNECT_S_MAX)
    try:
        version = await connection.fetchval("SELECT version_num FROM alembic_version")
        rows = await connection.fetch(
            "SELECT relname, format('SELECT count(*) FROM %I', relname) AS counts FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname"
        )
        tables = {row["relname"]: int(await connection.fetchval(row["counts"])) for row in rows}
        return str(version), tables
    finally:
        await connection.close()


def _check_files(postgres: Postgres) -> None:
    """Let PostgreSQL compare tables and indexes with one another. Raises BackupFailed."""
    command = [
        str(programs() / "pg_amcheck"), "--host", str(postgres.directory), "--username", "postgres",
        "--install-missing", "--heapallindexed", "--no-password", "postgres",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=CHECK_S_MAX, env=clean()
        )
    except subprocess.TimeoutExpired:
        raise BackupFailed(f"pg_amcheck took longer than {CHECK_S_MAX / 3600:.0f} h") from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise BackupFailed(f"the recovered database is damaged: {said[-SAID_MAX:]}")


def _check(version: str, tables: dict[str, int]) -> None:
    """Raise BackupFailed unless a server of this version could begin with what was recovered."""
    if version > SCHEMA_VERSION:
        raise BackupFailed(
            f"the backup has version {version} of the schema, but this program supports {SCHEMA_VERSION}: rehearse"
            " with the version that the server runs"
        )
    for table in NEVER_EMPTY:
        if not tables.get(table):
            raise BackupFailed(f"the backup's table {table} is empty: it is not from a NovaCron installation")
