"""Conditions of nodes: what is right with each, what is not, and what to do about it. Pure.

The agent reports what only its host can know: disk, memory, and peers that do not answer. The rest follows from what
the control plane knows. Every type is named so that ``true`` is good.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

MESSAGE_LENGTH_MAX = 1000
PEERS_MAX = 16
"""Peers of which a node reports that they do not answer."""
CLOCK_WRONG_S = 5.0
"""A clock that is wrong by more keeps VMs away; by less, it is only reported."""
CERTIFICATE_ENDS_SOON_S = 14 * 86_400.0
Message = Annotated[str, Meta(max_length=MESSAGE_LENGTH_MAX)]


class ConditionType(StrEnum):
    """What a condition of a node is about."""

    PEERS = "PeersReachable"
    """Other nodes answer over DWCP."""
    DISK = "DiskUsable"
    """The disks with the agent's state and its images can be written to, and have room."""
    CLOCK = "ClockRight"
    MEMORY = "MemoryAvailable"
    OVERLAY = "OverlayTrusted"
    """Frames of networks come only from nodes that have them."""
    CERTIFICATE = "CertificateValid"
    DATABASE = "DatabaseCurrent"
    """The database has the node's latest heartbeats, so what it says of the node is of now."""


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


class ConditionReason(StrEnum):
    """Why a condition is as it is."""

    PEERS_ANSWER = "PeersAnswer"
    PEER_UNREACHABLE = "PeerUnreachable"
    """Some peers do not answer, others do."""
    PARTITIONED = "Partitioned"
    """No peer answers, though the control plane hears them."""
    DISK_WRITABLE = "DiskWritable"
    DISK_NEARLY_FULL = "DiskNearlyFull"
    DISK_FULL = "DiskFull"
    DISK_READ_ONLY = "DiskReadOnly"
    DISK_FAILS = "DiskFails"
    DISK_HANGS = "DiskHangs"
    CERTIFICATE_VALID = "CertificateValid"
    CERTIFICATE_ENDING = "CertificateEnding"
    CERTIFICATE_ENDED = "CertificateEnded"
    CLOCK_RIGHT = "ClockRight"
    CLOCK_SKEWED = "ClockSkewed"
    CLOCK_WRONG = "ClockWrong"
    MEMORY_AVAILABLE = "MemoryAvailable"
    MEMORY_LOW = "MemoryLow"
    MEMORY_PRESSURE = "MemoryPressure"
    OVERLAY_TRUSTED = "OverlayTrusted"
    FOREIGN_FRAMES = "ForeignFrames"
    """The node drops frames of its networks that come from elsewhere."""
    HEARTBEATS_STORED = "HeartbeatsStored"
    DATABASE_OLDER = "DatabaseOlder"
    """The node knows more of VMs than the database, which was put back from a backup."""
    NOT_HEARD_SINCE_RESTORE = "NotHeardSinceRestore"
    """An older database was put back, or may have been, and the node was not heard since: it may know more."""
    HEARTBEATS_NOT_STORED = "HeartbeatsNotStored"
    NODE_LOST = "NodeLost"
    NOT_REPORTED = "NotReported"


R = ConditionReason
KEEPS_VMS_AWAY = frozenset(
    (
        R.PARTITIONED, R.DISK_FULL, R.DISK_READ_ONLY, R.DISK_FAILS, R.DISK_HANGS, R.CERTIFICATE_ENDED, R.CLOCK_WRONG,
        R.MEMORY_PRESSURE,
    )
)  # fmt: skip
"""With these reasons, a node gets nothing that is not on it yet: no VM, image, volume or replica, and no network as its
gateway (``fit.refusal_of_all``)."""
REPORTED_BY_AGENT = frozenset((ConditionType.DISK, ConditionType.MEMORY, ConditionType.OVERLAY))
EVENTS_OF_THEIR_OWN = frozenset((ConditionType.CERTIFICATE, ConditionType.CLOCK, ConditionType.DATABASE))
"""Their changes make other events already: CertificateEnding, ClockSkewed, Lost."""


class ReportedCondition(msgspec.Struct, frozen=True):
    """A condition as the agent, or the control plane, finds it now."""

    type: ConditionType
    status: ConditionStatus
    reason: ConditionReason
    message: Message
    """What was found and what to do about it, in words."""


