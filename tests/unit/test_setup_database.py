"""``novacron setup database``: each way to a member that works ends there, however often it is cut off."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from novacron.__main__ import app
from novacron.local.database_cluster.checks import problems_said, require
from novacron.local.database_cluster.files import MemberFiles
from novacron.local.database_cluster.settings import Cluster, ClusterFailed, ClusterMember, EtcdAccess
from novacron.local.setup import checks
from novacron.local.setup.database import DatabaseSetup, WantedMember
from novacron.local.setup.database_plan import AwaitMember, DatabaseStep, PrepareMember
from novacron.local.setup.host import Accounts, LocalHost, SetupFailed
from novacron.local.setup.plan import EnableUnit, RestartUnit, SetFile, SetupRefused, StopUnit
from novacron.local.setup.services import DATABASE_UNIT, SERVER

ETCD = ("--etcd", "http://10.77.0.11:2379", "--name", "novacron")
CLUSTER = Cluster(
    name="novacron", etcd=EtcdAccess(endpoints=("http://10.77.0.11:2379",)), superuser_password="top-secret",
    replicator_password="r", api_password="a", ca_key="k", ca="c", tls=False,
)  # fmt: skip
JOIN_FILE = msgspec.json.encode(CLUSTER)
FIRST = WantedMember("database-1", "10.77.0.11", private_network=True, cluster=ETCD)
SECOND = WantedMember("database-2", "10.77.0.12", private_network=True, join_file=JOIN_FILE, set_aside=True)
URL = "postgresql://postgres:top-secret@{}/postgres?target_session_attrs=read-write&sslmode=disable"


class Cut(Exception):
    """The set-up was killed."""


class FakeHost:
    """A host with the server's package and its embedded database, whose systemd and cluster are kept in memory."""

    def __init__(self, root: Path, *, settings: str = "pool = 30\n") -> None:
        self.root = root
        self.postgres = root / "var/lib/novacron/postgres"
        self.enabled, self.began_at_s = {SERVER.unit}, {SERVER.unit: time.time()}
        self.members = {"10.77.0.11:5432"}
        self.objections: list[str] = []
        self.said: list[str] = []
        self.has_crashed = False
        (self.postgres / "data").mkdir(parents=True)
        (self.postgres / "data/PG_VERSION").write_text("18\n")
        self.postgres.chmod(0o700)
        (root / "etc/novacron").mkdir(parents=True)
        self.settings = root / "etc/novacron/server.toml"
        self.settings.write_text(settings)
        accounts = Accounts(lambda _: os.getuid(), lambda _: os.getgid(), lambda _: "novacron", lambda _: "novacron")
        self.setup = DatabaseSetup(LocalHost(root, accounts, self._system), self._cluster)

    def _system(self, command: tuple[str, ...], limit_s: float) -> subprocess.CompletedProcess[str]:
        assert limit_s > 0
        said = ""
        match command:
            case ("systemctl", "show", _, unit):
                began_us = int((self.began_at_s.get(unit, 0.0) - (time.time() - time.monotonic())) * 1e6)
                is_active = unit in self.began_at_s
                said = (
                    f"LoadState=loaded\nUnitFileState={'enabled' if unit in self.enabled else 'disabled'}\n"
                    f"ActiveState={'active' if is_active else 'inactive'}\n"
                    f"ExecMainStartTimestampMonotonic={began_us if is_active else 0}\n"
                )
            case ("systemctl", "enable", *_, unit):
                self.enabled.add(unit)
            case ("systemctl", "disable", *_, unit):
                self.enabled.discard(unit)
                self.began_at_s.pop(unit, None)
            case ("systemctl", "stop", unit):
                self.began_at_s.pop(unit, None)
            case ("systemctl", "restart", unit):
                if unit == SERVER.unit:
                    assert not self._is_member or "database" in tomllib.loads(self.settings.read_text())
                self.began_at_s[unit] = max(time.time(), self.settings.stat().st_mtime + 0.001)
                if unit == DATABASE_UNIT and self.has_crashed:
                    del self.began_at_s[unit]
            case ("journalctl", *_):
                said = "FATAL: no room"
        return subprocess.CompletedProcess(command, 0, said, "")

    @property
    def _is_member(self) -> bool:
        return (self.postgres / "patroni.yml").exists()

    def _cluster(
        self, arguments: tuple[str, ...], stdin: bytes | None, limit_s: float
    ) -> subprocess.CompletedProcess[str]:
        assert limit_s > 0 and b"top-secret" not in " ".join(arguments).encode()
        if arguments[0] == "status":
            return subprocess.CompletedProcess(arguments, 1, self._status(), "")
        if "--check" in arguments:
            wrong = "error: nothing was changed, because:" + "".join(f"\n  - {each}" for each in self.objections)
            return subprocess.CompletedProcess(arguments, int(bool(self.objections)), "", wrong)
        has_other = "database" in tomllib.loads(self.settings.read_text())
        assert has_other or SERVER.unit not in self.began_at_s, "the server works with the data"
        options = dict(itertools.pairwise(arguments))
        member = ClusterMember(name=options["--member"], host=options["--host"])
        (self.postgres / "member.json").write_bytes(msgspec.json.encode(member))
        (self.postgres / "cluster.join").write_bytes(stdin or JOIN_FILE)
        (self.postgres / "cluster.join").chmod(0o600)
        if arguments[0] == "join" and (self.postgres / "data").exists():
            assert "--set-aside" in arguments
            (self.postgres / "data").rename(self.postgres / "data.set-aside")
        self.members.add(member.address)
        (self.postgres / "patroni.yml").write_text("{}")
        return subprocess.CompletedProcess(arguments, 0, "", "")

    def _status(self) -> str:
        if not self._is_member or DATABASE_UNIT not in self.began_at_s:
            return ""
        (self.postgres / "database.url").write_text(URL.format(",".join(sorted(self.members))))
        own = json.loads((self.postgres / "member.json").read_bytes())["name"]
        return json.dumps({"members": [{"name": own, "role": "primary", "state": "running"}]})

    def set_up(self, wanted: WantedMember, kill_after: int = 100) -> list[DatabaseStep]:
        """Set it up, and be killed after so many steps; return the steps that were made."""
        prepared, made = self.setup.prepare(wanted), list[DatabaseStep]()
        make: Callable[[DatabaseStep], None] = self.setup._make

        def counted(step: DatabaseStep) -> None:
            if len(made) == kill_after:
                raise Cut
            make(step)
            made.append(step)

        self.setup._make = counted  # type: ignore[method-assign]
        try:
            self.setup.perform(prepared, self.said.append)
        except Cut:
            pass
        finally:
            self.setup._make = make  # type: ignore[method-assign,assignment]
        return made

    @property
    def state(self) -> tuple[object, ...]:
        settings = tomllib.loads(self.settings.read_text())
        return settings, self.enabled, self.began_at_s.keys(), (self.postgres / "data.set-aside").exists()


