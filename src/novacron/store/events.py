"""What happened, written in the transaction that made it happen."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from novacron.store import deferred_writes
from novacron.store.database import Connection

SYSTEM, REBALANCING, DRAIN_OF = "system", "rebalancing", "drain of "
"""Who does something without being asked each time. Of one object they make at most five events a minute, and those
count the others (trigger ``series`` of ``events``): one broken thing makes few, however and however often it breaks."""
MESSAGE_LENGTH_MAX = 2000


OWN_MAX, OWN_WINDOW_S, CAUSES_MAX = 5, 60.0, 10_000


class CommonCauses:
    """Which of the events that many objects make for one cause, a broken network of a node for example, are their own:
    five a minute. The others are one of what they have in common, which counts them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: OrderedDict[tuple[str, ...], deque[float]] = OrderedDict()

    def is_own(self, *cause: str) -> bool:
        """Say whether the next event of this cause is the object's own."""
        now = self._clock()
        times = self._told.pop(cause, None) or deque(maxlen=OWN_MAX)
        self._told[cause] = times
        while len(self._told) > CAUSES_MAX:
            self._told.popitem(last=False)
        if len(times) == OWN_MAX and now - times[0] < OWN_WINDOW_S:
            return False
        times.append(now)
        return True


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
