"""Migrations: their kinds, phases, votes and ends."""

from __future__ import annotations

import base64
from datetime import datetime
from enum import StrEnum

import msgspec

from novacron.model.finite import Finite
from novacron.model.forecast import Forecast, ForecastError
from novacron.model.project import DEFAULT


class MigrationPhase(StrEnum):
    """The phase of a migration.

    ``pending``: it waits for its turn. ``preparing``: the target starts an empty VM that waits for the stream.
    ``transferring``: memory is sent. The other three are final.
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
    """What becomes of the guest meanwhile."""

    LIVE = "live"
    WARM = "warm"
    """The guest is stopped, sent with its memory, disks and snapshots, and resumes at the target."""
    COLD = "cold"
    """The VM does not run."""


class MigrationPolicy(StrEnum):
    """What to do with a guest that writes to memory faster than the link can send it.

    ``throttle``: slow the guest down, step by step. ``go-on``: don't touch the guest; the migration goes on until the
    guest writes less or somebody aborts it. ``post-copy``: run the guest at the target before all of its memory has
    arrived; if a node or the link then fails, the guest stands still until that is back.
    """

    THROTTLE = "throttle"
    GO_ON = "go-on"
    POST_COPY = "post-copy"


class Cause(StrEnum):
    """What started a migration."""

    REQUEST = "request"
    DRAIN = "drain"
    RETURN = "return"
    """A drained node is in use again, and its VMs return."""
    REBALANCE = "rebalance"


class Savings(msgspec.Struct, frozen=True):
    """Bytes of memory that did not have to be sent in full, by the reason."""

    zero: int = 0
    session: int = 0
    """The same page was sent earlier in this migration."""
    image: int = 0
    """The page is in the VM's image, which the target has."""
    sibling: int = 0
    """The page is in another VM of the project that is or was at the target."""
    checkpoint: int = 0
    """The page is in the checkpoint that this VM left at the target on an earlier stay."""
    difference: int = 0
    """Only the difference from an earlier version of the page was sent."""
    compression: int = 0


class Progress(msgspec.Struct, frozen=True):
    """The progress of a migration, as the source measures it."""

    total_bytes: int = 0
    remaining_bytes: int = 0
    disk_bytes: int = 0
    """How much of the disks must be mirrored: data that the VM has written, also during the migration."""
    disk_remaining_bytes: int = 0
    raw_bytes: int = 0
    """Bytes that QEMU passed to the transport."""
    wire_bytes: int = 0
    """Bytes that the transport sent, without TLS and TCP headers."""
    dirty_bytes_per_s: int = 0
    rate_bytes_per_s: int = 0
    passes: int = 0
    streams: int = 0
    rtt_ms: Finite = 0.0
    """Round-trip time of the link as TCP measures it, including queues."""
    retransmits: int = 0
    resumed: int = 0
    """How many times the session resumed after all of its connections were lost."""
    repaired_pages: int = 0
    """Pages that were damaged in the target's stores, and sent instead."""
    savings: Savings = Savings()
    elapsed_s: Finite = 0.0
    throttle_percent: int = 0
    """How much of its processor time is withheld from the guest, so that it writes less."""
    first_forecast: Forecast | None = None
    """The forecast made when memory began to be sent."""
    first_forecast_at_s: Finite = 0.0
    """When the first forecast was made, as a value of ``elapsed_s``."""
    forecast: Forecast | None = None
    """The latest forecast; at the end: the last one before the guest stopped."""
    downtime_ms: Finite | None = None
    """From the guest's stop at the source to its first instruction at the target, as the server measured it."""
    forecast_error: ForecastError | None = None
    """The error of the first forecast, once the migration has completed."""


class Migration(msgspec.Struct, frozen=True):
    """A migration as stored and as the API shows it."""

    id: str
    vm: str
    vm_name: str
    kind: MigrationKind
    source: str
    target: str
    epoch: int
    """The VM's epoch when the migration began. However the migration ends, the VM moves to the next epoch."""
    phase: MigrationPhase
    source_vote: bool
    target_vote: bool
    endpoint: str | None
    weight: int
    """Its share of a budget, in proportion to the weights of other migrations that use it."""
    rate_limit_bytes_per_s: int | None
    """The limit that was requested."""
    rate_bytes_per_s: int | None
    """The limit that applies now, after the budgets of nodes and links; None: no limit."""
    waits_for: str | None
    """Why the migration is still pending."""
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
    """The trace to which all work on this migration belongs (W3C Trace Context: traceparent)."""


def migration_id(random: bytes) -> str:
    """Return a new migration id from 10 random bytes."""
    if len(random) != 10:
        raise ValueError(f"a migration id takes 10 random bytes, got {len(random)}")
    return "mig-" + base64.b32encode(random).decode().lower()


def switches(phase: MigrationPhase, source_vote: bool, target_vote: bool) -> bool:
    """Say whether ownership changes now: both sides have voted, and the migration has not ended.

    The source's vote is a promise: its guest is stopped, everything was sent, and the source won't run the guest again
    at the migration's epoch. The target's vote means that it has loaded everything and waits.
    """
    return phase is MigrationPhase.TRANSFERRING and source_vote and target_vote
