"""What is wrong with a cluster of the database, who may take over, and how its servers are named."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lab.database_cluster import DatabaseCluster, EtcdMember, Place
from novacron.local.database_cluster import checks, health, moves, patroni_config, settings
from novacron.local.database_cluster import view as views
from novacron.local.database_cluster.etcd import ClusterKeys, Etcd, is_old
from novacron.local.database_cluster.files import MemberFiles
from novacron.local.database_cluster.settings import Cluster, ClusterFailed, ClusterMember, EtcdAccess
from novacron.local.database_cluster.view import ClusterView, MemberRole, Members, MemberView
from novacron.local.database_connection import DatabaseConnection
from novacron.model.errors import InvalidInput
from novacron.store.hosts import each_server

KIB = 1024


def member(name: str, role: str, state: str = "streaming", **more: Any) -> MemberView:
    fields: dict[str, Any] = {"timeline": 1, "lag_bytes": 0, "lag_s": 0.0, **more}
    return MemberView(
        name=name, address=f"{name}:5432", api_url=f"https://{name}:8008", role=MemberRole(role), state=state, **fields
    )  # fmt: skip


A, B, C = member("a", "primary", "running"), member("b", "sync_standby"), member("c", "standby", lag_bytes=64 * KIB)


UNTRUSTED = member("a", "primary", "untrusted", problem="it has expired")
EXPIRED = {"https://x:2379": "[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate"}


def view(*members: MemberView, **more: Any) -> ClusterView:
    fields: dict[str, Any] = {"primary": "a", "etcd_agrees": True, "etcd_errors": {}, "loss_bytes_max": 1 << 20, **more}
    return ClusterView(name="novacron", members=members or (A, B, C), **fields)


def texts(seen: ClusterView) -> str:
    return "\n".join(problem.text for problem in health.problems(seen))


def test_three_members_that_work_are_well() -> None:
    assert health.problems(view()) == []


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (view(etcd_agrees=False, etcd_errors={"http://x": "refused"}), "etcd has no majority, so no member may be"),
        (view(etcd_errors={"http://x": "refused"}), "etcd does not answer on all machines (http://x: refused)"),
        (view(primary=None), "there is no primary: the database accepts no writes"),
        (view(etcd_agrees=False, etcd_errors=EXPIRED), "do not trust one another's certificates, so no member may"),
        (view(etcd_errors=EXPIRED), "etcd and this machine do not trust one another's certificates (https://x"),
        (view(member("a", "primary", "stopped"), B, C), "the primary, a, is stopped"),
        (view(UNTRUSTED, B, C), "a answers, but its certificate is refused (it has expired)"),
        (view(A, B, member("c", "standby", "untrusted", problem="expired")), "c answers, but its certificate is"),
        (view(A, member("b", "sync_standby", "unreachable", problem="refused"), C), "b does not answer: refused"),
        (view(A, B, member("c", "standby", "starting")), "c does not receive writes: it is starting"),
        (view(A, B, member("c", "standby", lag_bytes=2 << 20)), "c lacks 2097152 bytes"),
        (view(A, B, member("c", "standby", timeline=2)), "c is on timeline 2, the primary on 1"),
        (view(A, C), "no synchronous standby: writes are only there, at a"),
        (view(A, C, lone_writes=False), "no synchronous standby: writes wait until another member is back"),
        (view(A, B), "there are only two members"),
        (view(paused=True), "the cluster is paused"),
        (ClusterView(name="n", primary=None, members=(), etcd_agrees=True, etcd_errors={}), "has ever started"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(seen: ClusterView, words: str) -> None:
    assert words in texts(seen)
    assert all(problem.hint for problem in health.problems(seen))


def test_a_switch_goes_to_the_synchronous_standby() -> None:
    assert moves.plan_switch(view(), None) == moves.PrimaryMove("a", B, 0)


@pytest.mark.parametrize(
    ("seen", "to", "words"),
    [
        (view(), "c", "may lack writes: switch to a synchronous one (b)"),
        (view(), "a", "is already the primary"),
        (view(), "x", "the members are a, b, c"),
        (view(A, C), None, "no synchronous standby can take over"),
        (view(primary=None), None, "no primary to switch from"),
        (view(etcd_agrees=False), None, "etcd has no majority"),
    ],
)
def test_a_switch_that_could_lose_writes_is_refused(seen: ClusterView, to: str | None, words: str) -> None:
    with pytest.raises(ClusterFailed, match=re.escape(words)):
        moves.plan_switch(seen, to)


DEAD = member("a", "primary", "unreachable")


def test_a_failover_to_the_synchronous_standby_loses_nothing() -> None:
    move = moves.plan_failover(view(DEAD, B, C), None)
    moves.check_loss(move, None)
    assert (move.target, move.loses) == (B, False)


@pytest.mark.parametrize(
    ("lag", "accepted", "words"),
    [
        (64 * KIB, None, "at least 65536 bytes .* --accept-loss 65536"),
        (64 * KIB, 65535, "--accept-loss 65536"),
        (None, 1 << 40, "unknown how many writes c lacks: .* --accept-loss unknown"),
    ],
)
def test_a_failover_that_loses_more_than_was_accepted_is_refused(
    lag: int | None, accepted: int | None, words: str
) -> None:
    move = moves.plan_failover(view(DEAD, B, member("c", "standby", lag_bytes=lag)), "c")
    with pytest.raises(ClusterFailed, match=words):
        moves.check_loss(move, accepted)
    moves.check_loss(move, moves.UNKNOWN)
    if lag is not None:
        moves.check_loss(move, lag)


def test_a_member_without_a_known_lag_never_counts_as_whole() -> None:
    """An asynchronous member whose lag is said to be 0 may lack what the primary acknowledged since."""
    move = moves.plan_failover(view(DEAD, B, member("c", "standby", lag_bytes=0)), "c")
    with pytest.raises(ClusterFailed, match="--accept-loss"):
        moves.check_loss(move, None)


def test_a_failover_from_a_primary_that_works_is_refused() -> None:
    with pytest.raises(ClusterFailed, match="the primary, a, works: use novacron database cluster switch --to b"):
        moves.plan_failover(view(), None)


CLUSTER = Cluster.new("novacron", EtcdAccess(endpoints=("http://x:2379",)), tls=False, lone_writes=True)


@pytest.mark.parametrize("tls", [True, False])
def test_patronis_configuration_never_trusts_anybody(tls: bool, tmp_path: Any) -> None:
    cluster = Cluster.new("novacron", EtcdAccess(endpoints=("https://x:2379",), ca="/ca"), tls=tls, lone_writes=False)
    files = MemberFiles(tmp_path)
    paths = patroni_config.Paths(files.directory, files.data, tmp_path, tmp_path, tmp_path)
    found = patroni_config.document(cluster, ClusterMember(name="a", host="192.0.2.1"), paths)
    access = found["postgresql"]["pg_hba"]
    assert not any(word in line for line in access for word in ("trust", " md5", " password"))
    assert all(line.startswith(("local ", "hostssl " if tls else "host ")) for line in access)
    assert found["bootstrap"]["dcs"]["synchronous_mode_strict"] is True
    assert found["etcd3"] == {"hosts": ["x:2379"], "protocol": "https", "cacert": "/ca"}
    assert yaml.safe_load(yaml.safe_dump(found)) == found


@pytest.mark.parametrize(
    ("endpoints", "words"),
    [
        ([], "--etcd: give 1 to 9"),
        (["ftp://x:1"], "write it like https"),
        (["x"], "write it like https"),
        (["http://x:1", "https://y:1"], "use http for all"),
    ],
)
def test_an_address_of_etcd_that_is_none_is_refused_in_words(endpoints: list[str], words: str) -> None:
    with pytest.raises(ClusterFailed, match=words):
        settings.check_etcd(endpoints, None, None, None)


def test_a_certificate_of_etcd_comes_with_its_key() -> None:
    with pytest.raises(ClusterFailed, match="give both or neither"):
        settings.check_etcd(["https://x:1"], None, "/c", None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "a b", ""])
def test_an_address_that_others_cant_use_is_refused(host: str) -> None:
    with pytest.raises(ClusterFailed, match="--host"):
        settings.check_host(host, "--host")


def test_a_member_at_an_ipv6_address_is_bracketed() -> None:
    found = ClusterMember(name="a", host=settings.check_host("[2001:db8::1]", "--host"))
    assert (found.address, found.api_address) == ("[2001:db8::1]:5432", "[2001:db8::1]:8008")


@pytest.mark.parametrize(("version", "old"), [("3.4.23", False), ("3.3.9", True), ("4.0", False), ("x", True)])
def test_old_versions_of_etcd_are_known(version: str, old: bool) -> None:
    assert is_old(version) is old


def test_a_url_with_several_servers_is_one_url_for_each() -> None:
    url = "postgresql://u:p%40@h1:1,[::1]:2,h3:3/db?target_session_attrs=read-write&sslmode=disable"
    assert each_server(url) == [
        f"postgresql://u:p%40@{host}/db?sslmode=disable" for host in ("h1:1", "[::1]:2", "h3:3")
    ]
    assert each_server("postgresql://u@h/db?target_session_attrs=any") == [
        "postgresql://u@h/db?target_session_attrs=any"
    ]


def test_a_url_that_asks_for_a_standby_is_refused() -> None:
    with pytest.raises(InvalidInput, match="target_session_attrs=standby"):
        each_server("postgresql://h1:1,h2:2/db?target_session_attrs=standby")


def test_postgresqls_own_programs_follow_the_primary_too() -> None:
    several = DatabaseConnection.of("postgresql://u:secret@h1:1,h2:2/db")
    assert "target_session_attrs=read-write" in several.url and "secret" not in several.url
    assert "target_session_attrs" not in DatabaseConnection.of("postgresql://u@h1:1/db").url


def test_a_fenced_member_is_the_primary_and_does_not_answer() -> None:
    moves.check_off(view(DEAD, B, C), "a")
    for seen, fenced, words in (
        (view(DEAD, B, C), "b", "the primary is a, not this one"),
        (view(member("a", "primary", "stopped"), B, C), "a", "it answers, so it is not off"),
    ):
        with pytest.raises(ClusterFailed, match=words):
            moves.check_off(seen, fenced)


def test_no_member_ever_begins_an_empty_database(tmp_path: Path) -> None:
    """etcd that lost its data knows no cluster; a member without data must not lead with an empty database then."""
    paths = patroni_config.Paths(tmp_path, tmp_path / "data", tmp_path, tmp_path, tmp_path)
    bootstrap = patroni_config.document(CLUSTER, ClusterMember(name="a", host="192.0.2.1"), paths)["bootstrap"]
    method = bootstrap[bootstrap["method"]]
    assert bootstrap["method"] != "initdb" and method["no_params"]
    done = subprocess.run(shlex.split(method["command"]), capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "it would start an empty database" in done.stderr


def whole(files: MemberFiles) -> Path:
    """Make what a member's data have when they are whole, and return the file that is copied last."""
    control = files.data / "global/pg_control"
    control.parent.mkdir(parents=True, exist_ok=True)
    (files.data / "PG_VERSION").touch()
    control.touch()
    return control


