"""The database's WAL goes into a repository all the time, and the database comes back as it was at any second."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from lab.platform import open_directory
from lab.ports import free_ports
from novacron.backup import restic
from novacron.backup.disks import DiskReader
from novacron.backup.restic import PruneLimits
from novacron.backup.snapshot import File
from novacron.local import database_archive, database_backup, database_recovery
from novacron.local.archiver_process import archiving
from novacron.local.database_archiver import SLOT, ArchiverSettings
from novacron.local.database_backup import BackupFailed, BackupPlace
from novacron.local.database_recovery import Restorable
from novacron.local.postgres import Postgres
from tests.support.stopped import standing_still
from tests.waiting import pause, until

ARCHIVED_S_MAX = 60.0
DAY_S = 86_400.0


class Installation:
    """An embedded database and a repository for it, with no server."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.postgres = Postgres(state / "postgres")
        self.repository = state / "repository"
        self.place = BackupPlace(self.repository, state / "backup.password")
        self.spool = state / "database-wal"

    @contextlib.contextmanager
    def running(self, base_every_s: float = DAY_S) -> Iterator[None]:
        """Run the database and its archiver."""
        settings = ArchiverSettings(
            self.postgres.start(), str(self.repository), str(self.place.password_file), str(self.spool),
            str(self.state / "metrics"), base_every_s, 30,
        )  # fmt: skip
        try:
            with archiving(settings):
                yield
        finally:
            self.postgres.stop()

    def sql(self, statement: str, *values: object) -> list[asyncpg.Record]:
        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.postgres.url)
            try:
                rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
                return rows
            finally:
                await connection.close()

        return asyncio.run(run())

    def write(self, n: int) -> datetime:
        """Add a row; return a time between it and the next."""
        self.sql("INSERT INTO kept VALUES ($1)", n)
        pause(0.05)
        at: datetime = self.sql("SELECT clock_timestamp() AS at")[0]["at"]
        pause(0.05)
        return at

    def rows(self) -> list[int]:
        """Start the database, return what is in it, and stop it."""
        self.postgres.start()
        try:
            return [row["n"] for row in self.sql("SELECT n FROM kept ORDER BY n")]
        finally:
            self.postgres.stop()

    def restorable(self) -> list[Restorable]:
        try:
            return database_recovery.restorable(self.place)
        except BackupFailed:
            return []

    def wait_for_base(self) -> datetime:
        """Wait until there is a base backup; return when it was made."""
        found = until(self.restorable, "a base backup is made")
        return found[-1].backup.at

    def wait_pruned(self) -> None:
        """Wait until the base backup's work is over: then nothing but WAL is stored."""
        until(lambda: len(list((self.repository / "index").iterdir())) == 1, "restic has pruned", 60.0)
        until(lambda: not list((self.repository / "locks").iterdir()), "it has ended")

    def wait_archived(self, at: datetime) -> None:
        until(lambda: any(source.until >= at for source in self.restorable()), f"{at} is archived", ARCHIVED_S_MAX)

    def restore(self, target: datetime | None) -> database_recovery.RecoveredDatabase:
        return database_recovery.restore(self.place, self.state, database_recovery.choose(self.place, target))

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "novacron", "database", *arguments, "--repository", str(self.repository),
             "--state-dir", str(self.state)],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def restic(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["restic", "--no-cache", "-q", "-r", str(self.repository), *arguments], capture_output=True,
            env={**os.environ, "RESTIC_PASSWORD_FILE": str(self.place.password_file)}, check=False,
        )  # fmt: skip


@pytest.fixture
def installation() -> Iterator[Installation]:
    with open_directory("nvpitr-") as directory:
        made = Installation(directory)
        made.postgres.start()
        made.sql("CREATE TABLE kept (n int)")
        made.postgres.stop()
        yield made


def _receivers(installation: Installation) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(b"pg_receivewal") and any(str(installation.state).encode() in word for word in words):
                found.append(int(path.parent.name))
    return found