class NodeCondition(ReportedCondition, frozen=True):
    """A condition of a node, and since when it is so."""

    since: datetime
    """When ``status`` became what it is."""

    @property
    def keeps_vms_away(self) -> bool:
        return self.status is not ConditionStatus.TRUE and self.reason in KEEPS_VMS_AWAY


class UnreachablePeer(msgspec.Struct, frozen=True):
    """A node that does not answer over DWCP, and how the last attempt ended."""

    name: Annotated[str, Meta(max_length=200)]
    error: Annotated[str, Meta(max_length=300)]


class PeersSeen(msgspec.Struct, frozen=True):
    """Which of the peers that a node watches answer it."""

    answering: int = 0
    unreachable: Annotated[tuple[UnreachablePeer, ...], Meta(max_length=PEERS_MAX)] = ()


class NodeFacts(NamedTuple):
    """What conditions follow from, as the control plane knows it."""

    name: str
    ready: bool
    heartbeat_at: datetime | None
    """When the last one was stored."""
    clock_skew_s: float
    certificate_ends_at_s: float
    peers: PeersSeen | None
    """None: its agent has not reported."""
    peers_heard: frozenset[str]
    """Those of the unreachable peers that the control plane hears. Others are down: that is their own condition."""
    now: datetime
    unreconciled_vms: int = 0
    """VMs of which the node knows more than the database."""
    unheard: bool = False
    """The database is older, or may be, than what nodes know, and this one was not heard since that was found."""


def evaluate(facts: NodeFacts, reported: Iterable[ReportedCondition]) -> tuple[ReportedCondition, ...]:
    """Return all conditions of a node. ``reported``: those that its agent has reported last."""
    of_agent = {
        condition.type: condition
        for condition in reported
        if condition.type in REPORTED_BY_AGENT and condition.reason is not R.NODE_LOST
    }
    if facts.ready:
        seen = [
            _peers(facts),
            of_agent.get(ConditionType.DISK) or _not_reported(ConditionType.DISK),
            _clock(facts),
            of_agent.get(ConditionType.MEMORY) or _not_reported(ConditionType.MEMORY),
            of_agent.get(ConditionType.OVERLAY) or _not_reported(ConditionType.OVERLAY),
        ]
    else:
        lost = "its agent is not connected: look at it there: systemctl status novacron-agent"
        types = (
            ConditionType.PEERS, ConditionType.DISK, ConditionType.CLOCK, ConditionType.MEMORY, ConditionType.OVERLAY,
        )  # fmt: skip
        seen = [ReportedCondition(type, ConditionStatus.UNKNOWN, R.NODE_LOST, lost) for type in types]
    return (*seen, _certificate(facts), _database(facts))


def _not_reported(type: ConditionType) -> ReportedCondition:
    message = "its agent has not reported it yet; one of an earlier version never does: update it"
    return ReportedCondition(type, ConditionStatus.UNKNOWN, R.NOT_REPORTED, message)


def _peers(facts: NodeFacts) -> ReportedCondition:
    peers = facts.peers
    if peers is None:
        return _not_reported(ConditionType.PEERS)
    gone = [peer for peer in peers.unreachable if peer.name in facts.peers_heard]
    if not gone:
        return ReportedCondition(
            ConditionType.PEERS, ConditionStatus.TRUE, R.PEERS_ANSWER, "every node that it watches answers or is down"
        )
    names = ", ".join(f"{peer.name} ({peer.error})" for peer in gone)
    advice = f"check the path, firewalls and the DWCP port (7445): novacron link probe {facts.name} {gone[0].name}"
    alone = "" if peers.answering else ", and no other node answers it"
    reason = R.PEER_UNREACHABLE if peers.answering else R.PARTITIONED
    message = f"it can't reach {names}{alone}; {advice}"
    return ReportedCondition(ConditionType.PEERS, ConditionStatus.FALSE, reason, message[:MESSAGE_LENGTH_MAX])


def _clock(facts: NodeFacts) -> ReportedCondition:
    skew_s = facts.clock_skew_s
    if not skew_s:
        return ReportedCondition(ConditionType.CLOCK, ConditionStatus.TRUE, R.CLOCK_RIGHT, "its clock is right")
    reason = R.CLOCK_WRONG if abs(skew_s) > CLOCK_WRONG_S else R.CLOCK_SKEWED
    message = (
        f"its clock is {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}; set it, and keep it right with chrony"
        " there: chronyc makestep"
    )
    return ReportedCondition(ConditionType.CLOCK, ConditionStatus.FALSE, reason, message)


