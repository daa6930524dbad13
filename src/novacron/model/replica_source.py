"""The point of a replica that becomes the disk of a VM."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

ReplicaId = Annotated[str, Meta(pattern=r"^replica-[0-9a-f]{16}\Z")]
PointNumber = Annotated[int, Meta(ge=1, lt=1 << 53)]


class ReplicaSource(msgspec.Struct, frozen=True):
    """A point of a replica, of which the disk of a VM on the replica's node has yet to be made."""

    replica: ReplicaId
    point: PointNumber
    or_newest: bool = False
    """If it is not there any more, the newest one is meant."""
