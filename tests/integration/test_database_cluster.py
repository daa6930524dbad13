"""The database in three places: it begins as an embedded one, and the platform follows its primary."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from lab.database_cluster import DatabaseCluster, Place, checked, database_cluster
from lab.database_writer import Writer
from lab.platform import open_directory, until
from lab.ports import free_ports
from lab.replicas import Replica
from novacron.client import Client, load_config
from novacron.local import database_backup, database_recovery
from novacron.local.database_backup import BackupPlace
from novacron.local.database_cluster.settings import Cluster, ClusterMember, EtcdAccess
from novacron.local.postgres import ALONE, Postgres, PostgresFailed
from novacron.model.errors import Unavailable
from novacron.store import hosts
from novacron.store.database import Database, connect, migrate
from novacron.store.hosts import UrlParts
from tests.waiting import eventually, pause

KEPT_ROWS = 5000
OLDER = ("the database may be older", "replaced by an older one")
"""What a server says of a database that lacks what it has seen."""


def _sql(url: str, statement: str, *values: Any) -> list[asyncpg.Record]:
    async def run() -> list[asyncpg.Record]:
        connection = await hosts.connect(url, timeout=5)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
            return rows
        finally:
            await connection.close()

    return asyncio.run(run())


def _at(place: Place, statement: str) -> list[asyncpg.Record]:
    """Ask one member, whatever it is."""
    return _sql(f"postgresql://postgres@/postgres?host={place.files.directory}&port={place.port}", statement)


@pytest.fixture(scope="module")
def cluster() -> Iterator[DatabaseCluster]:
    """Three members, made of an embedded database with a table of rows."""
    with database_cluster() as places:
        embedded = Postgres(places.places[0].state / "postgres")
        url = embedded.start()
        _sql(url, "CREATE TABLE kept AS SELECT g AS id, md5(g::text) AS word FROM generate_series(1, 5000) g")
        embedded.stop()
        places.up()
        yield places


@pytest.fixture
def well(cluster: DatabaseCluster) -> DatabaseCluster:
    """The three members, with nothing wrong."""
    cluster.wait_well()
    return cluster


def test_an_embedded_database_becomes_a_cluster_with_all_its_rows_everywhere(well: DatabaseCluster) -> None:
    for place in well.places:
        counts = "SELECT count(*) AS rows, count(*) FILTER (WHERE word = md5(id::text)) AS whole FROM kept"
        found = _at(place, counts)[0]
        assert (found["rows"], found["whole"]) == (KEPT_ROWS, KEPT_ROWS), place.name
    roles = sorted(member["role"] for member in well.status()["members"])
    assert roles == ["primary", "standby", "sync_standby"]


def test_a_member_is_neither_started_nor_restored_as_an_embedded_database(well: DatabaseCluster) -> None:
    postgres = Postgres(well.places[0].state / "postgres")
    with pytest.raises(PostgresFailed, match=r"Patroni starts.*database\.url"):
        postgres.start()
    with pytest.raises(PostgresFailed, match="is a member of a database cluster"), postgres.held():
        pass


def test_passwords_are_in_private_files_and_on_no_command_line(well: DatabaseCluster) -> None:
    secrets = [
        well.places[0].files.membership()[0].superuser_password,
        well.places[0].files.membership()[0].api_password,
    ]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        assert not any(secret in words for secret in secrets), words
    for place in well.places:
        for path in place.files.directory.rglob("*"):
            if place.files.data in path.parents or not path.is_file():
                continue
            has = any(secret.encode() in path.read_bytes() for secret in secrets)
            assert not has or path.stat().st_mode & 0o077 == 0, path
            assert not has or path.suffix != ".log", path


def test_a_backup_of_a_cluster_is_restored_as_an_embedded_database_that_takes_writes(well: DatabaseCluster) -> None:
    with open_directory("nvdr-") as directory:
        place = BackupPlace(directory / "repository", directory / "backup.password")
        database_backup.backup(place, well.url, create=True)
        database_recovery.restore(place, directory, database_recovery.choose(place, None))
        restored = Postgres(directory / "postgres")
        for name in ("postgresql.base.conf", "standby.signal", "patroni.dynamic.json"):
            assert not (restored.data / name).exists(), name
        url = restored.start()
        try:
            assert _sql(url, "DELETE FROM kept WHERE id = 1 RETURNING id")  # and waits for no standby
            files = _sql(url, "SELECT setting FROM pg_settings WHERE name IN ('hba_file', 'log_directory')")
            assert not [row for row in files if str(well.directory) in row["setting"]]
        finally:
            restored.stop()


def test_a_planned_switch_loses_no_acknowledged_write(well: DatabaseCluster) -> None:
    before = well.status()["primary"]
    with Writer(well.url).writing() as writer:
        until(lambda: len(writer.acknowledged) > 200, "writes are acknowledged")
        switched_at = time.monotonic()
        checked(well.tell("switch", "--yes"))
        until(lambda: writer.count_after(time.monotonic() - 1) > 20, "writes go on")
    assert well.status()["primary"] != before
    assert writer.count_after(switched_at) > 0
    assert writer.lost() == set()


def test_the_primary_is_found_behind_hosts_that_are_silent_refuse_or_are_standbys(well: DatabaseCluster) -> None:
    primary = well.leader()
    standby = next(place for place in well.places if place is not primary)
    refuses = free_ports(1)[0]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        first = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{refuses},127.0.0.1:{standby.port}"
        hosts_of = UrlParts.of(well.url)
        url = str(hosts_of._replace(hosts=f"{first},127.0.0.1:{primary.port}"))
        assert not _sql(url, "SELECT pg_is_in_recovery() AS standby")[0]["standby"]
        none = str(hosts_of._replace(hosts=first))
        with pytest.raises(hosts.NoPrimary) as failed:
            _sql(none, "SELECT 1")
    words = str(failed.value)
    assert "does not answer" in words and "Connect call failed" in words and "it is a standby" in words
    assert str(hosts_of.credentials) not in words


def test_a_primary_whose_certificate_ends_is_warned_of_and_renews_it_while_it_writes(well: DatabaseCluster) -> None:
    leader = well.leader()
    other = next(place for place in well.places if place is not leader)
    with Writer(well.url, 1, pause_s=0.05).writing() as writer:
        until(lambda: len(writer.acknowledged) > 5, "writes are acknowledged")
        leader.show_certificate(13 * 86_400)
        warned = well.tell("status", place=leader)
        assert warned.returncode == 1 and "certificate of the database member ends on" in warned.stderr, warned.stderr
        leader.show_certificate(-86_400)
        ended = well.tell("status", place=other).stderr.replace("\n", " ")
        assert f"{leader.name} answers, but its certificate is refused" in ended and "has expired" in ended
        assert "accepts no writes" not in ended and "on its machine: novacron database cluster renew" in ended
        fenced = well.tell("failover", "--fenced", leader.name, "--yes", place=other)
        assert fenced.returncode == 1 and "is not off" in fenced.stderr, fenced.stderr
        assert "Patroni uses it within seconds" in checked(well.tell("renew", place=leader))
        assert well.wait_well()["primary"] == leader.name
        checked(well.tell("switch", "--yes"))
        until(lambda: writer.count_after(time.monotonic() - 1) > 5, "writes go on")
    assert writer.lost() == set()


def test_refusals_say_why(well: DatabaseCluster) -> None:
    status = well.status()
    leader = status["primary"]
    asynchronous = next(m["name"] for m in status["members"] if m["role"] == "standby")
    for words, why in (
        (("switch", "--to", asynchronous), "not a synchronous standby, so it may lack writes"),
        (("failover", "--to", asynchronous, "--accept-loss", "unknown"), f"{leader}, works: use novacron database"),
    ):
        done = well.tell(*words, "--yes")
        assert done.returncode == 1, words
        assert why in done.stderr.replace("\n", " "), done.stderr
    unconfirmed = well.tell("switch")
    assert unconfirmed.returncode == 2
    assert "--yes" in unconfirmed.stderr


def test_init_checks_everything_first_and_names_all_that_is_wrong(tmp_path: Path) -> None:
    with database_cluster() as places:
        place = places.places[0]
        done = places.init(place)  # no etcd, and no database
        assert done.returncode == 1
        assert "etcd has no majority" in done.stderr
        assert "there is no embedded database" in done.stderr
        assert not place.files.directory.exists()


def test_a_member_without_data_begins_no_database_where_etcd_has_lost_its_own() -> None:
    with database_cluster() as places:
        places.start_etcd()
        place = places.places[0]
        access = EtcdAccess(endpoints=tuple(each.url for each in places.etcd))
        cluster = Cluster.new("novacron", access, tls=False, lone_writes=True)
        member = ClusterMember(name=place.name, host="127.0.0.1", port=place.port, api_port=place.api_port)
        place.files.keep(cluster, member)
        place.files.begin_copy()
        place.files.configure(cluster, member)
        done = places.tell("run")
        assert done.returncode != 0
        assert "it would start an empty database" in done.stderr
        assert not (place.files.data / "PG_VERSION").exists()


async def _cancel(control: asyncpg.Connection) -> None:
    """Cancel a commit that waits for a standby."""
    query = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    await eventually(lambda: control.fetch(query), "a commit waits for a standby")


@pytest.fixture
def lonely_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database with a table, and a standby that every commit waits for, and that there is not."""
    with open_directory("nvdb-") as directory:
        postgres = Postgres(directory / "pg")
        try:
            url = postgres.start()
            asyncio.run(migrate(url))
            _sql(url, "CREATE TABLE words (word text)")
            postgres.stop()
            monkeypatch.setitem(ALONE, "synchronous_standby_names", "nobody")  # a reload counts some time later
            yield postgres.start()
        finally:
            postgres.stop()


