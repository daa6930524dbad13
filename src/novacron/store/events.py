"""What happened, written in the transaction that made it happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from novacron.store import deferred_writes
from novacron.store.database import Connection

SYSTEM, REBALANCING, DRAIN_OF = "system", "rebalancing", "drain of "
"""Who does something without being asked each time. Of one object they make at most five events a minute, and those
count the others (trigger ``series`` of ``events``): one broken thing makes few, however and however often it breaks."""
MESSAGE_LENGTH_MAX = 2000


class NewEvent(NamedTuple):
    """One line of an object's log, for example ``("vm", "vm-x", "web", "Created", ...)``. ``project`` None: that of the
    object, as the database knows it."""

    kind: str
    object: str
    name: str
    reason: str
    message: str
    actor: str = SYSTEM
    project: str | None = None


EVENTS = deferred_writes.Table(
    "events",
    {
        "kind": "text", "object": "text", "name": "text", "reason": "text", "message": "text", "actor": "text",
        "project": "text",
    },
    turns="object",
)  # fmt: skip


def rows_of(happened: Sequence[NewEvent]) -> list[Sequence[str | None]]:
    """Return events as rows of their table."""
    return [(*event[:4], event.message[:MESSAGE_LENGTH_MAX], *event[5:]) for event in happened]


async def record_all(connection: Connection, happened: Sequence[NewEvent]) -> None:
    """Add lines to the logs of several objects, in their order."""
    await deferred_writes.add(connection, EVENTS, rows_of(happened))


async def record(connection: Connection, event: NewEvent) -> None:
    """Add one line to the log of an object."""
    await record_all(connection, [event])
