"""A member of the database's cluster: what makes it ready runs as the service's user, and systemd starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from novacron.extras import Extra
from novacron.local.database_cluster.checks import problems_said
from novacron.local.database_cluster.files import MemberFiles
from novacron.local.database_cluster.settings import (
    API_PORT,
    PORT,
    Cluster,
    ClusterFailed,
    ClusterMember,
    check_host,
    check_name,
)
from novacron.local.database_cluster.steps import COPY_S_MAX, READY_S_MAX
from novacron.local.setup import checks
from novacron.local.setup.database_plan import (
    AwaitMember,
    DatabaseFacts,
    DatabaseRequest,
    DatabaseStep,
    PrepareMember,
    database_steps,
    steps_to_follow,
    warnings,
)
from novacron.local.setup.flow import ROUNDS_MAX, Ended
from novacron.local.setup.host import LocalHost, SetupFailed
from novacron.local.setup.plan import SetupRefused
from novacron.local.setup.services import DATABASE_UNIT, POSTGRES, SERVER, SERVER_USER
from novacron.service_options import STATE_DIR

PREPARE_S_MAX, LOOK_S_MAX, LOOK_S = 600.0, 30.0, 2.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

RunCluster = Callable[[tuple[str, ...], "bytes | None", float], "subprocess.CompletedProcess[str]"]
"""Does ``novacron database cluster`` with arguments and standard input, within a limit in seconds."""


class WantedMember(NamedTuple):
    """What an operator wants; what is left out is as it is, or as usual."""

    member: str | None = None
    host: str | None = None
    port: int | None = None
    api_port: int | None = None
    private_network: bool = False
    cluster: tuple[str, ...] = ()
    """Options of ``novacron database cluster init`` that say what the cluster is."""
    join_file: bytes | None = None
    set_aside: bool = False


class PreparedMember(NamedTuple):
    """What is set up, and what is left of it."""

    request: DatabaseRequest
    steps: list[DatabaseStep]
    later: list[str]
    warnings: tuple[str, ...]


def run_cluster(arguments: tuple[str, ...], stdin: bytes | None, limit_s: float) -> subprocess.CompletedProcess[str]:
    """Do ``novacron database cluster`` as the user of the service. Raises SetupFailed."""
    command = (sys.executable, "-I", "-m", "novacron", "database", "cluster", *arguments, "--state-dir", str(STATE_DIR))
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, input=stdin or b"", timeout=limit_s, cwd="/",
            user=SERVER_USER, group=SERVER_USER, extra_groups=[], umask=0o077,
            env={"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": str(STATE_DIR)},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupFailed(f"novacron database cluster {arguments[0]}: {error}") from None
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


class DatabaseSetup:
    """Makes this host a member."""

    def __init__(self, host: LocalHost, run: RunCluster = run_cluster) -> None:
        self._host, self._run = host, run
        self._files = MemberFiles(host.at(STATE_DIR))

    def prepare(self, wanted: WantedMember) -> PreparedMember:
        """Look at everything. Raises SetupRefused with all that is in the way."""
        problems = checks.of_machine()
        try:
            request = self._request(wanted)
            facts = self._facts(request.member)
            steps = database_steps(request, facts)
            if not facts.is_prepared:
                problems += self._objections(request)
        except SetupRefused as refused:
            problems += refused.problems
        except (SetupFailed, ClusterFailed, OSError) as failed:
            problems.append(str(failed))
        checked = checks.of_service(Extra.SERVER, None)
        problems += checked.problems
        if problems:
            raise SetupRefused(*dict.fromkeys(problems))
        return PreparedMember(request, steps, steps_to_follow(request, facts), (*checked.warnings, *warnings(facts)))

    def _request(self, wanted: WantedMember) -> DatabaseRequest:
        """Return what is wanted. Raises SetupRefused, ClusterFailed."""
        known, cluster = self._files.member(), self._files.cluster()
        member = _member(wanted, known)
        joins = wanted.join_file is not None or (cluster is not None and not self._has_data())
        options = (
            *("--host", member.host, "--member", member.name),
            *("--port", str(member.port), "--api-port", str(member.api_port)),
            *(("--private-network",) if wanted.private_network else ()),
        )
        if joins:
            given = wanted.join_file
            join_file = self._files.join_file.read_bytes() if given is None else given
            aside = ("--set-aside",) if wanted.set_aside else ()
            prepare = PrepareMember(("join", "--file", "-", *options, *aside), join_file)
            return DatabaseRequest(member.name, prepare, True, COPY_S_MAX)
        if wanted.set_aside:
            raise SetupRefused(
                "--set-aside: only a member that joins with --join gets its database from another member"
            )
        prepare = PrepareMember(("init", *options, *(wanted.cluster or _options_of(cluster))))
        return DatabaseRequest(member.name, prepare, False, READY_S_MAX)

    def _has_data(self) -> bool:
        return (self._files.data / "PG_VERSION").exists()

    def _facts(self, member: str) -> DatabaseFacts:
        """Return what is there. Raises SetupFailed, SetupRefused."""
        if not self._host.has_user(SERVER_USER):
            raise SetupRefused(f"there is no user {SERVER_USER} here: systemd-sysusers {SERVER.users}")
        is_prepared = self._files.patroni.exists()
        works = is_prepared and self._works(member)
        url = self._host.text(POSTGRES.path / self._files.url_file.name).strip() if works else ""
        return DatabaseFacts(
            self._host.unit(DATABASE_UNIT),
            self._host.unit(SERVER.unit),
            self._host.path(POSTGRES.path),
            self._host.path(SERVER.settings),
            self._host.text(SERVER.environment),
            is_prepared,
            works,
            url,
        )

    def _works(self, member: str) -> bool:
        """Say whether a member does its work; the URL of the database is written down anew then."""
        done = self._run(("status", "--output", "json"), None, LOOK_S_MAX)
        try:
            members: list[dict[str, Any]] = json.loads(done.stdout)["members"]
        except (ValueError, LookupError, TypeError):
            return False  # nothing can be seen of the cluster yet
        own = next((each for each in members if each["name"] == member), {})
        is_primary, state = own.get("role") == "primary", own.get("state")
        return state == "streaming" or (is_primary and state == "running")

    def _objections(self, request: DatabaseRequest) -> list[str]:
        """Return what ``init`` or ``join`` itself finds in the way. Raises SetupFailed."""
        arguments, join_file = request.prepare
        done = self._run((*arguments, "--check"), join_file, PREPARE_S_MAX)
        if done.returncode == 0:
            return []
        return problems_said(done.stderr) or [_last_words(done)]

    def perform(self, prepared: PreparedMember, show: Callable[[str], None]) -> tuple[int, Ended]:
        """Make the steps that are left; return how many they were. Raises SetupFailed, SetupRefused."""
        made, steps, request = 0, prepared.steps, prepared.request
        for _ in range(ROUNDS_MAX):
            for step in steps:
                show(str(step))
                self._make(step)
                made += 1
            steps = database_steps(request, self._facts(request.member))
            if not steps:
                return made, Ended((), _following(request))
        left = "; ".join(str(step).splitlines()[0] for step in steps)
        raise SetupFailed(f"something else on this host keeps undoing this: {left}")

    def _make(self, step: DatabaseStep) -> None:
        """Make one step. Raises SetupFailed."""
        match step:
            case PrepareMember(arguments, join_file):
                done = self._run((*arguments, "--no-start"), join_file, PREPARE_S_MAX)
                if done.returncode != 0:
                    raise SetupFailed(_last_words(done))
            case AwaitMember(member, limit_s):
                self._await(member, limit_s)
            case _:
                self._host.make(step)

    def _await(self, member: str, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not self._works(member):
            unit = self._host.unit(DATABASE_UNIT)
            if time.monotonic() > deadline or not unit.is_active:
                what = f"does not work after {limit_s:.0f} s" if unit.is_active else "has ended"
                raise SetupFailed(
                    f"{member} {what}; the log of {DATABASE_UNIT} ends with:\n{self._host.last_words(DATABASE_UNIT)}\n"
                    "see: novacron database cluster status"
                )
            time.sleep(LOOK_S)


def _member(wanted: WantedMember, known: ClusterMember | None) -> ClusterMember:
    """Return what this host's member is, or is to become. Raises SetupRefused, ClusterFailed."""
    name, host = wanted.member or (known and known.name), wanted.host or (known and known.host)
    if not name or not host:
        raise SetupRefused(
            "give this host's member name, with --member NAME such as database-1, and its address for the other"
            " members and the servers, with --host"
        )
    member = ClusterMember(
        name=check_name(name, "--member"),
        host=check_host(host, "--host"),
        port=wanted.port or (known.port if known else PORT),
        api_port=wanted.api_port or (known.api_port if known else API_PORT),
    )
    if known is not None and member != known:
        raise SetupRefused(
            f"this host is, or is to become, member {known.name} at {known.address} (--api-port {known.api_port}):"
            " give the same values, or none"
        )
    return member


def _options_of(cluster: Cluster | None) -> tuple[str, ...]:
    """Return the options with which an ``init`` that was interrupted is done again."""
    if cluster is None:
        return ()
    access = cluster.etcd
    named = (("--etcd-ca", access.ca), ("--etcd-certificate", access.certificate), ("--etcd-key", access.key))
    return (
        *(word for url in access.endpoints for word in ("--etcd", url)),
        *(word for option, path in named if path is not None for word in (option, path)),
        *("--name", cluster.name),
        *(() if cluster.lone_writes else ("--strict",)),
    )


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    said = (done.stderr.strip() or done.stdout.strip())[-2000:]
    return said.removeprefix("error: ") or f"the command ended with {done.returncode}, and printed nothing"


def _following(request: DatabaseRequest) -> str:
    if request.joins:
        return (
            f"{request.member} has all data, and follows the primary; after all members have joined, on the"
            " server's host: novacron setup database"
        )
    return (
        f"{request.member} works; next, for each other member: ssh root@{os.uname().nodename} cat"
        f" {POSTGRES.path}/cluster.join | novacron setup database --join - --member NAME --host ADDRESS"
    )