def test_only_a_copy_that_was_never_finished_is_removed(tmp_path: Path) -> None:
    files = MemberFiles(tmp_path)
    files.directory.mkdir()
    files.begin_copy()
    whole(files).unlink()
    assert files.remove_partial_copy() and not files.data.exists()
    control = whole(files)
    assert not files.remove_partial_copy()  # which has seen that the copy is whole
    control.unlink()
    files.begin_copy()  # as a second join does
    with pytest.raises(ClusterFailed, match=r"lacks global/pg_control, .*mv "):
        files.remove_partial_copy()
    assert (files.data / "PG_VERSION").exists()


class EtcdOfLeader(Etcd):
    """Knows only whether the leader's key was removed."""

    def __init__(self) -> None:
        self.removed = list[str]()

    def remove_leader(self, cluster: Cluster, leader: str) -> bool:
        self.removed.append(leader)
        return True


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [(httpx.ReadTimeout("late"), True), (httpx.ConnectError("refused"), False), (httpx.ConnectTimeout("late"), False)],
)
def test_a_failover_goes_on_only_where_the_member_has_the_order(error: httpx.HTTPError, goes_on: bool) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    members, etcd = Members(CLUSTER), EtcdOfLeader()
    members._http = httpx.Client(transport=httpx.MockTransport(answer))
    done = view(DEAD, member("c", "primary", "running"), primary="c")
    mover = moves.Mover(CLUSTER, etcd, members, lambda: done)
    move = moves.PrimaryMove("a", C, None)
    if goes_on:
        assert mover.failover(move, "a") is done and etcd.removed == ["a"]
        return
    with pytest.raises(ClusterFailed, match="does not answer"):
        mover.failover(move, "a")
    assert etcd.removed == []