def test_the_database_comes_back_as_it_was_at_a_second_on_each_timeline(installation: Installation) -> None:
    with installation.running():
        base_at = installation.wait_for_base()
        times = [installation.write(n) for n in range(3)]
        installation.sql("SELECT pg_switch_wal()")
        times += [installation.write(n) for n in range(3, 6)]
        installation.wait_archived(times[-1])
        pause(1.0)
    listed = json.loads(installation.command("list", "--output", "json").stdout)
    assert datetime.fromisoformat(listed[-1]["restorable_until"]).replace(tzinfo=UTC) > times[-1] - timedelta(seconds=1)
    done = installation.command("restore", "--to", times[2].isoformat(), "--yes")
    assert done.returncode == 0 and "its last transaction is of" in done.stdout, done.stderr
    assert installation.rows() == [0, 1, 2]
    assert installation.restore(times[4].astimezone(UTC)).last_transaction is not None
    assert installation.rows() == [0, 1, 2, 3, 4]
    with installation.running():
        later = [installation.write(n) for n in (100, 101)]
        installation.wait_archived(later[-1])
    installation.restore(later[0])
    assert installation.rows() == [0, 1, 2, 3, 4, 100], "along the timeline that the restore began"
    installation.restore(None)
    assert installation.rows() == [0, 1, 2, 3, 4, 100, 101]
    recovery = database_recovery.choose(installation.place, times[-1], timeline=1)
    database_recovery.restore(installation.place, installation.state, recovery)
    assert installation.rows() == [0, 1, 2, 3, 4, 5], "along the timeline that was given up"
    as_it_is = database_recovery.choose_backup(installation.place, listed[-1]["id"][:10])
    database_recovery.restore(installation.place, installation.state, as_it_is)
    assert installation.rows() == [] and as_it_is.moment == base_at
    verified = installation.command("verify")
    assert "WAL files after it" in verified.stdout, verified.stderr
    checked = installation.restic("check", "--read-data")
    assert checked.returncode == 0, checked.stderr


def test_a_lost_disk_costs_at_most_a_minute(installation: Installation) -> None:
    with installation.running():
        installation.wait_for_base()
        written = installation.write(1)
        began = datetime.now(UTC)
        installation.wait_archived(written)
        assert datetime.now(UTC) - began < timedelta(seconds=ARCHIVED_S_MAX)
        kept = installation.state / "kept"
        with standing_still(_archivers()):  # a copy of what is being written would be of no one moment
            shutil.copytree(installation.repository, kept)
    shutil.rmtree(installation.state / "postgres")
    shutil.rmtree(installation.spool)
    shutil.rmtree(installation.repository)
    kept.rename(installation.repository)
    assert installation.restore(None).kept is None
    assert installation.rows() == [1]


@pytest.mark.slow
def test_kills_leave_no_gap(installation: Installation) -> None:
    with installation.running():
        installation.wait_for_base()
        installation.write(1)
        for name in ("pg_receivewal", "archiver", "postgres"):
            if name == "postgres":
                installation.postgres.kill()
                installation.postgres.start()
            else:
                pids = _receivers(installation) if name == "pg_receivewal" else _archivers()
                assert pids, name
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            last = installation.write(2)
            installation.sql("SELECT pg_switch_wal()")
            until(lambda: _active(installation), "it receives again", 90.0)
        installation.wait_archived(last)
    assert len(installation.restorable()) == 1, "nothing began anew"
    installation.restore(None)
    assert installation.rows() == [1, 2, 2, 2]


