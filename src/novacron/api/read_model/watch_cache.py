"""The watch cache: every hot object with its JSON already encoded, fed by the change feed.

A read costs no query and is never older than the feed's lag, which ``lag_s`` tells. ``revision`` tells up to which
transaction the cache is complete, so a client can wait for its own write.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import msgspec

from novacron.api.read_model.indexes import Entry, Index
from novacron.api.read_model.principals import KINDS as CALLERS
from novacron.api.read_model.principals import Callers
from novacron.model import limits
from novacron.model.errors import Gone, Unavailable
from novacron.store.feed import HISTORY_MAX, Batch, Change, FeedSnapshot
from novacron.supervise import Rarely
from novacron.telemetry import logs
from novacron.telemetry.values import counter

log = logs.get(__name__)

PUBLIC = (
    "vm", "node", "migration", "event", "link", "import", "snapshot", "volume", "export", "drain", "network",
    "security-group", "floating-address", "forward", "project", "unreconciled-vm",
    "backup-repository", "backup-policy", "backup", "replica", "plan", "flavor", "template", "drill",
)  # fmt: skip
PRIVATE = (*CALLERS, "image-owner", "image-metadata")
NAMED = ("vm", "volume", "backup-repository", "backup-policy", "plan")
"""Kinds whose names are unique in their project only."""
SUBSCRIBER_QUEUE_MAX = 10_000
RECENT_MAX = 256
"""How many latest changes of each kind are kept to check cached lists."""

T = TypeVar("T")


HIDDEN = {"migration": ("moved_at",), "vm": ("disk_mib", "grouped"), "network": ("problems",)}
"""Columns that users do not see."""


class Delivery(msgspec.Struct, frozen=True):
    """One change as a subscriber gets it. ``last`` marks the last one of its revision."""

    revision: int
    kind: str
    key: str
    json: bytes | None
    last: bool
    project: str | None = None
    """Whose it is; None: the fleet's."""


def encoded(kind: str, body: Mapping[str, object]) -> bytes:
    """Return an object's JSON as users see it."""
    hidden = HIDDEN.get(kind)
    if hidden is not None:
        body = {key: value for key, value in body.items() if key not in hidden}
    return msgspec.json.encode(body)


def _last_public(changes: list[Change]) -> dict[int, int]:
    """Return, for each transaction, the position of its last change that followers get."""
    return {change.revision: position for position, change in enumerate(changes) if change.kind in PUBLIC}


def _deliveries(changes: list[Change]) -> Iterator[Delivery]:
    """Yield each change as followers get it."""
    last_of = _last_public(changes)
    for position, change in enumerate(changes):
        json = None if change.body is None else encoded(change.kind, change.body)
        yield _delivery(change, json, last=last_of.get(change.revision) == position)


def _delivery(change: Change, json: bytes | None, *, last: bool) -> Delivery:
    return Delivery(change.revision, change.kind, change.key, json, last, change.project)


