"""Replicas: copies of VMs' disks on nodes of another site, that follow what the guests write in rounds."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model.node import NodeName
from novacron.model.project import DEFAULT
from novacron.model.replica_source import PointNumber, ReplicaId

RPO_S, POINTS = 30, 3
LATE_ROUNDS = 2
"""A replica is late when its newest point is older than so many rounds, and a moment for the last one's way."""
LATE_S = 30
FIRST_COPY_S = 3600
"""How long the first point may take until the replica is late."""
AGE_S_MAX = 10 * 365 * 86_400.0
"""Of a point."""

RpoSeconds = Annotated[int, Meta(ge=5, le=86_400)]
PointCount = Annotated[int, Meta(ge=1, le=6)]


class ReplicaPhase(StrEnum):
    """What is to be done about a replica."""

    FOLLOWING = "following"
    DELETING = "deleting"


class RoundKind(StrEnum):
    """How the changes of a round were determined."""

    RECORDED = "recorded"
    """QEMU recorded what the guest wrote since the point before."""
    COMPARED = "compared"
    """Both nodes compared what they have, block by block."""
    WHOLE = "whole"
    """All that the VM's own layers hold was sent."""


class ReplicaPoint(msgspec.Struct, frozen=True):
    """A moment of the VM's disk that the replica has as a whole."""

    number: PointNumber
    at: datetime
    sent_bytes: int
    """What its round sent before compression: the blocks that were written since the point before."""
    quiesced: bool
    """The guest agent had flushed the file systems."""


class Replica(msgspec.Struct, frozen=True):
    """A replica as stored and as the API shows it."""

    id: ReplicaId
    vm: str
    vm_name: str
    node: NodeName
    """Where it is."""
    site: str
    phase: ReplicaPhase
    rpo_s: RpoSeconds
    """A round begins so many seconds after the one before began, or when that has ended."""
    points_kept: PointCount
    points: tuple[ReplicaPoint, ...]
    """From the oldest to the newest."""
    used_bytes: int
    error: str
    """Why the last round failed; empty: it went well."""
    revision: int
    created_at: datetime
    late_at: datetime | None = None
    """From when on the newest point is older than promised, if no other comes."""
    reason_code: str = ""
    """``error``, for programs: one of ``WaitCode``."""
    round_kind: RoundKind | None = None
    """Of the last round that brought a point; None: none has yet."""
    round_reason: str = ""
    """Why more than QEMU's recorded writes was sent; empty: it was not."""
    project: str = DEFAULT


def late_after_s(rpo_s: int) -> int:
    """Return how old the newest point of a replica may become before it is late."""
    return LATE_ROUNDS * rpo_s + LATE_S
