"""Drains: moving all VMs away from a node, and back again if requested."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model.migration import MigrationPolicy
from novacron.model.waiting import WaitCode

TIME_LIMIT_S_MIN, TIME_LIMIT_S_DEFAULT, TIME_LIMIT_S_MAX = 10, 4 * 3600, 30 * 86_400
RETRY_AFTER_S, RETRY_AFTER_S_MAX = 2.0, 60.0
"""A VM that can't be moved is tried again after this, after twice as long the next time, and so on."""

STAYS_NAMED_MAX = 5

TimeLimit = Annotated[int, Meta(ge=TIME_LIMIT_S_MIN, le=TIME_LIMIT_S_MAX)]


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
    """How far a drain is."""

    DRAINING = "draining"
    BLOCKED = "blocked"
    """Nothing moves, and no VM that is left can: ``stays`` says why. It goes on, ever more slowly."""
    DRAINED = "drained"
    """The node is empty."""
    ENDED = "ended"
    """The node was uncordoned before it was empty, or removed."""
    RETURNING = "returning"
    """The node's VMs are moving back."""
    RETURNED = "returned"
    FAILED = "failed"
    """Its time limit has passed: ``stays`` says why each VM that is left did not move. The node stays cordoned."""


LEAVING = frozenset({DrainPhase.DRAINING, DrainPhase.BLOCKED})
"""The phases in which VMs are to leave the node."""


class Stays(msgspec.Struct, frozen=True):
    """A VM that could not be moved yet, and why."""

    vm: str
    vm_name: str
    why: str
    reason_code: str = ""
    """``why``, for programs: one of ``WaitCode``."""
    tries: int = 0
    """How often it was tried in vain, without a pause of other reasons."""
    next_try_at: datetime | None = None
    """It is not tried before; None: that does not depend on time alone."""


class Why(msgspec.Struct, frozen=True):
    """Why a VM does not move."""

    code: WaitCode
    words: str


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
    time_limit_s: int = TIME_LIMIT_S_DEFAULT
    ends_by: datetime | None = None
    """When it fails unless it has ended; None: it began before there were time limits."""
    reason: str = ""
    """Why it is blocked or has failed."""
    reason_code: str = ""
    """``reason``, for programs: one of ``WaitCode``."""

    @property
    def leaves(self) -> bool:
        """Say whether VMs are to leave the node; else they are to come back."""
        return self.phase in LEAVING

    def is_late(self, now: datetime) -> bool:
        """Say whether its time limit has passed."""
        return self.ends_by is not None and now >= self.ends_by


def tried_in_vain(before: Stays | None, vm: str, vm_name: str, why: Why, now: datetime) -> Stays:
    """Return what is known of a VM whose move was just refused: when it is tried next depends on how often that was."""
    tries = 1 if before is None else before.tries + 1
    wait_s = min(RETRY_AFTER_S * 2.0 ** min(tries - 1, 16), RETRY_AFTER_S_MAX)
    return Stays(vm, vm_name, why.words, why.code, tries, now + timedelta(seconds=wait_s))


def is_resting(before: Stays | None, now: datetime) -> bool:
    """Say whether it is too early to try a VM again."""
    return before is not None and before.next_try_at is not None and now < before.next_try_at


def is_blocked(moving: int, waiting: int, stays: int) -> bool:
    """Say whether nothing moves, and there is a reason for each VM that is left."""
    return waiting > 0 and moving == 0 and stays >= waiting


def unfinished(node: str, stays: tuple[Stays, ...], left: int) -> str:
    """Say how many VMs are left on a node, and why the first of them stay."""
    whys = "; ".join(f"{stay.vm_name} stays: {stay.why}" for stay in stays[:STAYS_NAMED_MAX])
    return f"{left} VMs are still on {node}" + (f": {whys}" if whys else "")


def estimate_s(moved_mib: int, left_mib: int, passed_s: float) -> float | None:
    """Return how long the rest will take at the rate so far; None if nothing has been moved yet."""
    if not left_mib:
        return 0.0
    return None if not moved_mib else round(passed_s * left_mib / moved_mib, 1)