@pytest.mark.parametrize(
    ("endpoint", "host", "tls", "words"),
    [
        ("http://192.0.2.1:2379", "127.0.0.1", False, ["who can write to etcd"]),
        ("http://192.0.2.1:2379", "192.0.2.1", True, ["who can write to etcd"]),
        ("http://192.0.2.1:2379", "192.0.2.1", False, ["who can write to etcd", "built without TLS"]),
        ("https://192.0.2.1:2379", "192.0.2.1", False, ["built without TLS"]),
        ("https://192.0.2.1:2379", "192.0.2.1", True, []),
        ("http://127.0.0.1:2379", "127.0.0.1", False, []),
    ],
)
def test_what_others_could_read_or_change_needs_a_private_network(
    endpoint: str, host: str, tls: bool, words: list[str]
) -> None:
    cluster = Cluster.new("novacron", EtcdAccess(endpoints=(endpoint,)), tls=tls, lone_writes=True)
    found = checks.of_secrecy(cluster, ClusterMember(name="a", host=host), private_network=False)
    assert len(found) == len(words)
    assert all(word in problem for word, problem in zip(words, found, strict=True))
    assert checks.of_secrecy(cluster, ClusterMember(name="a", host=host), private_network=True) == []


def test_a_process_that_cant_be_ended_leaves_no_other_one_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = list[str]()

    def kill(process: Place | EtcdMember) -> None:
        ended.append(process.name)
        if process.name == "database-b":
            raise AssertionError("it has not ended")

    monkeypatch.setattr(Place, "kill", kill)
    monkeypatch.setattr(EtcdMember, "kill", kill)
    with pytest.raises(AssertionError, match="it has not ended"):
        DatabaseCluster(tmp_path).down()
    assert sorted(ended) == ["database-a", "database-b", "database-c", "etcd-a", "etcd-b", "etcd-c"]


