"""Messages about replicas of VMs."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model.replica import AGE_S_MAX, PointCount, ReplicaPhase, RoundKind, RpoSeconds
from novacron.model.replica_source import PointNumber, ReplicaId
from novacron.wire.base import Message

Age = Annotated[float, Meta(ge=0, le=AGE_S_MAX)]
Bytes = Annotated[int, Meta(ge=0, lt=1 << 60)]


class ReplicaSent(msgspec.Struct, frozen=True):
    """A replica of one of this node's VMs, which this node is to send the rounds of."""

    id: ReplicaId
    vm: str
    peer: str
    endpoint: str
    rpo_s: RpoSeconds
    has_points: bool
    """The peer has a point: where nothing was written since, nothing need be sent."""


class ReplicaKept(msgspec.Struct, frozen=True):
    """A replica that is on this node, or is to go from it."""

    id: ReplicaId
    vm: str
    phase: ReplicaPhase
    peer: str
    """The node that owns the VM and sends rounds; empty: none does now."""
    points_kept: PointCount
    image: str
    image_digest: str | None
    disk_mib: int
    """How large the VM's disk is; 0: as its image's."""
    page_key: bytes
    """That of the VM's project."""


class Replicas(Message, frozen=True):
    """All replicas that this node sends and keeps; work on others is given up, and what it has of others stays."""

    sent: tuple[ReplicaSent, ...]
    kept: tuple[ReplicaKept, ...]
    unreadable: tuple[str, ...] = ()
    """Ids of more, of which the server can't read how they are to be: what was said of them last holds."""
    unreadable_vms: tuple[str, ...] = ()
    """Their VMs: what these left here of their disks stays."""


class PointStands(msgspec.Struct, frozen=True):
    """A point that a node has as a whole."""

    number: PointNumber
    age_s: Age
    sent_bytes: Bytes
    quiesced: bool


class ReplicaStands(Message, frozen=True):
    """What a node has of a replica that it keeps; ``gone``: nothing any more, as was asked."""

    id: ReplicaId
    points: tuple[PointStands, ...]
    used_bytes: Bytes
    gone: bool = False


class ReplicaRound(Message, frozen=True):
    """How the last round of a replica ended at the node that sends it; ``error`` is empty when it went well.

    ``unchanged``: the guest has written nothing since the newest point, so that it is as new as this round.
    """

    id: ReplicaId
    error: str = ""
    code: str = ""
    unchanged: bool = False
    kind: RoundKind | None = None
    """How it was known what to send; None: nothing was sent."""
    reason: str = ""
    """Why more was done than to send what was recorded."""