def _archivers() -> list[int]:
    """Return the archivers that this process has started."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    return [pid for pid in pids if b"novacron.local.database_archiver" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _active(installation: Installation) -> bool:
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        rows = installation.sql("SELECT active FROM pg_replication_slots WHERE slot_name = $1", SLOT)
        return bool(rows and rows[0]["active"])
    return False


@pytest.mark.slow
def test_a_repository_that_was_away_gets_what_it_missed(installation: Installation) -> None:
    away = installation.state / "away"
    with installation.running():
        base_at = installation.wait_for_base()
        installation.wait_pruned()
        installation.wait_archived(installation.write(0))
        installation.repository.rename(away)
        for n in (1, 2):
            installation.write(n)
            installation.sql("SELECT pg_switch_wal()")
        last = installation.write(3)
        pause(25.0)
        assert not installation.repository.exists(), "none begins in its place"
        away.rename(installation.repository)
        installation.wait_archived(last)
    (source,) = installation.restorable()
    assert source.backup.at == base_at
    installation.restore(None)
    assert installation.rows() == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_slot_that_was_lost_begins_anew_with_a_base_backup(installation: Installation) -> None:
    with installation.running():
        installation.wait_for_base()
    installation.postgres.start()
    installation.sql("SELECT pg_drop_replication_slot($1)", SLOT)
    for _ in range(3):
        installation.sql("SELECT pg_switch_wal()")
        installation.sql("CHECKPOINT")
    installation.write(1)
    installation.postgres.stop()
    with installation.running():
        until(lambda: len(installation.restorable()) == 2, "another base backup is made", 90.0)
        installation.wait_archived(installation.write(2))
    assert len(database_recovery.ranges(installation.restorable())) == 2, "what is in between can't be restored"
    installation.restore(None)
    assert installation.rows() == [1, 2]


@pytest.mark.slow
def test_a_spool_that_was_lost_is_noticed(installation: Installation) -> None:
    with installation.running():
        installation.wait_for_base()
        installation.wait_pruned()
        installation.wait_archived(installation.write(1))
        away = installation.state / "away"
        installation.repository.rename(away)
        for _ in range(3):
            installation.sql("SELECT pg_switch_wal()")
            installation.write(2)
        until(lambda: _slot_segment(installation) >= 5, "it is received", 60.0)
    away.rename(installation.repository)
    shutil.rmtree(installation.spool)
    with installation.running():
        until(lambda: len(installation.restorable()) == 2, "another base backup is made", 90.0)
        installation.wait_archived(installation.write(3))
    installation.restore(None)
    assert installation.rows() == [1, 2, 2, 2, 3]


def _slot_segment(installation: Installation) -> int:
    """Return in which segment what was not received begins."""
    rows = installation.sql("SELECT (restart_lsn - '0/0') / (16 << 20) AS n FROM pg_replication_slots")
    return int(rows[0]["n"])


def test_a_restored_server_knows_that_nodes_know_more(installation: Installation) -> None:
    """The server itself archives, and its mark outside the database survives the restore."""
    port, link_port = free_ports(2)
    command = [
        sys.executable, "-m", "novacron", "server", "--state-dir", str(installation.state), "--port", str(port),
        "--link-port", str(link_port), "--backup-repository", str(installation.repository),
    ]  # fmt: skip
    environment = {**os.environ, "NOVACRON_CONFIG": str(installation.state / "config.json")}
    log = installation.state / "server.log"

    @contextlib.contextmanager
    def served() -> Iterator[None]:
        with log.open("ab") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
            try:
                yield
            finally:
                process.terminate()
                process.wait(60)

    with served():
        installation.wait_for_base()
        at = installation.write(1)
        installation.wait_archived(installation.write(2))
    assert "may be older than what nodes know" not in log.read_text()
    assert installation.command("restore", "--to", at.isoformat(), "--yes").returncode == 0
    with served():
        until(lambda: "may be older than what nodes know" in log.read_text(), "the server suspects its database")
    assert installation.rows() == [1]


async def test_what_is_stored_every_few_seconds_is_put_together(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    place = BackupPlace(root, tmp_path / "backup.password")
    archive = database_archive.WalArchive(database_backup.open_repository(place, create=True), "1")
    content = bytearray(1 << 20)
    path = tmp_path / f"{1:024X}.partial"
    for n in range(20):
        content[n * 1000 : n * 1000 + 500] = os.urandom(500)
        path.write_bytes(content)
        archive.store([path], datetime.now(UTC))
    before = sum(file.is_file() for file in root.rglob("*"))
    await restic.prune(root, place.password_file.read_bytes().strip(), PruneLimits(600.0))
    assert sum(file.is_file() for file in root.rglob("*")) < before / 3
    path.write_bytes(content[::-1])
    archive.store([path], datetime.now(UTC))
    await restic.prune(root, place.password_file.read_bytes().strip(), PruneLimits(600.0))
    (file,) = database_archive.WalArchive(database_backup.open_repository(place), "1").files.values()
    repository = database_backup.open_repository(place)
    stored = database_archive.content(repository, file)
    assert DiskReader(repository, stored).read(0, stored.size) == content[::-1], "what went is stored anew"


def test_no_time_counts_as_archived_before_all_of_its_wal_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A disk that is lost between two files of one pass costs no more than what is said."""
    place = BackupPlace(tmp_path / "repository", tmp_path / "backup.password")
    archive = database_archive.WalArchive(database_backup.open_repository(place, create=True), "1")
    before, now = datetime.now(UTC) - timedelta(seconds=20), datetime.now(UTC)
    names = ["00000002.history", f"{1:024X}", f"{2:024X}.partial"]
    for name in names:
        (tmp_path / name).write_bytes(os.urandom(1000))
    archive.store([tmp_path / names[1]], before)
    save, seen = archive._repository.save_snapshot, list[datetime]()

    def saved(directory: str, files: dict[str, File], tags: list[str]) -> str:
        id = save(directory, files, tags)
        seen.append(database_archive.WalArchive(database_backup.open_repository(place), "1").until)
        return id

    monkeypatch.setattr(archive._repository, "save_snapshot", saved)
    archive.store([tmp_path / name for name in names], now)
    assert seen == [before, before, now]