@pytest.mark.parametrize("to", [None, "b"])
def test_a_primary_whose_certificate_is_refused_is_not_off(to: str | None) -> None:
    seen = view(UNTRUSTED, B, C)
    assert "accepts no writes" not in texts(seen) and "novacron database cluster renew" in health.problems(seen)[0].hint
    with pytest.raises(ClusterFailed, match=r"is not off: it answers, .*novacron database cluster renew"):
        moves.plan_failover(seen, to)
    with pytest.raises(ClusterFailed, match="it answers, so it is not off"):
        moves.check_off(seen, "a")


def test_a_member_whose_certificate_is_refused_is_no_member_that_is_away() -> None:
    """What it says is not known, but somebody is there."""
    known = {"conn_url": "postgres://x:5432/postgres", "api_url": "https://x:8008/patroni"}
    keys = ClusterKeys({"leader": "a", "members/a": json.dumps(known)})
    for problem, state in (
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired", "untrusted"),
        ("[Errno 111] Connection refused", "unreachable"),
    ):
        (found,) = views._members(keys, {"a": problem})
        assert (found.state, found.problem, found.works) == (state, problem, False)


def test_the_status_warns_of_what_etcd_shows() -> None:
    seen = view(etcd_ends_at_s={"https://x:2379": 1e9 + 13 * 86_400, "https://y:2379": 1e9 + 15 * 86_400})
    (soon,) = health.of_etcd_servers(seen, 1e9)
    assert soon.text.startswith("the certificate of etcd at https://x:2379 ends on 2001-09-22")