@pytest.mark.parametrize("autocommit", [True, False])
async def test_a_write_whose_wait_for_a_standby_was_cancelled_is_not_acknowledged(
    autocommit: bool, lonely_url: str
) -> None:
    plain, control = await asyncpg.connect(lonely_url), await asyncpg.connect(lonely_url)
    # PostgreSQL itself acknowledges it, with no more than a warning: this is what is to be avoided.
    _, answer = await asyncio.gather(_cancel(control), plain.execute("INSERT INTO words VALUES ('plain')"))
    assert answer == "INSERT 0 1"

    connection = await connect(lonely_url)

    async def write() -> None:
        if autocommit:
            await connection.execute("INSERT INTO words VALUES ('ours')")
        else:
            async with connection.transaction():
                await connection.execute("INSERT INTO words VALUES ('ours')")

    _, failed = await asyncio.gather(_cancel(control), write(), return_exceptions=True)
    assert "cancelled" in str(failed) and isinstance(failed, ConnectionError)
    assert await connection.fetchval("SELECT count(*) FROM words") == 2  # and the connection goes on
    for each in (plain, control, connection):
        await each.close()


async def test_the_pool_says_unavailable_when_it_is_not_known_whether_a_write_is_kept(lonely_url: str) -> None:
    database, control = await Database.open(lonely_url), await asyncpg.connect(lonely_url)

    async def write() -> None:
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO words VALUES ('ours')")

    _, failed = await asyncio.gather(_cancel(control), write(), return_exceptions=True)
    assert isinstance(failed, Unavailable)
    await control.close()
    await database.close()