class Cache:
    """All objects of one replica."""

    def __init__(self, away_s_max: float = 0.0, lag_s: Callable[[], float] = lambda: 0.0) -> None:
        """``away_s_max``: for how long reads are answered without the feed; ``lag_s``: for how many seconds this has
        not had all that there was."""
        for reason in ("unknown", "defect"):  # a series exists before its first change: its first increase is seen
            counter("novacron_feed_skipped_changes_total").add(reason, count=0)
        self.revision = 0
        self.ready = False
        """The feed is followed."""
        self.lag_s = lag_s
        self._away_s_max = away_s_max
        self._away_since: float | None = None
        self._kinds: dict[str, dict[str, Entry]] = {}
        self.callers = Callers()
        self._names: dict[tuple[str, str], dict[str, str]] = {}
        self._versions: dict[str, int] = {}
        self._derived: dict[str, tuple[int, Any]] = {}
        self._indexes: dict[str, Index] = {}
        self._recent: dict[str, deque[tuple[Entry | None, Entry | None]]] = {}
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}
        """Waiting requests, and their conditions."""
        self._history: deque[Delivery] = deque(maxlen=HISTORY_MAX)
        self._history_from = 0
        self._subscribers: set[asyncio.Queue[Delivery | None]] = set()
        self._log_now = Rarely()
        self._clear()

    def _clear(self) -> None:
        self._kinds = {kind: {} for kind in (*PUBLIC, *PRIVATE)}
        for kind in self._kinds:
            self._versions[kind] = self.version(kind) + 1
        self._indexes = {kind: Index(kind) for kind in (*PUBLIC, "user", "grant")}
        self._recent = {kind: deque(maxlen=RECENT_MAX) for kind in self._kinds}
        self._names.clear()
        self.callers.clear()

    # what readers use

    def get(self, kind: str, ref: str) -> Entry | None:
        """Return an object by its key: its id, or its name where names are unique everywhere."""
        return self._kinds[kind].get(ref)

    def index(self, kind: str) -> Index:
        """Return the objects of a kind as lists need them."""
        return self._indexes[kind]

    def changes_since(self, kind: str, version: int) -> list[tuple[Entry | None, Entry | None]] | None:
        """Return what each object that changed since a version was and is (None: it was not there, or is gone); None
        when that is no longer known."""
        count = self.version(kind) - version
        changes = self._recent[kind]
        return None if count > len(changes) else list(islice(changes, len(changes) - count, None))

    def derived(self, kind: str, make: Callable[[], T]) -> T:
        """Return what ``make`` derives from the objects of a kind, computed once until one of them changes.

        Raises KeyError for a kind that is not here, of which no change would ever be seen.
        """
        if kind not in self._kinds:
            raise KeyError(kind)
        name, version = f"{kind} {make.__qualname__}", self.version(kind)
        stored = self._derived.get(name)
        if stored is None or stored[0] != version:
            stored = self._derived[name] = version, make()
        value: T = stored[1]
        return value

    def version(self, kind: str) -> int:
        """Return a number that grows whenever an object of a kind changes."""
        return self._versions.get(kind, 0)

    def named(self, kind: str, name: str) -> list[Entry]:
        """Return the objects of this name, of whichever project."""
        return [self._kinds[kind][id] for id in self._names.get((kind, name), {}).values()]

    def kinds(self) -> tuple[str, ...]:
        """Return every kind of object that is here."""
        return tuple(self._kinds)

    def all(self, kind: str) -> dict[str, Entry]:
        """Return every object of a kind by its key, oldest first."""
        return self._kinds[kind]

    async def reached(self, revision: int, timeout_s: float) -> bool:
        """Wait until the cache is complete up to ``revision``; say whether it is."""
        await self._until(lambda: self.revision >= revision, timeout_s)
        return self.revision >= revision

    async def _until(self, true: Callable[[], bool], timeout_s: float) -> None:
        """Wait until a condition on the cache holds, or the time is over.

        All waiters are woken at once; a condition's lock would let them through one by one.
        """
        if true():
            return
        came = asyncio.get_running_loop().create_future()
        self._waiting[came] = true
        try:
            async with asyncio.timeout(timeout_s):
                await came
        except TimeoutError:
            pass
        finally:
            self._waiting.pop(came, None)

    async def changed(self, kind: str, ref: str, revision: int, timeout_s: float) -> Entry | None:
        """Wait until the object is newer than ``revision`` or gone, or the time is over; return it as it then is."""

        def newer() -> bool:
            entry = self.get(kind, ref)
            return entry is None or entry.revision > revision

        await self._until(newer, timeout_s)
        return self.get(kind, ref)

    def followers(self) -> int:
        """Return how many follow the changes."""
        return len(self._subscribers)

    async def follow(self, after: int | None) -> AsyncIterator[Delivery]:
        """Yield every change after revision ``after`` (or from now on). Raises Gone, or Unavailable on overrun."""
        queue: asyncio.Queue[Delivery | None] = asyncio.Queue(SUBSCRIBER_QUEUE_MAX)
        if after is not None:
            if after < self._history_from:
                raise Gone(
                    f"changes after revision {after} are no longer available",
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

    async def reset(self, snapshot: FeedSnapshot) -> None:
        """Start again with a snapshot. Followers are disconnected and resume after the last change that they had."""
        self._clear()
        self._history.clear()
        self._history_from = snapshot.history_after
        for queue in self._subscribers:
            self._cut(queue)
        for delivery in _deliveries(snapshot.history):
            self._remember(delivery)
        for change in snapshot.batch.changes:
            self._take(change)
        await self._advance(snapshot.batch.revision)

    async def apply(self, batch: Batch) -> None:
        """Apply whole transactions in order."""
        last_of = _last_public(batch.changes)
        for position, change in enumerate(batch.changes):
            # A deletion of an unknown object was in the snapshot already, and so in the history.
            if self._take(change) and change.kind in PUBLIC:
                json = None if change.body is None else self._kinds[change.kind][change.key].json
                delivery = _delivery(change, json, last=last_of.get(change.revision) == position)
                self._remember(delivery)
                for queue in list(self._subscribers):
                    try:
                        queue.put_nowait(delivery)
                    except asyncio.QueueFull:
                        counter("novacron_api_followers_cut_total").add()
                        self._cut(queue)
        await self._advance(batch.revision)

    async def _advance(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        self.ready, self._away_since = True, None
        for came in [came for came, true in self._waiting.items() if not came.done() and true()]:
            came.set_result(None)

    def lost(self) -> None:
        """Note that the feed is interrupted: answers become outdated."""
        if self.ready:
            self.ready, self._away_since = False, time.monotonic() - self.lag_s()

    def answers(self) -> bool:
        """Say whether reads are answered: the feed is followed, or was until lately."""
        if self.ready:
            return True
        return self._away_since is not None and time.monotonic() - self._away_since <= self._away_s_max

    def _take(self, change: Change) -> bool:
        """Apply a change; say whether there was anything to change. One that can't be applied concerns its object only,
        which counts as gone: a newer server may write kinds of objects, and bodies, that this one does not know."""
        if change.kind not in self._kinds:
            self._skipped("unknown", change)
            return False
        try:
            return self._apply(change)
        except Exception as error:
            self._skipped("defect", change, error)
            self._apply(msgspec.structs.replace(change, body=None))
            return False

    def _skipped(self, reason: str, change: Change, error: Exception | None = None) -> None:
        counter("novacron_feed_skipped_changes_total").add(reason)
        if self._log_now.due(f"{reason} {change.kind}"):
            log.error("a change was skipped", kind=change.kind, key=change.key, reason=reason, exc_info=error)

    def _apply(self, change: Change) -> bool:
        objects = self._kinds[change.kind]
        old = objects.get(change.key)
        if change.body is None:
            if old is not None:
                del objects[change.key]
                self._placed(change.kind, old, None)
                self._forget_name(change.kind, old)
                if change.kind in CALLERS:
                    self.callers.change(change.kind, change.key, None)
            return old is not None
        if old is not None and old.revision > change.revision:
            return False
        body = change.body
        entry = Entry(change.revision, body, encoded(change.kind, body))
        if change.kind in CALLERS:
            self.callers.change(change.kind, change.key, body)
        if change.kind in NAMED:
            name, project, id = body["name"], body["project"], body["id"]
            if old is not None:
                self._forget_name(change.kind, old)
            self._names.setdefault((change.kind, name), {})[project] = id
        objects[change.key] = entry
        self._placed(change.kind, old, entry)
        if change.kind == "event" and len(objects) > limits.EVENTS_KEPT_IN_MEMORY:
            self._placed("event", objects.pop(next(iter(objects))), None)
        return True

    def _placed(self, kind: str, old: Entry | None, new: Entry | None) -> None:
        """Note that an object has changed: in its kind's index and among the latest changes."""
        self._versions[kind] = self.version(kind) + 1
        self._recent[kind].append((old, new))
        if kind in self._indexes:
            self._indexes[kind].change(old, new)

    def _forget_name(self, kind: str, old: Entry) -> None:
        named = self._names.get((kind, old.body.get("name", "")), {})
        if kind in NAMED and named.get(old.body["project"]) == old.body["id"]:
            del named[old.body["project"]]
            if not named:
                del self._names[kind, old.body["name"]]

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
