"""The watch cache: every hot object with its JSON already encoded, fed by the change feed.

A read costs no query and is never older than the feed's lag. ``revision`` tells up to which transaction the cache is
complete, so a client can wait for its own write.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec

from novacron.model import limits
from novacron.model.errors import Gone, Unavailable
from novacron.store.feed import HISTORY_MAX, Batch, Change, Snapshot

PUBLIC = (
    "vm", "node", "migration", "event", "link", "import", "snapshot", "volume", "export", "drain", "network",
    "security-group", "floating-address", "forward",
)  # fmt: skip
NAMED = ("vm", "volume")
SUBSCRIBER_QUEUE_MAX = 10_000


class Entry(msgspec.Struct, frozen=True):
    """One object: its values, and its JSON as it goes over the network."""

    revision: int
    body: dict[str, Any]
    json: bytes


class Delivery(msgspec.Struct, frozen=True):
    """One change as a subscriber gets it. ``last`` marks the last one of its revision."""

    revision: int
    kind: str
    key: str
    json: bytes | None
    last: bool


def encoded(kind: str, body: dict[str, Any]) -> bytes:
    """Return an object's JSON as users see it."""
    if kind == "migration":
        body = {key: value for key, value in body.items() if key != "moved_at"}
    return msgspec.json.encode(body)


def _deliveries(changes: list[Change]) -> Iterator[Delivery]:
    """Yield each change as followers get it."""
    last_of = {c.revision: position for position, c in enumerate(changes) if c.kind in PUBLIC}
    for position, change in enumerate(changes):
        json = None if change.body is None else encoded(change.kind, change.body)
        last = last_of.get(change.revision) == position
        yield Delivery(change.revision, change.kind, change.key, json, last)


class Cache:
    """All objects of one replica."""

    def __init__(self) -> None:
        self.revision = 0
        self.ready = False
        self._kinds: dict[str, dict[str, Entry]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._tokens: dict[str, str] = {}
        self._advanced = asyncio.Condition()
        self._history: deque[Delivery] = deque(maxlen=HISTORY_MAX)
        self._history_from = 0
        self._subscribers: set[asyncio.Queue[Delivery | None]] = set()
        self._clear()

    def _clear(self) -> None:
        self._kinds = {kind: {} for kind in (*PUBLIC, "token")}
        self._names.clear()
        self._tokens.clear()

    # what readers use

    def get(self, kind: str, ref: str) -> Entry | None:
        """Return an object by id, or by name if its kind has them."""
        found = self._kinds[kind].get(ref)
        if found is None and (kind, ref) in self._names:
            found = self._kinds[kind].get(self._names[kind, ref])
        return found

    def all(self, kind: str) -> dict[str, Entry]:
        """Return every object of a kind by its key, oldest first."""
        return self._kinds[kind]

    def token(self, digest: str) -> str | None:
        """Return the id of the token with this hash, if it is valid."""
        return self._tokens.get(digest)

    async def reached(self, revision: int, timeout_s: float) -> bool:
        """Wait until the cache is complete up to ``revision``; say whether it is."""
        if self.revision >= revision:
            return True
        async with self._advanced:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._advanced.wait_for(lambda: self.revision >= revision), timeout_s)
        return self.revision >= revision

    async def changed(self, kind: str, ref: str, revision: int, timeout_s: float) -> Entry | None:
        """Wait until the object is newer than ``revision`` or gone, or the time is over; return it as it then is."""

        def newer() -> bool:
            entry = self.get(kind, ref)
            return entry is None or entry.revision > revision

        async with self._advanced:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._advanced.wait_for(newer), timeout_s)
        return self.get(kind, ref)

    async def follow(self, after: int | None) -> AsyncIterator[Delivery]:
        """Yield every change after revision ``after`` (or from now on). Raises Gone, or Unavailable on overrun."""
        queue: asyncio.Queue[Delivery | None] = asyncio.Queue(SUBSCRIBER_QUEUE_MAX)
        if after is not None:
            if after < self._history_from:
                raise Gone(
                    f"changes after revision {after} are no longer kept here",
                    field="Last-Event-ID",
                    hint=f"list the objects again and resume from revision {self.revision}",
                )
            backlog = [delivery for delivery in self._history if delivery.revision > after]
        else:
            backlog = []
        self._subscribers.add(queue)
        try:
            for delivery in backlog:
                yield delivery
            while True:
                next_delivery = await queue.get()
                if next_delivery is None:
                    raise Unavailable("the feed was interrupted", hint="connect again with Last-Event-ID")
                yield next_delivery
        finally:
            self._subscribers.discard(queue)

    # what the feed uses

    async def reset(self, snapshot: Snapshot) -> None:
        """Begin anew with everything there is. Followers are cut off and resume after what they had."""
        self._clear()
        self._history.clear()
        self._history_from = snapshot.history_after
        for queue in self._subscribers:
            self._cut(queue)
        for delivery in _deliveries(snapshot.history):
            self._remember(delivery)
        for change in snapshot.batch.changes:
            self._apply(change)
        await self._advance(snapshot.batch.revision)

    async def apply(self, batch: Batch) -> None:
        """Take whole transactions in order."""
        for change, delivery in zip(batch.changes, _deliveries(batch.changes), strict=True):
            # A deletion of what is not here was in the snapshot already, and so in the history.
            if self._apply(change) and change.kind in PUBLIC:
                self._remember(delivery)
                for queue in list(self._subscribers):
                    try:
                        queue.put_nowait(delivery)
                    except asyncio.QueueFull:
                        self._cut(queue)
        await self._advance(batch.revision)

    async def _advance(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        self.ready = True
        async with self._advanced:
            self._advanced.notify_all()

    def lost(self) -> None:
        """The feed is away: reads would grow old."""
        self.ready = False

    def _apply(self, change: Change) -> bool:
        objects = self._kinds[change.kind]
        old = objects.get(change.key)
        if change.body is None:
            if old is not None:
                del objects[change.key]
                if change.kind in NAMED:
                    self._names.pop((change.kind, old.body["name"]), None)
                if change.kind == "token":
                    self._tokens.pop(old.body["hash"], None)
            return old is not None
        if old is not None and old.revision > change.revision:
            return False
        body = change.body
        if change.kind == "token":
            digest = body["hash"]
            if body["revoked"]:
                self._tokens.pop(digest, None)
            else:
                self._tokens[digest] = body["id"]
        if change.kind in NAMED:
            if old is not None and old.body["name"] != body["name"]:
                self._names.pop((change.kind, old.body["name"]), None)
            self._names[change.kind, body["name"]] = body["id"]
        objects[change.key] = Entry(change.revision, body, encoded(change.kind, body))
        if change.kind == "event" and len(objects) > limits.EVENTS_KEPT_IN_MEMORY:
            del objects[next(iter(objects))]
        return True

    def _remember(self, delivery: Delivery) -> None:
        if delivery.kind not in PUBLIC:
            return
        if len(self._history) == HISTORY_MAX:
            self._history_from = self._history[0].revision
        self._history.append(delivery)

    def _cut(self, queue: asyncio.Queue[Delivery | None]) -> None:
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)
