"""What there is to see of a cluster: what etcd knows, and what each member says itself."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import httpx
import msgspec

from novacron.local.database_cluster.etcd import ClusterKeys, Etcd
from novacron.local.database_cluster.settings import API_USER, Cluster, ClusterFailed

ANSWER_S, CONNECT_S = 3.0, 1.0
MEMBERS_MAX = 16
REFUSED = "CERTIFICATE_VERIFY_FAILED"
"""In the words of OpenSSL: somebody answers, and shows a certificate that is not, or no more, valid."""


class NoAnswerYet(ClusterFailed):
    """A member has an order, and has not answered in time."""


class MemberRole(StrEnum):
    """What a member is; Patroni says leader and replica."""

    PRIMARY = "primary"
    SYNC_STANDBY = "sync_standby"
    """It has all that was acknowledged."""
    STANDBY = "standby"


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """One member."""

    name: str
    address: str
    api_url: str
    role: MemberRole
    state: str
    """What it says itself: ``running``, ``streaming``, ``stopped``, ...; ``unreachable`` if it says nothing, and
    ``untrusted`` if its certificate is refused: then it is not off."""
    timeline: int | None = None
    lag_bytes: int | None = None
    """What it lacks; None: not known."""
    lag_s: float | None = None
    problem: str = ""

    @property
    def works(self) -> bool:
        return self.state in ("running", "streaming")


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster at one moment."""

    name: str
    primary: str | None
    members: tuple[MemberView, ...]
    etcd_agrees: bool
    etcd_errors: dict[str, str]
    etcd_ends_at_s: dict[str, float] = {}
    """When the certificates end that its endpoints showed."""
    paused: bool = False
    loss_bytes_max: int = 0
    lone_writes: bool = True

    def member(self, name: str) -> MemberView | None:
        return next((each for each in self.members if each.name == name), None)

    @property
    def standbys(self) -> tuple[MemberView, ...]:
        return tuple(each for each in self.members if each.role is not MemberRole.PRIMARY)


class Members:
    """The members' own API."""

    def __init__(self, cluster: Cluster) -> None:
        context = ssl.create_default_context(cadata=cluster.ca)
        self._http = httpx.Client(
            verify=context,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=False,
            auth=(API_USER, cluster.api_password),
        )

    def close(self) -> None:
        self._http.close()

    def ask(self, api_url: str) -> dict[str, Any]:
        """Return what a member says of itself. Raises ClusterFailed."""
        try:
            answer = self._http.get(f"{api_url}/patroni")
            document = answer.json()
        except (httpx.HTTPError, OSError, ValueError) as error:
            raise ClusterFailed(str(error) or type(error).__name__) from error
        if not isinstance(document, dict):
            raise ClusterFailed("its answer is not from Patroni")
        return document

    def tell(self, api_url: str, path: str, body: dict[str, Any], timeout_s: float) -> tuple[int, str]:
        """Return the status and the words with which a member answers an order. Raises NoAnswerYet, ClusterFailed."""
        try:
            limits = httpx.Timeout(max(timeout_s, CONNECT_S), read=timeout_s)
            answer = self._http.post(api_url + path, json=body, timeout=limits)
        except httpx.ReadTimeout as error:
            raise NoAnswerYet(f"{api_url} has not answered after {timeout_s} s") from error
        except (httpx.HTTPError, OSError) as error:
            raise ClusterFailed(f"{api_url} does not answer: {error or type(error).__name__}") from error
        return answer.status_code, answer.text.strip()


def look(cluster: Cluster, etcd: Etcd, members: Members) -> ClusterView:
    """Return what there is to see now. Raises ClusterFailed when etcd can't be asked at all."""
    health = etcd.health()
    keys = etcd.keys(cluster.name)
    said = _said_by(keys, members)
    config = keys.document("config")
    return ClusterView(
        name=cluster.name,
        primary=keys.leader,
        members=_members(keys, said),
        etcd_agrees=health.agrees,
        etcd_errors=health.errors,
        etcd_ends_at_s=dict(health.ends_at_s),
        paused=bool(config.get("pause", False)),
        loss_bytes_max=int(config.get("maximum_lag_on_failover", cluster.loss_bytes_max)),
        lone_writes=not config.get("synchronous_mode_strict", not cluster.lone_writes),
    )


