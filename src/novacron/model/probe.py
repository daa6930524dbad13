"""What a probe of the path between two nodes found, and what it means for a move."""

from __future__ import annotations

import msgspec

from novacron.model.forecast import Forecast

SECONDS_MAX = 30.0


class PathMeasured(msgspec.Struct, frozen=True):
    """A path as a migration would meet it, measured with data that can't be compressed."""

    source: str
    target: str
    seconds: float
    """How long data flowed."""
    delivered_bytes: int
    """What the target confirmed in that time."""
    rate_bytes_per_s: float
    """``delivered_bytes`` over the time, the start included."""
    best_rate_bytes_per_s: float
    """What TCP measured at its best."""
    open_ms: float
    """Until the session was open: connection, TLS, and the target's answer."""
    rtt_ms: float
    """The shortest round trip that TCP saw."""
    loaded_rtt_ms: float
    """The round trip while data flowed: what is more than ``rtt_ms`` are queues."""
    retransmits: int
    streams: int


class MoveForeseen(msgspec.Struct, frozen=True):
    """What a migration would be like, measured before it: nothing has moved.

    What the target has already is not counted: an image, a sibling or a checkpoint make it shorter.
    """

    memory_bytes: int
    """Memory that would have to be sent: what the guest has touched, without pages of zeros."""
    dirty_bytes_per_s: int
    ratio: float
    """Bytes on the link for each of these bytes, compressed, from samples."""
    path: PathMeasured
    forecast: Forecast
    disk_bytes: int = 0
    """What would have to be sent of the disks that move with it: of its own what lies over the image, without zeros."""
    disk_ratio: float = 1.0
    """Bytes on the link for each of these."""