def _certificate(facts: NodeFacts) -> ReportedCondition:
    type, ends_at_s = ConditionType.CERTIFICATE, facts.certificate_ends_at_s
    if not ends_at_s:
        return ReportedCondition(type, ConditionStatus.UNKNOWN, R.NOT_REPORTED, "its agent has not connected yet")
    left_s = ends_at_s - facts.now.timestamp()
    ends_at = f"{datetime.fromtimestamp(ends_at_s, UTC):%Y-%m-%d %H:%M} UTC"
    rejoin = f"novacron node join-token --node {facts.name}, then there: novacron agent --rejoin TOKEN"
    if left_s <= 0:
        message = f"its agent's certificate ended on {ends_at}; {rejoin}"
        return ReportedCondition(type, ConditionStatus.FALSE, R.CERTIFICATE_ENDED, message)
    if left_s <= CERTIFICATE_ENDS_SOON_S:
        message = f"its agent's certificate ends on {ends_at} and was not renewed; {rejoin}"
        return ReportedCondition(type, ConditionStatus.FALSE, R.CERTIFICATE_ENDING, message)
    return ReportedCondition(type, ConditionStatus.TRUE, R.CERTIFICATE_VALID, f"its agent's is valid until {ends_at}")


def _database(facts: NodeFacts) -> ReportedCondition:
    type, heartbeat_at = ConditionType.DATABASE, facts.heartbeat_at
    if heartbeat_at is None:
        return ReportedCondition(type, ConditionStatus.UNKNOWN, R.NOT_REPORTED, "it has sent no heartbeat yet")
    if facts.unreconciled_vms:
        count = f"{facts.unreconciled_vms} VM{'s' if facts.unreconciled_vms > 1 else ''}"
        message = f"it has newer records of {count} than the database, which is older; see: novacron vm unreconciled"
        return ReportedCondition(type, ConditionStatus.FALSE, R.DATABASE_OLDER, message)
    if facts.unheard:
        message = (
            "the database may be older than what it knows, and it was not heard since: no VM is begun elsewhere that it"
            f" may have; start its agent, or, if that host is gone for good: novacron node remove {facts.name} --force"
        )
        return ReportedCondition(type, ConditionStatus.FALSE, R.NOT_HEARD_SINCE_RESTORE, message)
    if facts.ready:
        return ReportedCondition(type, ConditionStatus.TRUE, R.HEARTBEATS_STORED, "its heartbeats are stored")
    message = (
        f"its last heartbeat was stored at {heartbeat_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC: what the database says of"
        " it is of then; look at its agent: systemctl status novacron-agent"
    )
    return ReportedCondition(type, ConditionStatus.FALSE, R.HEARTBEATS_NOT_STORED, message)


def dated(
    before: Iterable[NodeCondition], found: Iterable[ReportedCondition], now: datetime
) -> tuple[NodeCondition, ...]:
    """Return conditions with when their status became what it is."""
    known = {condition.type: condition for condition in before}
    return tuple(_dated(known.get(condition.type), condition, now) for condition in found)


def _dated(before: NodeCondition | None, found: ReportedCondition, now: datetime) -> NodeCondition:
    since = before.since if before is not None and before.status is found.status else now
    return NodeCondition(found.type, found.status, found.reason, found.message, since)


def worth_an_event(before: Iterable[NodeCondition], now: Iterable[NodeCondition]) -> list[NodeCondition]:
    """Return the conditions whose change is an event: what went wrong, or otherwise wrong, and what is right again."""
    known = {condition.type: condition for condition in before}
    return [condition for condition in now if _is_event(known.get(condition.type), condition)]


def _is_event(before: NodeCondition | None, now: NodeCondition) -> bool:
    if now.type in EVENTS_OF_THEIR_OWN or now.status is ConditionStatus.UNKNOWN:
        return False
    if before is None or before.status is ConditionStatus.UNKNOWN:
        return now.status is ConditionStatus.FALSE
    return (before.status, before.reason) != (now.status, now.reason)