def api_of(known: dict[str, Any]) -> str:
    """Return the base of a member's API."""
    return str(known.get("api_url", "")).removesuffix("/patroni")


def _said_by(keys: ClusterKeys, members: Members) -> dict[str, dict[str, Any] | str]:
    """Return what each member says, by its name; a text is why it says nothing."""

    def ask(known: dict[str, Any]) -> dict[str, Any] | str:
        try:
            return members.ask(api_of(known))
        except ClusterFailed as error:
            return str(error)

    names = list(keys.members)[:MEMBERS_MAX]
    with ThreadPoolExecutor(MEMBERS_MAX) as pool:
        return dict(zip(names, pool.map(lambda name: ask(keys.members[name]), names), strict=True))


def _members(keys: ClusterKeys, said: dict[str, dict[str, Any] | str]) -> tuple[MemberView, ...]:
    leader = keys.leader
    own = said.get(leader or "")
    at = _position(own) if isinstance(own, dict) else None
    if at is None:  # the last that is known of a leader that is away
        status = keys.document("status")
        at = int(status["optime"]) if "optime" in status else None
    standbys = str(keys.document("sync").get("sync_standby") or "").split(",")
    return tuple(_member(name, keys, said[name], (_role(name, leader, standbys), at)) for name in sorted(said))


def _member(
    name: str, keys: ClusterKeys, said: dict[str, Any] | str, place: tuple[MemberRole, int | None]
) -> MemberView:
    role, leader_at = place
    known = keys.members[name]
    view: dict[str, Any] = {
        "name": name, "address": _address(known), "api_url": api_of(known),
        "role": role,
    }  # fmt: skip
    if isinstance(said, str):
        state = "untrusted" if REFUSED in said else "unreachable"
        return MemberView(**view, state=state, problem=said, lag_bytes=_lag(leader_at, _number(known)))
    streams = said.get("replication_state") == "streaming"
    state = "streaming" if streams and role is not MemberRole.PRIMARY else str(said.get("state", "unknown"))
    timeline = said.get("timeline")
    lag_bytes = 0 if role is MemberRole.PRIMARY else _lag(leader_at, _position(said))
    return MemberView(
        **view, state=state, timeline=timeline if isinstance(timeline, int) else None, lag_bytes=lag_bytes,
        lag_s=0.0 if role is MemberRole.PRIMARY else _lag_s(said, leader_at),
    )  # fmt: skip


def _role(name: str, leader: str | None, synchronous: list[str]) -> MemberRole:
    if name == leader:
        return MemberRole.PRIMARY
    return MemberRole.SYNC_STANDBY if name in synchronous else MemberRole.STANDBY


def _number(known: dict[str, Any]) -> int | None:
    location = known.get("xlog_location")
    return location if isinstance(location, int) else None


def _address(known: dict[str, Any]) -> str:
    return str(known.get("conn_url", "")).partition("://")[2].partition("/")[0].rpartition("@")[2]


def _position(said: dict[str, Any]) -> int | None:
    """Return how far a member's own log goes, in bytes."""
    log = said.get("xlog", {})
    locations = [log[key] for key in ("location", "received_location", "replayed_location") if key in log]
    return max((int(each) for each in locations if each), default=None)


def _lag(leader_at: int | None, at: int | None) -> int | None:
    return None if leader_at is None or at is None else max(0, leader_at - at)


def _lag_s(said: dict[str, Any], leader_at: int | None) -> float | None:
    """Return how old what a standby shows is; 0 if there is nothing that it does not show."""
    log = said.get("xlog", {})
    replayed = log.get("replayed_location")
    if replayed is None or leader_at is None:
        return None
    if int(replayed) >= leader_at:
        return 0.0
    try:
        at = datetime.fromisoformat(str(log.get("replayed_timestamp")))
    except ValueError:
        return None
    return round(max(0.0, (datetime.now(UTC) - at).total_seconds()), 1)