# What follows takes longer, because Patroni waits: in the slow matrix.


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_acknowledged_write_is_lost_when_the_primary_is_killed(well: DatabaseCluster) -> None:
    with Writer(well.url).writing() as writer:
        for whole_node in (False, True):
            well.wait_well()
            leader = well.leader()
            until(lambda: writer.count_after(time.monotonic() - 1) > 50, "writes are acknowledged", 60)
            killed_at = time.monotonic()
            if whole_node:
                leader.kill()
            else:
                leader.kill_postgres()
            until(lambda at=killed_at: writer.count_after(at + 0.5) > 50, "writes go on", 60)  # type: ignore[misc]
            assert well.status(well.places[0])["primary"] != leader.name or not whole_node
            if whole_node:
                leader.start()
    well.wait_well()
    assert writer.lost() == set()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fenced_primary_is_followed_at_once(well: DatabaseCluster) -> None:
    leader = well.leader()
    other = next(place for place in well.places if place is not leader)
    refused = well.tell("failover", "--fenced", leader.name, "--yes", place=other)
    assert refused.returncode == 1 and "works: use" in refused.stderr
    leader.kill()
    began = time.monotonic()
    checked(well.tell("failover", "--fenced", leader.name, "--yes", place=other))
    assert time.monotonic() - began < 15  # Patroni itself would wait until the leader's time is over
    leader.start()
    well.wait_well()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failover_to_a_member_that_lacks_writes_names_how_much(well: DatabaseCluster) -> None:
    status = well.status()
    leader = well.leader()
    names = {member["role"]: member["name"] for member in status["members"]}
    standby, asynchronous = (
        next(place for place in well.places if place.name == names[role]) for role in ("sync_standby", "standby")
    )
    postmaster = asynchronous.postmaster_pid
    assert postmaster is not None
    leader.kill()  # first: it would make the other one its synchronous standby
    standby.kill()
    refused = well.tell("failover", "--to", asynchronous.name, "--fenced", leader.name, "--yes", place=asynchronous)
    accepted = well.tell(
        "failover", "--to", asynchronous.name, "--fenced", leader.name, "--accept-loss", "1GiB", "--yes",
        place=asynchronous,
    )  # fmt: skip
    assert accepted.returncode == 0, accepted.stderr
    assert refused.returncode == 1
    assert re.search(r"lacks at least \d+ bytes .* add --accept-loss \d+", refused.stderr.replace("\n", " "))
    for place in (leader, standby):
        place.start()
    well.wait_well(150)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_a_majority_of_etcd_the_primary_takes_no_writes_and_status_says_so(well: DatabaseCluster) -> None:
    leader = well.leader()
    for each in well.etcd[1:]:
        each.kill()
    until(lambda: _is_standby(leader), "the primary has stepped down", 60)
    done = well.tell("status")
    assert done.returncode == 1
    assert "etcd has no majority" in done.stderr and "systemctl start etcd" in done.stderr
    refused = well.tell("switch", "--yes")
    assert refused.returncode == 1 and "etcd has no majority" in refused.stderr
    well.start_etcd(well.etcd[1:])
    well.wait_well(120)


