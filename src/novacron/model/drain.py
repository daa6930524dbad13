"""Drains: moving all VMs away from a node, and back again if requested."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from novacron.model.migration import MigrationPolicy


class DrainPolicy(StrEnum):
    """What to do with a guest that writes to memory faster than the link can send it."""

    THROTTLE = "throttle"
    """Slow the guest down."""
    POST_COPY = "post-copy"
    """Run the guest at the target before all of its memory has arrived."""
    LEAVE = "leave"
    """Leave the VM on its node, and report it."""

    @property
    def of_migrations(self) -> MigrationPolicy:
        """Return the policy of the drain's migrations."""
        return MigrationPolicy.GO_ON if self is DrainPolicy.LEAVE else MigrationPolicy(self.value)


class DrainPhase(StrEnum):
    DRAINING = "draining"
    DRAINED = "drained"
    """The node is empty."""
    ENDED = "ended"
    """The node was uncordoned before it was empty, or removed."""
    RETURNING = "returning"
    """The node's VMs are moving back."""
    RETURNED = "returned"


class Stays(msgspec.Struct, frozen=True):
    """A VM that could not be moved yet, and why."""

    vm: str
    vm_name: str
    why: str


class Drain(msgspec.Struct, frozen=True):
    """A drain as stored and as the API shows it."""

    id: str
    node: str
    policy: DrainPolicy
    actor: str
    phase: DrainPhase
    total: int
    """How many VMs were on the node."""
    moved: tuple[str, ...]
    """Ids of the VMs that have left the node; while VMs return, of those that have yet to come back."""
    moving: tuple[str, ...]
    stays: tuple[Stays, ...]
    given_up: tuple[str, ...]
    """Ids of the VMs that stay where they are until the drain is requested again."""
    estimate_s: float | None
    """Estimated seconds to the end, from the rate so far; None: unknown."""
    revision: int
    created_at: datetime
    finished_at: datetime | None


def estimate_s(moved_mib: int, left_mib: int, passed_s: float) -> float | None:
    """Return how long the rest will take at the rate so far; None if nothing has been moved yet."""
    if not left_mib:
        return 0.0
    return None if not moved_mib else round(passed_s * left_mib / moved_mib, 1)
