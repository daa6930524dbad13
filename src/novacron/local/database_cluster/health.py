"""What is wrong with a cluster, and what to do: pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from novacron.local.database_cluster.etcd import CERTIFICATES, is_of_certificates
from novacron.local.database_cluster.view import ClusterView, MemberRole, MemberView
from novacron.pki import ENDS_SOON_S, utc

RENEW = "novacron database cluster renew; Patroni uses it at once, and writes go on"


class ClusterProblem(msgspec.Struct, frozen=True):
    """Something that is not well."""

    text: str
    hint: str


def problems(view: ClusterView) -> list[ClusterProblem]:
    """Return what is not well, the worst first."""
    cluster_problems = [*_of_etcd(view), *_of_leader(view)]
    for member in view.members:
        cluster_problems += _of_member(view, member)
    if view.primary is not None and view.etcd_agrees:
        cluster_problems += _of_standbys(view)
    if view.paused:
        cluster_problems.append(ClusterProblem(
            "the cluster is paused: no member takes over by itself", "patronictl -c patroni.yml resume"
        ))  # fmt: skip
    return cluster_problems


def _of_etcd(view: ClusterView) -> list[ClusterProblem]:
    away = "; ".join(f"{endpoint}: {error}" for endpoint, error in view.etcd_errors.items())
    if is_of_certificates(away):
        effect = "" if view.etcd_agrees else ", so no member may be the primary: the database accepts no writes"
        return [ClusterProblem(
            f"etcd and this machine do not trust one another's certificates{effect} ({away})", CERTIFICATES
        )]  # fmt: skip
    if not view.etcd_agrees:
        return [ClusterProblem(
            f"etcd has no majority, so no member may be the primary: the database accepts no writes ({away})",
            "start etcd on the other machines: systemctl start etcd; the cluster then recovers by itself",
        )]  # fmt: skip
    if away:
        return [ClusterProblem(
            f"etcd does not answer on all machines ({away})",
            "start it there: systemctl start etcd; if one more fails, the database accepts no writes",
        )]  # fmt: skip
    return []


def _of_leader(view: ClusterView) -> list[ClusterProblem]:
    if not view.members:
        return [ClusterProblem(f"no member of {view.name} has ever started", "novacron database cluster init")]
    primary = view.member(view.primary) if view.primary else None
    if primary is None:
        return [ClusterProblem(
            "there is no primary: the database accepts no writes",
            "a synchronous standby takes over within about 20 s; if none is left:"
            " novacron database cluster failover --to",
        )] if view.etcd_agrees else []  # fmt: skip
    if primary.state == "untrusted":
        return [_of_untrusted(primary)]
    if not primary.works:
        return [ClusterProblem(
            f"the primary, {primary.name}, is {primary.state}: the database accepts no writes",
            "its standby takes over within about 20 s; at once, if that machine is off:"
            f" novacron database cluster failover --fenced {primary.name}",
        )]  # fmt: skip
    return []


def _of_member(view: ClusterView, member: MemberView) -> list[ClusterProblem]:
    if member.name == view.primary:
        return []
    if member.state == "untrusted":
        return [_of_untrusted(member)]
    if member.state == "unreachable":
        return [ClusterProblem(
            f"{member.name} does not answer: {member.problem}",
            "on its machine: systemctl status novacron-database, or start it: novacron database cluster run",
        )]  # fmt: skip
    if member.state != "streaming" and view.primary is not None and view.etcd_agrees:
        return [ClusterProblem(
            f"{member.name} does not receive writes: it is {member.state}",
            f"wait a minute; if this continues, read the logs on its machine, in logs/ beside {member.name}'s data",
        )]  # fmt: skip
    if (member.lag_bytes or 0) > view.loss_bytes_max:
        return [ClusterProblem(
            f"{member.name} lacks {member.lag_bytes} bytes, and can't take over until it has them",
            "if the number grows, its network or disk is too slow",
        )]  # fmt: skip
    return []


def _of_untrusted(member: MemberView) -> ClusterProblem:
    return ClusterProblem(
        f"{member.name} answers, but its certificate is refused ({member.problem}): it goes on, but can't be switched",
        f"on its machine: {RENEW}",
    )


def _of_standbys(view: ClusterView) -> list[ClusterProblem]:
    standby_problems = []
    if not any(each.role is MemberRole.SYNC_STANDBY and each.works for each in view.standbys):
        effect = "writes are only there" if view.lone_writes else "writes wait until another member is back"
        standby_problems.append(ClusterProblem(
            f"no synchronous standby: {effect}, at {view.primary}",
            "start the other members, or add one: novacron database cluster join",
        ))  # fmt: skip
    primary = view.member(view.primary or "")
    if primary is not None and primary.timeline is not None:
        standby_problems += [
            ClusterProblem(
                f"{each.name} is on timeline {each.timeline}, the primary on {primary.timeline}",
                "wait a minute: it rewinds to the common point by itself",
            )
            for each in view.standbys if each.timeline is not None and each.timeline != primary.timeline
        ]  # fmt: skip
    if len(view.members) == 2:
        standby_problems.append(ClusterProblem(
            "there are only two members: losing one leaves a single copy of the data",
            "start the third on its machine: systemctl start novacron-database; or add one: novacron database"
                " cluster join",
        ))  # fmt: skip
    return standby_problems


def of_certificates(ends_at_s: Mapping[str, float], now_s: float) -> list[ClusterProblem]:
    """Return what is wrong with the certificates that a member uses, by their names in ``MemberFiles.certificates``."""
    return [
        ClusterProblem(
            f"this machine's certificate of the {name} {_when(at_s, now_s)}",
            CERTIFICATES if name.startswith("etcd") else f"here: {RENEW}",
        )
        for name, at_s in ends_at_s.items() if at_s - now_s < ENDS_SOON_S
    ]  # fmt: skip


def of_etcd_servers(view: ClusterView, now_s: float) -> list[ClusterProblem]:
    """Return which etcd shows a certificate that ends soon; one that has ended does not answer."""
    return [
        ClusterProblem(f"the certificate of etcd at {endpoint} {_when(at_s, now_s)}", CERTIFICATES)
        for endpoint, at_s in view.etcd_ends_at_s.items() if at_s - now_s < ENDS_SOON_S
    ]  # fmt: skip


def _when(at_s: float, now_s: float) -> str:
    return f"{'ended' if at_s <= now_s else 'ends'} on {utc(at_s)}"
