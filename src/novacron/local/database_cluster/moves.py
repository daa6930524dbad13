"""Another member becomes the primary: planned, without a loss (switch), or because the primary is lost (failover)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from novacron.local.database_cluster.etcd import Etcd
from novacron.local.database_cluster.settings import Cluster, ClusterFailed
from novacron.local.database_cluster.view import ClusterView, MemberRole, Members, MemberView, NoAnswerYet

ORDER_S, DONE_S_MAX, LOOK_S = 30.0, 60.0, 0.3
UNKNOWN = "unknown"


class PrimaryMove(NamedTuple):
    """Who hands over to whom, and what is lost."""

    primary: str | None
    target: MemberView
    loss_bytes: int | None
    """At most; None: not known."""

    @property
    def loses(self) -> bool:
        """Whether it may: only a synchronous standby surely has all; what is known of others is a second old."""
        return self.target.role is not MemberRole.SYNC_STANDBY


def plan_switch(view: ClusterView, to: str | None) -> PrimaryMove:
    """Return a move that loses nothing. Raises ClusterFailed."""
    _require_agreement(view)
    leader = view.member(view.primary or "")
    if leader is None or not leader.works:
        raise ClusterFailed("there is no primary to switch from: see novacron database cluster status, and failover")
    synchronous = [each for each in view.standbys if each.role is MemberRole.SYNC_STANDBY and each.works]
    if to is None:
        if not synchronous:
            raise ClusterFailed("no synchronous standby can take over: start the other members, and try again")
        return PrimaryMove(leader.name, synchronous[0], 0)
    target = _target(view, to)
    if target not in synchronous:
        names = ", ".join(each.name for each in synchronous) or "none now"
        raise ClusterFailed(
            f"{to} is not a synchronous standby, so it may lack writes: switch to a synchronous one ({names})"
        )
    return PrimaryMove(leader.name, target, 0)


def plan_failover(view: ClusterView, to: str | None) -> PrimaryMove:
    """Return a move for a primary that is lost, with what is lost by it. Raises ClusterFailed."""
    _require_agreement(view)
    if to is None:
        candidates = [each for each in view.standbys if each.role is MemberRole.SYNC_STANDBY and each.works]
        if not candidates:
            raise ClusterFailed(
                "no synchronous standby works: choose a member with --to; writes that it lacks are lost"
                " (novacron database cluster status shows how much)"
            )
        to = candidates[0].name
    target = _target(view, to)
    leader = view.member(view.primary or "")
    if leader is not None and leader.works:
        raise ClusterFailed(f"the primary, {leader.name}, works: use novacron database cluster switch --to {to}")
    if leader is not None and leader.state == "untrusted":
        raise ClusterFailed(
            f"the primary, {leader.name}, is not off: it answers, with a certificate that is refused; on its machine:"
            " novacron database cluster renew"
        )
    return PrimaryMove(view.primary, target, 0 if target.role is MemberRole.SYNC_STANDBY else target.lag_bytes)


def check_loss(move: PrimaryMove, accepted: int | str | None) -> None:
    """Raise ClusterFailed unless what a move loses was accepted: so many bytes, or ``unknown``."""
    if not move.loses or accepted == UNKNOWN:
        return
    name = move.target.name
    if move.loss_bytes is None:
        raise ClusterFailed(
            f"it is unknown how many writes {name} lacks: to accept their loss, add --accept-loss {UNKNOWN}"
        )
    if not isinstance(accepted, int) or accepted < max(1, move.loss_bytes):
        raise ClusterFailed(
            f"{name} is not a synchronous standby, and lacks at least {move.loss_bytes} bytes of acknowledged"
            f" writes: to accept their loss, add --accept-loss {max(1, move.loss_bytes)}"
        )


def check_off(view: ClusterView, fenced: str | None) -> None:
    """Raise ClusterFailed where the primary is another one than the ``fenced`` one, or answers."""
    if fenced is None:
        return
    if view.primary is not None and view.primary != fenced:
        raise ClusterFailed(f"--fenced {fenced}: the primary is {view.primary}, not this one")
    leader = view.member(fenced)
    if leader is not None and leader.state != "unreachable":
        raise ClusterFailed(f"--fenced {fenced}: it answers, so it is not off (state: {leader.state})")


class Mover:
    """Does what was planned."""

    def __init__(self, cluster: Cluster, etcd: Etcd, members: Members, look: Callable[[], ClusterView]) -> None:
        self._cluster, self._etcd, self._members, self.look = cluster, etcd, members, look

    def switch(self, move: PrimaryMove) -> ClusterView:
        """Let the primary hand over, and wait until the other one leads. Raises ClusterFailed."""
        leader = self.look().member(move.primary or "")
        if leader is None:
            raise ClusterFailed("the primary has changed in the meantime: see novacron database cluster status")
        body = {"leader": leader.name, "candidate": move.target.name}
        self._order(leader, "/switchover", body)
        return self._wait(move.target.name)

    def failover(self, move: PrimaryMove, fenced: str | None) -> ClusterView:
        """Let a member take over, and wait until it leads. ``fenced``: the primary, which is surely off (see
        ``check_off``), so that nobody has to wait for its time to end. Raises ClusterFailed."""
        if move.target.role is not MemberRole.SYNC_STANDBY:
            self._order(move.target, "/failover", {"candidate": move.target.name}, wait=fenced is None)
        if fenced is not None:
            self._etcd.remove_leader(self._cluster, fenced)
        return self._wait(move.target.name)

    def _order(self, member: MemberView, path: str, body: dict[str, str], *, wait: bool = True) -> None:
        try:
            status, words = self._members.tell(member.api_url, path, body, ORDER_S if wait else LOOK_S)
        except NoAnswerYet:
            if wait:
                raise
            return  # the answer comes when it is done
        if status >= 400 and self.look().primary != body["candidate"]:
            raise ClusterFailed(f"Patroni refuses: {words or status}")

    def _wait(self, name: str) -> ClusterView:
        deadline = time.monotonic() + DONE_S_MAX
        while True:
            view = self.look()
            leader = view.member(name)
            if view.primary == name and leader is not None and leader.works:
                return view
            if time.monotonic() > deadline:
                raise ClusterFailed(
                    f"{name} is not the primary after {DONE_S_MAX:.0f} s: see novacron database cluster status"
                )
            time.sleep(LOOK_S)


def _target(view: ClusterView, name: str) -> MemberView:
    target = view.member(name)
    if target is None:
        names = ", ".join(each.name for each in view.members)
        raise ClusterFailed(f"--to {name}: there is no such member; the members are {names}")
    if target.name == view.primary:
        raise ClusterFailed(f"--to {name}: it is already the primary")
    if not target.works:
        raise ClusterFailed(f"--to {name}: it is {target.state}")
    return target


def _require_agreement(view: ClusterView) -> None:
    if not view.etcd_agrees:
        raise ClusterFailed("etcd has no majority, so no member may be the primary: start etcd on the other machines")
