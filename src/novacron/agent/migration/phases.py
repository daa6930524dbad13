"""The phases of a migration at its source, and which may follow which. Pure: no I/O."""

from __future__ import annotations

from enum import StrEnum


class SourcePhase(StrEnum):
    """Where an outgoing migration stands."""

    OPENING = "opening"
    """Its first session is being opened."""
    COPYING = "copying"
    """What a VM whose guest stands still consists of is sent, but for memory (cold and warm migrations)."""
    MIRRORING = "mirroring"
    """The disks are mirrored while the guest goes on, until only what it writes just now is left."""
    PRE_COPY = "pre-copy"
    """The memory is sent while the guest goes on."""
    SWITCHOVER = "switchover"
    """QEMU was asked to stop the guest and to send the rest."""
    PROMISED = "promised"
    """This node has promised, durably, not to run the VM at this epoch."""
    POST_COPY = "post-copy"
    """The guest has left, and memory that it still needs follows it."""
    DONE = "done"
    """The target needs nothing more of this node. What fails after the promise is the target's to report."""
    FAILED = "failed"
    """It ended without a promise: the guest goes on here."""


TRANSITIONS: dict[SourcePhase, frozenset[SourcePhase]] = {
    SourcePhase.OPENING: frozenset(
        {SourcePhase.COPYING, SourcePhase.MIRRORING, SourcePhase.PRE_COPY, SourcePhase.FAILED}
    ),
    SourcePhase.COPYING: frozenset({SourcePhase.PRE_COPY, SourcePhase.PROMISED, SourcePhase.FAILED}),
    SourcePhase.MIRRORING: frozenset({SourcePhase.PRE_COPY, SourcePhase.FAILED}),
    # QEMU may finish before it is asked to switch over, in a short migration.
    SourcePhase.PRE_COPY: frozenset({SourcePhase.SWITCHOVER, SourcePhase.PROMISED, SourcePhase.FAILED}),
    SourcePhase.SWITCHOVER: frozenset({SourcePhase.PROMISED, SourcePhase.FAILED}),
    SourcePhase.PROMISED: frozenset({SourcePhase.POST_COPY, SourcePhase.DONE}),
    SourcePhase.POST_COPY: frozenset({SourcePhase.DONE}),
    SourcePhase.DONE: frozenset(),
    SourcePhase.FAILED: frozenset(),
}
"""The phases that may follow each phase. No phase after a promise leads to ``failed``: a promise is never taken back
by what happens to the migration, only by a later epoch."""

AFTER_PROMISE = frozenset({SourcePhase.PROMISED, SourcePhase.POST_COPY, SourcePhase.DONE})


class WrongTransition(AssertionError):
    """A migration was to enter a phase that can't follow the one it is in: a defect of the agent."""


def check_transition(before: SourcePhase, after: SourcePhase) -> None:
    """Raise WrongTransition unless ``after`` may follow ``before``."""
    if after not in TRANSITIONS[before]:
        raise WrongTransition(f"a migration can't change from {before} to {after}")
