"""What a migration is: its phases, its votes, and how it ends."""

from __future__ import annotations

import base64
from datetime import datetime
from enum import StrEnum

import msgspec

from novacron.model.forecast import Forecast, ForecastError
from novacron.model.project import DEFAULT


class MigrationPhase(StrEnum):
    """Where a migration stands.

    ``pending``: waits for its turn. ``preparing``: the target makes an empty VM that waits for the stream.
    ``transferring``: memory flows. The other three are ends.
    """

    PENDING = "pending"
    PREPARING = "preparing"
    TRANSFERRING = "transferring"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"


ACTIVE = frozenset({MigrationPhase.PENDING, MigrationPhase.PREPARING, MigrationPhase.TRANSFERRING})

TRANSITIONS: dict[MigrationPhase, frozenset[MigrationPhase]] = {
    MigrationPhase.PENDING: frozenset({MigrationPhase.PREPARING, MigrationPhase.FAILED, MigrationPhase.ABORTED}),
    MigrationPhase.PREPARING: frozenset({MigrationPhase.TRANSFERRING, MigrationPhase.FAILED, MigrationPhase.ABORTED}),
    MigrationPhase.TRANSFERRING: frozenset({MigrationPhase.COMPLETED, MigrationPhase.FAILED, MigrationPhase.ABORTED}),
    MigrationPhase.COMPLETED: frozenset(),
    MigrationPhase.FAILED: frozenset(),
    MigrationPhase.ABORTED: frozenset(),
}


class Side(StrEnum):
    SOURCE = "source"
    TARGET = "target"


class MigrationKind(StrEnum):
    LIVE = "live"
    WARM = "warm"
    """The guest stands still, is sent with all that belongs to it, its snapshots too, and goes on at the target."""
    COLD = "cold"
    """It does not run."""


class MigrationPolicy(StrEnum):
    """What to do with a guest that writes faster than the link takes it.

    ``throttle``: slow it down, more and more. ``go-on``: let it run as it does, until it writes less or is aborted.
    ``post-copy``: let it run at the target before its memory is there; if a node or the link is lost then, it stands
    still until that is back.
    """

    THROTTLE = "throttle"
    GO_ON = "go-on"
    POST_COPY = "post-copy"


class Cause(StrEnum):
    """Who wanted a migration."""

    REQUEST = "request"
    DRAIN = "drain"
    RETURN = "return"
    """A node is in use again, and gets back what it had."""
    REBALANCE = "rebalance"


class Savings(msgspec.Struct, frozen=True):
    """Bytes of memory that did not have to be sent as they are, by what they were told as instead."""

    zero: int = 0
    session: int = 0
    """The same page was sent before in this migration."""
    image: int = 0
    """In the VM's image, which the target holds."""
    sibling: int = 0
    """In another VM of the project, which is at the target or was."""
    checkpoint: int = 0
    """In what this VM left behind at the target when it was there before."""
    difference: int = 0
    """Sent as what has changed since the page was sent before."""
    compression: int = 0


class Progress(msgspec.Struct, frozen=True):
    """What the source measures while memory flows."""

    total_bytes: int = 0
    remaining_bytes: int = 0
    disk_bytes: int = 0
    """How much of a disk is to be mirrored: what the VM wrote to it, and what was written meanwhile."""
    disk_remaining_bytes: int = 0
    raw_bytes: int = 0
    """Bytes that QEMU gave to the transport."""
    wire_bytes: int = 0
    """Bytes that the transport put on the link, before TLS and TCP headers."""
    dirty_bytes_per_s: int = 0
    rate_bytes_per_s: int = 0
    passes: int = 0
    streams: int = 0
    rtt_ms: float = 0.0
    """Round trip of the link, as TCP sees it, queues included."""
    retransmits: int = 0
    resumed: int = 0
    """How often the session went on after all of its connections were lost."""
    repaired_pages: int = 0
    """Pages that were damaged in the target's stores, and sent."""
    savings: Savings = Savings()
    elapsed_s: float = 0.0
    throttle_percent: int = 0
    """How much of its processor time the guest is denied, so that it writes less."""
    first_forecast: Forecast | None = None
    """What was foreseen when memory began to flow."""
    first_forecast_at_s: float = 0.0
    """When that was, after so much of the elapsed time."""
    forecast: Forecast | None = None
    """What is foreseen now; at the end, what was foreseen last before the guest stopped."""
    downtime_ms: float | None = None
    """From the guest's stop at the source to its first instruction at the target, as the server saw it."""
    forecast_error: ForecastError | None = None
    """How far off the first forecast was, once the migration has completed."""


class Migration(msgspec.Struct, frozen=True):
    """A migration as stored and as the API shows it."""

    id: str
    vm: str
    vm_name: str
    kind: MigrationKind
    source: str
    target: str
    epoch: int
    """The VM's epoch when the migration began. Every end of it moves the VM to the next epoch."""
    phase: MigrationPhase
    source_vote: bool
    target_vote: bool
    endpoint: str | None
    weight: int
    """Its share where several migrations share a budget, in proportion to the others' weights."""
    rate_limit_bytes_per_s: int | None
    """What it may use at most, as asked for."""
    rate_bytes_per_s: int | None
    """What it may use now, after what nodes and links allow; None: as much as there is."""
    waits_for: str | None
    """Why it does not begin yet."""
    policy: MigrationPolicy
    cause: Cause
    progress: Progress
    error: str | None
    revision: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    project: str = DEFAULT
    trace: str = ""
    """To which trace all belongs that is done for it (W3C Trace Context: traceparent)."""


def migration_id(random: bytes) -> str:
    """Return a new migration id from 10 random bytes."""
    if len(random) != 10:
        raise ValueError(f"a migration id takes 10 random bytes, got {len(random)}")
    return "mig-" + base64.b32encode(random).decode().lower()


def switches(phase: MigrationPhase, source_vote: bool, target_vote: bool) -> bool:
    """Say whether ownership changes now: both sides have promised, and nothing ended the migration before.

    The source's vote means that its guest is stopped, everything was sent, and it will not run again before an
    epoch later than the migration's says so. The target's vote means that it has loaded everything and waits.
    """
    return phase is MigrationPhase.TRANSFERRING and source_vote and target_vote
