"""How a machine becomes a member: from an embedded database, or as a copy of another member.

Each step can be done again, and ``init`` and ``join`` do all of them each time: what a killed process left is finished
by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable

import asyncpg

from novacron.local.database_cluster import checks, process
from novacron.local.database_cluster.etcd import Etcd
from novacron.local.database_cluster.files import MemberFiles
from novacron.local.database_cluster.settings import REPLICATOR, SUPERUSER, Cluster, ClusterFailed, ClusterMember
from novacron.local.database_cluster.view import ClusterView, MemberRole, Members, MemberView, look
from novacron.local.postgres import PostgresFailed

CONNECT_S = 10.0
READY_S_MAX, LOOK_S = 120.0, 0.5
COPY_S_MAX = 6 * 3600.0
"""For a new member to have all that the primary has."""

Say = Callable[[str], None]


def check_init(files: MemberFiles, cluster: Cluster, member: ClusterMember, *, private_network: bool) -> None:
    """Raise ClusterFailed, with all reasons, unless the database here can become a cluster's first member."""
    etcd = Etcd(cluster.etcd)
    try:
        problems = checks.of_etcd(etcd.health()) + checks.of_data(files)
        problems += checks.of_secrecy(cluster, member, private_network=private_network)
        if not _is_member(files):
            problems += checks.of_machine(files, member)
        if not problems:
            problems += checks.of_cluster(files, etcd, cluster)
    finally:
        etcd.close()
    checks.require(problems)


def check_join(
    files: MemberFiles, cluster: Cluster, member: ClusterMember, *, private_network: bool, set_aside: bool = False
) -> None:
    """Raise ClusterFailed, with all reasons, unless this machine can become another member. ``set_aside``: a database
    that it has of its own is moved away."""
    etcd = Etcd(cluster.etcd)
    try:
        health = etcd.health()
        problems = checks.of_etcd(health) + checks.of_secrecy(cluster, member, private_network=private_network)
        if not _is_member(files):
            problems += checks.of_machine(files, member)
            problems += checks.of_own_data(files, set_aside=set_aside)
        if health.agrees:
            problems += _of_place(etcd, cluster, member)
    finally:
        etcd.close()
    checks.require(problems)


def _of_place(etcd: Etcd, cluster: Cluster, member: ClusterMember) -> list[str]:
    keys = etcd.keys(cluster.name)
    if keys.leader is None:
        return [f"the cluster {cluster.name} has no primary to copy from: see novacron database cluster status"]
    known = keys.members.get(member.name)
    if known is not None and member.address not in str(known.get("conn_url")):
        return [f"--name {member.name}: another machine is a member with this name; choose another name"]
    return []


def prepare_init(files: MemberFiles, cluster: Cluster, member: ClusterMember, say: Say) -> None:
    """Make the database here ready to be a cluster's first member, in place. Raises ClusterFailed, OSError."""
    if _is_member(files):
        say("Patroni is already running")
    else:
        if not files.patroni.exists():
            try:
                with files.postgres.held():
                    files.keep(cluster, member)
                    _prepare_database(files, cluster)  # which lets the folder go
                with files.postgres.held():
                    files.configure(cluster, member)
            except PostgresFailed as error:
                raise ClusterFailed(
                    f"{error}; if it is the server: systemctl stop novacron-server, and run this again"
                ) from error
            say("the database's accounts are created, and it is stopped")
        say(f"Patroni's configuration is in {files.patroni}")


def prepare_join(
    files: MemberFiles, cluster: Cluster, member: ClusterMember, say: Say, *, set_aside: bool = False
) -> None:
    """Make this machine ready to be another member. Raises ClusterFailed, PostgresFailed, OSError."""
    if _is_member(files):
        say("Patroni is already running")
    else:
        if set_aside and files.has_own_data:
            files.set_aside()
            say(f"the database that was here is in {files.aside}")
        files.keep(cluster, member)
        files.begin_copy()
        files.configure(cluster, member)
        say(f"Patroni's configuration is in {files.patroni}")


def begin(files: MemberFiles, cluster: Cluster, member: ClusterMember, limit_s: float) -> ClusterView:
    """Start Patroni unless it runs, wait until this member does its work, and write down how the database is reached.

    A member that joins copies the primary's data first. Raises ClusterFailed, OSError.
    """
    etcd, members = Etcd(cluster.etcd), Members(cluster)
    try:
        started = None if _is_member(files) else process.start(files)
        view = _wait(lambda: look(cluster, etcd, members), files, member, (started, limit_s))
        files.end_copy()
        files.keep_url(cluster, [each.address for each in view.members if each.address])
        return view
    finally:
        etcd.close()
        members.close()


def _wait(
    see: Callable[[], ClusterView], files: MemberFiles, member: ClusterMember,
    waiting: tuple[subprocess.Popen[bytes] | None, float],
) -> ClusterView:  # fmt: skip
    started, limit_s = waiting
    deadline = time.monotonic() + limit_s
    while True:
        state = "was not seen"
        with contextlib.suppress(ClusterFailed):  # etcd may be away for a moment
            view = see()
            own = view.member(member.name)
            if own is not None and _does_its_work(own):
                return view
            state = state if own is None else f"is {own.state}"
        if started is not None and started.poll() is not None:
            raise ClusterFailed(f"Patroni has ended ({started.returncode}):\n{process.last_words(files)}")
        if time.monotonic() > deadline:
            raise ClusterFailed(
                f"{member.name} {state} after {limit_s:.0f} s; Patroni continues:\n{process.last_words(files)}"
            )
        time.sleep(LOOK_S)


def _does_its_work(own: MemberView) -> bool:
    return own.works and (own.role is MemberRole.PRIMARY or own.state == "streaming")


def _is_member(files: MemberFiles) -> bool:
    """Say whether this member's Patroni runs."""
    return files.patroni.exists() and process.runs(files)


def _prepare_database(files: MemberFiles, cluster: Cluster) -> None:
    """Give the database the accounts that the members use, and stop it. Raises PostgresFailed, ClusterFailed."""
    server = files.postgres
    url = server.start()
    try:
        asyncio.run(_make_accounts(url, cluster))
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise ClusterFailed(f"the database's accounts can't be created: {error or type(error).__name__}") from error
    finally:
        server.stop()


async def _make_accounts(url: str, cluster: Cluster) -> None:
    connection = await asyncpg.connect(url, timeout=CONNECT_S)
    try:
        await connection.execute("SET log_min_error_statement = panic")  # these have passwords
        await connection.execute("SET log_statement = none")
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", REPLICATOR):
            await connection.execute(f'CREATE ROLE "{REPLICATOR}" LOGIN REPLICATION')
        for role, password in (
            (REPLICATOR, cluster.replicator_password), (SUPERUSER, cluster.superuser_password),
        ):  # fmt: skip
            words = await connection.fetchval(
                "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)", role, password
            )
            await connection.execute(words)
    finally:
        await connection.close()