@pytest.fixture(autouse=True)
def _no_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine lacks as a server is not what is tested here."""
    monkeypatch.setattr(checks, "of_machine", list)
    monkeypatch.setattr(checks, "of_service", lambda *_: checks.Checked((), ()))


def test_the_first_member_is_made_of_the_servers_database_and_the_server_follows(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    made = host.set_up(FIRST)
    assert [type(step) for step in made] == [
        StopUnit, PrepareMember, EnableUnit, RestartUnit, AwaitMember, SetFile, RestartUnit,
    ]  # fmt: skip
    assert tomllib.loads(host.settings.read_text()) == {"pool": 30, "database": URL.format("10.77.0.11:5432")}
    assert host.enabled == {SERVER.unit, DATABASE_UNIT} == host.began_at_s.keys()
    assert "top-secret" not in "".join(host.said)
    assert host.set_up(FIRST) == host.set_up(WantedMember()) == []


def test_a_member_that_joins_keeps_its_own_database_aside_and_its_server_off(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    made = host.set_up(SECOND)
    assert made[0] == StopUnit(SERVER.unit, "it uses its own database on this host", for_good=True)
    assert (host.postgres / "data.set-aside/PG_VERSION").exists()
    assert host.enabled == {DATABASE_UNIT} == host.began_at_s.keys()
    assert tomllib.loads(host.settings.read_text()) == {"pool": 30}
    assert "top-secret" not in "".join(host.said)
    assert host.set_up(SECOND) == host.set_up(WantedMember()) == []


@pytest.mark.parametrize("wanted", [FIRST, SECOND], ids=["first", "second"])
def test_a_set_up_that_was_killed_after_any_step_goes_on_to_the_same_end(tmp_path: Path, wanted: WantedMember) -> None:
    whole = FakeHost(tmp_path / "whole")
    steps = len(whole.set_up(wanted))
    assert steps >= 5
    for kill_after in range(steps):
        host = FakeHost(tmp_path / str(kill_after))
        assert len(host.set_up(wanted, kill_after)) == kill_after
        host.set_up(wanted)
        assert host.state == whole.state, f"killed after step {kill_after}"
        assert host.set_up(wanted) == []


def test_the_first_members_server_learns_of_those_that_came_later(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.set_up(FIRST)
    host.members |= {"10.77.0.12:5432", "10.77.0.13:5432"}
    assert [type(step) for step in host.set_up(WantedMember())] == [SetFile, RestartUnit]
    assert "10.77.0.11:5432,10.77.0.12:5432,10.77.0.13:5432" in tomllib.loads(host.settings.read_text())["database"]


def test_all_that_is_in_the_way_is_said_at_once_and_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "of_machine", lambda: ["only root can set up a host"])
    monkeypatch.setattr(checks, "of_service", lambda *_: checks.Checked(("memory: too little; add some",), ()))
    host = FakeHost(tmp_path)
    host.objections = ["etcd has no majority", "--port: can't listen on 10.77.0.11:5432: in use"]
    before = host.state
    with pytest.raises(SetupRefused) as refused:
        host.set_up(FIRST)
    assert refused.value.problems == (
        "only root can set up a host", "etcd has no majority", "--port: can't listen on 10.77.0.11:5432: in use",
        "memory: too little; add some",
    )  # fmt: skip
    assert host.state == before


def test_a_server_with_another_database_is_left_alone(tmp_path: Path) -> None:
    other = 'database = "postgresql://me:other@db/novacron"\n'
    host = FakeHost(tmp_path, settings=other)
    with pytest.raises(SetupRefused, match="does not use the embedded database here") as refused:
        host.set_up(FIRST)
    assert "other@" not in str(refused.value)
    host.set_up(SECOND)
    assert host.settings.read_text() == other and SERVER.unit in host.began_at_s


def test_variables_of_the_servers_unit_win_and_are_named(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    (tmp_path / "etc/default").mkdir()
    (tmp_path / "etc/default/novacron-server").write_text("NOVACRON_DATABASE_URL=postgresql://postgres:x@db/postgres\n")
    (warning,) = host.setup.prepare(FIRST).warnings
    assert warning.startswith("/etc/default/novacron-server sets the database of this host's server")
    host.set_up(FIRST)
    assert tomllib.loads(host.settings.read_text()) == {"pool": 30}


def test_a_member_that_ends_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.has_crashed = True
    with pytest.raises(SetupFailed, match=r"database-1 has ended[^\0]*FATAL: no room") as failed:
        host.set_up(FIRST)
    assert "novacron database cluster status" in str(failed.value)
    host.has_crashed = False
    host.set_up(FIRST)
    assert host.set_up(FIRST) == []


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (WantedMember(), "--member NAME"),
        (FIRST._replace(member="Data Base"), "--member 'Data Base': write 1 to 63"),
        (FIRST._replace(host="0.0.0.0"), "--host 0.0.0.0: other machines can't reach it"),
        (FIRST._replace(set_aside=True), "--set-aside: only a member that joins"),
    ],
)
def test_a_wrong_value_is_refused_by_its_options_name(tmp_path: Path, wanted: WantedMember, said: str) -> None:
    with pytest.raises(SetupRefused) as refused:
        FakeHost(tmp_path).setup.prepare(wanted)
    assert said in str(refused.value)


def test_another_name_for_a_member_is_refused(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.set_up(FIRST)
    with pytest.raises(SetupRefused, match=r"is, or is to become, member database-1 at 10\.77\.0\.11:5432"):
        host.set_up(FIRST._replace(member="database-9"))


def test_a_dry_run_names_what_follows_once_the_member_works(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    before = host.state
    planned = host.setup.prepare(FIRST)
    assert host.state == before
    assert planned.later == [
        "/etc/novacron/server.toml: database = the URL of the cluster", "systemctl restart novacron-server.service",
    ]  # fmt: skip
    assert FakeHost(tmp_path / "other").setup.prepare(SECOND).later == []


def test_a_join_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cluster.join"
    path.write_bytes(JOIN_FILE)
    path.chmod(0o644)
    done = CliRunner().invoke(app, ["setup", "database", "--join", f"@{path}", "--dry-run"])
    assert done.exit_code == 1 and "--join: " in done.output and f"chmod 600 {path}" in done.output
    assert "top-secret" not in done.output and "nothing was changed" in done.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write for others")
def test_the_url_that_root_writes_down_stays_readable_for_the_service(tmp_path: Path) -> None:
    files = MemberFiles(tmp_path)
    files.directory.mkdir()
    os.chown(files.directory, 12345, 12346)
    files.keep_url(CLUSTER, ["10.77.0.11:5432"])
    status = files.url_file.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12345, 12346, 0o600)


def test_problems_are_read_back_as_they_were_written() -> None:
    problems = ["etcd at http://a is 3.3: version 3.4 or later is needed", "--port: in use: x; y"]
    with pytest.raises(ClusterFailed) as failed:
        require(problems)
    assert problems_said(f"error: {failed.value}\n") == problems
    assert problems_said("error: something else\n") == []
