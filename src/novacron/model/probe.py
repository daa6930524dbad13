"""Results of probes: the path between two nodes, and what a migration over it would be like."""

from __future__ import annotations

import msgspec

from novacron.model.finite import Finite
from novacron.model.forecast import Forecast

SECONDS_MAX = 30.0


class PathMeasured(msgspec.Struct, frozen=True):
    """A path between two nodes, measured as a migration would use it, with incompressible data."""

    source: str
    target: str
    seconds: Finite
    """How long data was sent."""
    delivered_bytes: int
    """Bytes that the target confirmed in that time."""
    rate_bytes_per_s: Finite
    """``delivered_bytes`` divided by ``seconds``, including the slow start."""
    best_rate_bytes_per_s: Finite
    """The highest rate that TCP measured."""
    open_ms: Finite
    """Time to open the session: connection, TLS, and the target's answer."""
    rtt_ms: Finite
    """The shortest round-trip time that TCP measured."""
    loaded_rtt_ms: Finite
    """The round-trip time under load. The excess over ``rtt_ms`` is time in queues."""
    retransmits: int
    streams: int


class MoveForeseen(msgspec.Struct, frozen=True):
    """The forecast of a migration, from measurements. Nothing has moved.

    It disregards pages that the target already has: an image, a sibling or a checkpoint make the migration shorter.
    """

    memory_bytes: int
    """Memory to send: pages that the guest has used, without pages of zeros."""
    dirty_bytes_per_s: int
    ratio: Finite
    """Bytes on the link for each byte of memory, after compression; estimated from samples."""
    path: PathMeasured
    forecast: Forecast
    disk_bytes: int = 0
    """Data to send of the disks that move with the VM: of its own disk, what differs from the image; without zeros."""
    disk_ratio: Finite = 1.0
    """Bytes on the link for each byte of the disks."""
