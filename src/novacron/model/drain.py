"""Drains: nodes that are emptied, and get their VMs back if that is wanted."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from novacron.model.migration import MigrationPolicy


class DrainPolicy(StrEnum):
    """What to do with a guest that writes faster than the link takes it."""

    THROTTLE = "throttle"
    """Slow it down."""
    POST_COPY = "post-copy"
    """Let it run elsewhere before its memory is there."""
    LEAVE = "leave"
    """Leave it where it is, and say so."""

    @property
    def of_migrations(self) -> MigrationPolicy:
        """Return what its migrations do."""
        return MigrationPolicy.GO_ON if self is DrainPolicy.LEAVE else MigrationPolicy(self.value)


class DrainPhase(StrEnum):
    DRAINING = "draining"
    DRAINED = "drained"
    """Nothing is left on the node."""
    ENDED = "ended"
    """The node was taken into use again before it was empty, or removed."""
    RETURNING = "returning"
    """Its VMs are brought back."""
    RETURNED = "returned"


class Stays(msgspec.Struct, frozen=True):
    """A VM that is not where it should be yet, and why."""

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
    """How many VMs it had to move."""
    moved: tuple[str, ...]
    """VMs that have left, by id; while they return: those that are back are not in it any more."""
    moving: tuple[str, ...]
    stays: tuple[Stays, ...]
    given_up: tuple[str, ...]
    """VMs that are left where they are until someone asks again."""
    estimate_s: float | None
    """How many seconds it takes yet, going by what was moved so far."""
    revision: int
    created_at: datetime
    finished_at: datetime | None


def estimate_s(moved_mib: int, left_mib: int, passed_s: float) -> float | None:
    """Return how long the rest takes, if it goes on as it went so far; None where nothing has been moved yet."""
    if not left_mib:
        return 0.0
    return None if not moved_mib else round(passed_s * left_mib / moved_mib, 1)
