"""Messages of the two sides of a migration."""

from __future__ import annotations

from novacron.model.migration import Progress, Side
from novacron.wire.base import Message


class TargetReady(Message, frozen=True):
    """The target of a migration waits for the stream at ``endpoint`` (``host:port``)."""

    migration: str
    endpoint: str


class Progressed(Message, frozen=True):
    """What the source of a migration measures."""

    migration: str
    progress: Progress


class Stopped(Message, frozen=True):
    """The guest stands still at the source: downtime begins."""

    migration: str


class Resumed(Message, frozen=True):
    """The guest executes at the target: downtime ends."""

    migration: str


class Voted(Message, frozen=True):
    """One side's promise at ``epoch``, durable before it was sent."""

    migration: str
    side: Side
    epoch: int


class MigrationFailed(Message, frozen=True):
    """One side can't go on."""

    migration: str
    reason: str
