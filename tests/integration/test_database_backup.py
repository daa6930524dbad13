"""The platform's database goes into a repository and comes back, whole or not at all; restic reads it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from lab.platform import open_directory
from novacron.local import database_backup, database_recovery
from novacron.local.database_backup import BackupFailed, BackupPlace
from novacron.local.postgres import Postgres, PostgresFailed
from tests.support.s3 import ADMIN, S3Server


def backups(place: BackupPlace) -> list[database_backup.DatabaseBackup]:
    """Return all backups of databases, the latest last."""
    return database_backup.stored_backups(database_backup._open(place))


@pytest.fixture
def state() -> Iterator[Path]:
    with open_directory("nvdb-") as directory:
        yield directory


@pytest.fixture
def place(state: Path) -> BackupPlace:
    return BackupPlace(state / "repository", state / "backup.password")


def _run(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "novacron", "database", *arguments, "--repository", str(state / "repository"),
         "--state-dir", str(state)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _sql(postgres: Postgres, statement: str) -> list[asyncpg.Record]:
    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(postgres.url)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    return asyncio.run(run())


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_a_database_comes_back_as_it_was_and_what_it_replaces_is_kept(state: Path, place: BackupPlace) -> None:
    postgres = Postgres(state / "postgres")
    postgres.start()
    try:
        _sql(postgres, "CREATE TABLE kept AS SELECT n, md5(n::text) FROM generate_series(1, 1000) n")
        made = _run(state, "backup", "--create")
        assert made.returncode == 0, made.stderr
        first = _bytes(state / "repository")
        _sql(postgres, "INSERT INTO kept SELECT n, 'later' FROM generate_series(1001, 2000) n")
        assert _run(state, "backup").returncode == 0
        assert _bytes(state / "repository") - first < first / 2, "what has not changed is there once"
        _sql(postgres, "DROP TABLE kept")
        refused = _run(state, "restore", "--yes")
        assert refused.returncode == 1 and "already works with" in refused.stderr, "while it runs"
    finally:
        postgres.stop()
    earlier, later = backups(place)
    assert (_run(state, "verify").stdout).startswith(f"backup {later.id[:8]} of ")
    asks = _run(state, "restore")
    assert asks.returncode == 2 and "confirm with --yes" in asks.stderr
    for chosen, count in ((earlier, 1000), (later, 2000)):
        restored = _run(state, "restore", chosen.id[:10], "--yes")
        assert restored.returncode == 0 and "the previous database is in" in restored.stdout, restored.stderr
        postgres.start()
        try:
            assert _sql(postgres, "SELECT count(*) FROM kept")[0]["count"] == count
        finally:
            postgres.stop()
    assert len(list((state / "postgres").glob("data.before-*"))) == 2
    done = subprocess.run(
        ["restic", "--no-cache", "-q", "-r", str(place.repository), "check", "--read-data"], capture_output=True,
        env={**os.environ, "RESTIC_PASSWORD_FILE": str(place.password_file)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("renamed", [0, 1, 2, 3])
def test_a_restore_that_is_killed_between_its_steps_is_finished_or_undone(
    state: Path, renamed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are markers: it is about which folder is in whose place."""
    postgres = Postgres(state / "postgres")
    fresh = postgres.directory / "data.restored"
    for folder, content in ((postgres.data, "old"), (fresh, "new")):
        folder.mkdir(parents=True)
        (folder / "PG_VERSION").write_text(content)
    left = [renamed]
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with contextlib.suppress(KeyboardInterrupt):
            postgres.replace(fresh)
    with postgres.held():
        assert (postgres.data / "PG_VERSION").read_text() == ("old" if renamed < 2 else "new")
        assert len(list(postgres.directory.glob("data.before-*"))) == (renamed >= 2)


def test_no_empty_database_begins_beside_data_that_were_kept(state: Path) -> None:
    postgres = Postgres(state / "postgres")
    kept = postgres.directory / "data.before-20260101T000000Z"
    kept.mkdir(parents=True)
    try:
        with pytest.raises(PostgresFailed, match=rf"would create an empty database.* mv {kept} {postgres.data}"):
            postgres.start()
    finally:
        postgres.stop()
    assert not postgres.data.exists()


def test_a_damaged_backup_replaces_nothing(state: Path, place: BackupPlace) -> None:
    postgres = Postgres(state / "postgres")
    postgres.start()
    try:
        database_backup.backup(place, postgres.url, create=True)
        largest = max((state / "repository" / "data").rglob("*"), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.chmod(0o600)
        largest.write_bytes(content)
    finally:
        postgres.stop()
    before = (postgres.data / "PG_VERSION").stat().st_ino
    with pytest.raises(BackupFailed, match="damaged"):
        database_recovery.restore(place, state, database_recovery.choose(place, None))
    with pytest.raises(BackupFailed, match="damaged"):
        database_backup.verify(place)
    assert (postgres.data / "PG_VERSION").stat().st_ino == before
    assert sorted(path.name for path in postgres.directory.iterdir() if path.name.startswith("data")) == ["data"]


def test_what_is_missing_is_said_in_words(state: Path, place: BackupPlace) -> None:
    for arguments, words in (
        (("list",), "or create a repository with --create"),
        (("verify",), "the repository's password file"),
        (("backup", "--create"), "PostgreSQL made no backup"),
        (("verify",), "contains no database backup"),
        (("verify", "ffff"), "0 backups have ids that begin with 'ffff'"),
    ):
        done = _run(state, *arguments)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and words in done.stderr, done
    assert backups(place) == []


def test_a_database_comes_back_from_a_bucket(state: Path, s3_server: S3Server) -> None:
    postgres = Postgres(state / "postgres")
    file = ADMIN.file(state / "s3")
    bucket = s3_server.new_bucket("database")
    repository = f"s3://{bucket}/platform?endpoint={s3_server.endpoint}&credentials={file}"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "novacron", "database", *arguments, "--repository", repository,
             "--state-dir", str(state)],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    postgres.start()
    try:
        _sql(postgres, "CREATE TABLE kept AS SELECT n, md5(n::text) FROM generate_series(1, 1000) n")
        refused = run("backup")
        assert refused.returncode == 1 and "create a repository with --create" in refused.stderr
        made = run("backup", "--create")
        assert made.returncode == 0, made.stderr
        _sql(postgres, "DROP TABLE kept")
    finally:
        postgres.stop()
    assert run("list").stdout.count("\n") == 2
    verified = run("verify")
    assert "is whole" in verified.stdout, verified.stderr
    restored = run("restore", "--yes")
    assert restored.returncode == 0, restored.stderr
    postgres.start()
    try:
        assert _sql(postgres, "SELECT count(*) FROM kept")[0]["count"] == 1000
    finally:
        postgres.stop()
    done = subprocess.run(
        ["restic", "--no-cache", "-q", "-r", f"s3:{s3_server.endpoint}/{bucket}/platform", "check", "--read-data"],
        env={**os.environ, **ADMIN.environment(), "RESTIC_PASSWORD_FILE": str(state / "backup.password")},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_place_that_is_none_is_refused_in_words() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "novacron", "database", "list", "--repository", "s3://BAD"], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: 'BAD' is not a bucket name")