def _is_standby(place: Place) -> bool:
    try:
        return bool(_at(place, "SELECT pg_is_in_recovery() AS standby")[0]["standby"])
    except (OSError, asyncpg.PostgresError):
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_init_or_join_that_is_killed_goes_on(tmp_path: Path) -> None:
    with database_cluster() as places:
        places.start_etcd()
        first, second = places.places[:2]
        embedded = Postgres(first.state / "postgres")
        _sql(embedded.start(), "CREATE TABLE kept AS SELECT g AS id FROM generate_series(1, 1000) g")
        embedded.stop()
        endpoints = [word for each in places.etcd for word in ("--etcd", each.url)]
        init = ["init", *first.options, *endpoints]
        join = ["join", "--file", str(first.files.join_file), *second.options]
        for words, steps in ((init, 0.8), (join, 0.8)):
            for number in range(1, 5):
                _kill_after(words, number * steps)
            checked(places.command(*words))
        until(lambda: all(m["state"] in ("running", "streaming") for m in places.status()["members"]), "both work", 60)
        for place in (first, second):
            assert _at(place, "SELECT count(*) AS rows FROM kept")[0]["rows"] == 1000, place.name


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_patroni_is_started_again_beside_its_postgresql(well: DatabaseCluster) -> None:
    standby = next(place for place in well.places if place is not well.leader())
    refused = well.tell("run", place=standby)
    assert refused.returncode == 1 and "this member is already running" in refused.stderr
    patroni, postmaster = standby.patroni_pid, standby.postmaster_pid
    assert patroni is not None
    os.kill(patroni, signal.SIGKILL)
    until(lambda: standby.patroni_pid is None, "Patroni has ended")
    standby.start()
    well.wait_well()
    assert standby.postmaster_pid == postmaster


def _kill_after(words: list[str], seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "novacron", "database", "cluster", *words], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pause(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_follows_the_primary_and_its_archive_goes_on(
    well: DatabaseCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_directory("nvk-") as directory:
        repository = directory / "repository"
        replica = Replica(directory / "server", well.url, ("--backup-repository", str(repository)))
        for name, value in replica.environment.items():
            monkeypatch.setenv(name, value)
        replica.start()
        try:
            client = Client(load_config())
            for number, how in enumerate(("postgres", "switch")):
                well.wait_well()
                leader = well.leader()
                until(lambda: _archived(directory, 0) is not None, "a base backup is there", 90)
                if how == "postgres":
                    leader.kill_postgres()
                else:
                    checked(well.tell("switch", "--yes"))
                began = time.monotonic()
                until(lambda n=number: _created(client, f"after-{n}"), "the server writes again", 30)  # type: ignore[misc]
                assert time.monotonic() - began < 20
                until(lambda: _sessions_on_standbys(well) == 0, "no connection is left on a standby", 20)
                timeline = well.status()["members"][0]["timeline"]
                until(lambda t=timeline: _archived(directory, t), "the new timeline is archived", 120)  # type: ignore[misc]
            text = replica.server.log.read_text()
            assert not [words for words in OLDER if words in text]
            assert "archiving begins anew" not in text
        finally:
            replica.server.stop()


def _created(client: Client, name: str) -> bool:
    try:
        client.create_project(name)
    except Exception as error:  # not there yet, or there already: an answer was lost
        return "exists" in str(error) or "taken" in str(error)
    return True


def _sessions_on_standbys(cluster: DatabaseCluster) -> int | None:
    """Return how many there are; None: a standby does not answer yet."""
    primary = cluster.status()["primary"]
    sessions = "SELECT pid FROM pg_stat_activity WHERE application_name = 'novacron'"
    try:
        return sum(len(_at(place, sessions)) for place in cluster.places if place.name != primary)
    except (OSError, asyncpg.PostgresError):
        return None


def _archived(directory: Path, timeline: int) -> bool | None:
    done = subprocess.run(
        [sys.executable, "-m", "novacron", "database", "list", "--repository", str(directory / "repository"),
         "--state-dir", str(directory / "server"), "--output", "json"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        return None
    rows = json.loads(done.stdout)
    return (max((row["timeline"] or 0 for row in rows), default=-1) >= timeline) if rows else None