def test_wal_of_another_history_with_the_same_names_is_refused(installation: Installation) -> None:
    installation.postgres.start()
    installation.postgres.stop()
    copy = installation.state / "copy"
    with installation.running():
        installation.wait_for_base()
        installation.sql("SELECT pg_switch_wal()")
        installation.wait_archived(installation.write(1))
    shutil.copytree(installation.postgres.data, copy, symlinks=True)
    installation.postgres.own(copy)
    with installation.running():
        for n in range(3):
            installation.sql("SELECT pg_switch_wal()")
            at = installation.write(n)
        installation.wait_archived(at)
    shutil.rmtree(installation.postgres.data)
    shutil.rmtree(installation.spool)
    copy.rename(installation.postgres.data)
    with installation.running():
        at = installation.write(7)
        pause(25.0)
    assert all(source.until < at for source in installation.restorable())


def test_damaged_wal_and_times_outside_are_refused_before_anything_moves(installation: Installation) -> None:
    with installation.running():
        base_at = installation.wait_for_base()
        first = installation.write(1)
        installation.sql("SELECT pg_switch_wal()")
        installation.wait_archived(installation.write(2))
    before = (installation.postgres.data / "PG_VERSION").stat().st_ino
    for words, said in (
        ("2999-01-01", "is in the future: what can be restored is"),
        ((base_at - timedelta(hours=1)).isoformat(), "can't be restored as it was at"),
        ("yesterday", "is not a time: write it like"),
    ):
        done = installation.command("restore", "--to", words, "--yes")
        assert done.returncode != 0 and said in " ".join(done.stderr.replace("│", "").split()), done.stderr
    _damage(installation)
    with pytest.raises(BackupFailed, match=r"WAL file \w+ .* is damaged"):
        installation.restore(first)
    assert (installation.postgres.data / "PG_VERSION").stat().st_ino == before
    assert sorted(path.name for path in installation.postgres.directory.glob("data*")) == ["data"]
    assert "is damaged" in installation.command("verify").stderr
    assert installation.rows() == [1, 2]


def _damage(installation: Installation) -> None:
    """Change a byte of a WAL file that the base backup does not have itself."""
    repository = database_backup.open_repository(installation.place)
    file = installation.restorable()[-1].coverage.files[1]
    place = repository.index.find(database_archive.content(repository, file).ids()[0])
    assert place is not None
    path = installation.repository / "data" / place.pack.hex()[:2] / place.pack.hex()
    content = bytearray(path.read_bytes())
    content[place.blob.offset + place.blob.length // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
