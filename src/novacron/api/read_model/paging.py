"""Lists: in which order, from where, how many, and which fields of each object. The same for every kind."""

from __future__ import annotations

import base64
import heapq
import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Generic, TypeVar

import msgspec

from novacron.api.read_model.indexes import Condition, Entry, ListPart, Object, matches, place_of, value_at
from novacron.api.read_model.watch_cache import Cache
from novacron.model.errors import InvalidInput

SORTS: dict[str, tuple[str, ...]] = {
    "vm": ("name", "created_at", "revision", "node", "project", "spec.image", "spec.vcpus", "spec.memory_mib",
           "status.state"),
    "volume": ("name", "created_at", "revision", "node", "project", "size_mib", "used_bytes"),
    "node": ("name", "created_at", "revision", "spec.site", "spec.zone", "status.ready", "status.inventory.cpus",
             "status.inventory.memory_mib"),
    "migration": ("created_at", "revision", "vm_name", "phase", "source", "target"),
    "drain": ("created_at", "revision", "node", "phase", "actor"),
    "import": ("created_at", "revision", "spec.name", "phase", "node"),
    "export": ("created_at", "revision", "vm_name", "phase", "size_bytes", "node"),
    "drill": ("created_at", "revision", "ended_at", "drill", "recorded_by", "machine", "verdict"),
    "backup": ("created_at", "revision", "vm_name", "phase", "repository_name", "node", "project",
               "result.disk_bytes", "result.read_bytes", "result.written_bytes", "verified_at", "finished_at"),
    "backup-policy": ("name", "created_at", "revision", "spec.schedule", "repository_name", "promise_s",
                      "problem_count"),
    "backup-repository": ("name", "created_at", "revision", "project"),
}  # fmt: skip
SORTS_OF_ALL = ("created_at", "revision")
FIELDS = re.compile(r"[a-z_]+(\.[a-z_]+){0,3}(,[a-z_]+(\.[a-z_]+){0,3}){0,49}\Z")

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T]):
    """A page of a list."""

    items: list[T]
    next: str | None
    """``cursor`` of the next page; None: this is the last."""
    revision: int


class Paging(msgspec.Struct, frozen=True):
    """Which part of a list a caller asks for, and which fields of its objects."""

    limit: int
    cursor: str | None
    sort: str | None
    fields: tuple[str, ...] | None
    tags: tuple[str, ...] = ()
    """All of them."""


class Query(msgspec.Struct, frozen=True):
    """Which objects a list holds."""

    kind: str
    conditions: tuple[Condition, ...] = ()
    """All of them are met."""
    prefix: str = ""
    """How the places of all of them begin (``indexes.place_of``)."""
    newest_first: bool = False
    keep: Callable[[Object], bool] | None = None
    """What no condition can say; such a list is always computed anew."""


class ListDependency(msgspec.Struct, frozen=True):
    """Which changes can make a list's answer another one: those of objects that are, or were, in it."""

    query: Query
    last: str | None = None
    """Nothing behind this place was looked at; None: all of it was."""

    def concerns(self, entry: Entry | None) -> bool:
        """Say whether the answer depends on an object as it was or is."""
        if entry is None:
            return False
        place = place_of(self.query.kind, entry.body)
        if not place.startswith(self.query.prefix):
            return False
        if self.last is not None and (place < self.last if self.query.newest_first else place > self.last):
            return False
        return all(matches(entry.body, condition) for condition in self.query.conditions)


class Selection(msgspec.Struct, frozen=True):
    """The objects of a page, the cursor of the next one, and what the answer depends on."""

    entries: list[Entry]
    next: str | None
    dependency: ListDependency


def select(cache: Cache, query: Query, paging: Paging) -> Selection:
    """Return a page of a list. Raises InvalidInput."""
    index = cache.index(query.kind)
    if paging.sort is not None:
        part = ListPart(prefix=query.prefix)
        entries, next_place = _sorted(query.kind, paging, _filtered(index.select(query.conditions, part), query))
        dependency = ListDependency(query)
    else:
        part = ListPart(_decoded(paging.cursor, ""), query.prefix, query.newest_first)
        entries = list(islice(_filtered(index.select(query.conditions, part), query), paging.limit + 1))
        more = len(entries) > paging.limit
        next_place = place_of(query.kind, entries[paging.limit - 1].body) if more else None
        dependency = ListDependency(query, place_of(query.kind, entries[-1].body) if more else None)
    text = None if next_place is None else f"{paging.sort or ''}\n{next_place}"
    cursor = None if text is None else base64.urlsafe_b64encode(text.encode()).decode()
    return Selection(entries[: paging.limit], cursor, dependency)


def _filtered(entries: Iterable[Entry], query: Query) -> Iterable[Entry]:
    keep = query.keep
    return entries if keep is None else (entry for entry in entries if keep(entry.body))


def encode(selection: Selection, fields: tuple[str, ...] | None, revision: int) -> bytes:
    """Return the JSON of a page. Raises InvalidInput."""
    items = [_shown(entry, fields) for entry in selection.entries]
    return msgspec.json.encode({"items": items, "next": selection.next, "revision": revision})


def _sorted(kind: str, paging: Paging, entries: Iterable[Entry]) -> tuple[list[Entry], str | None]:
    """Return a page by another order, one more than it holds, and the key of its last."""
    assert paging.sort is not None
    field, falls = paging.sort.removeprefix("-"), paging.sort.startswith("-")
    allowed = SORTS.get(kind, SORTS_OF_ALL)
    if field not in allowed:
        raise InvalidInput(f"{kind} lists are not sorted by {field!r}", field="sort", hint=f"by {', '.join(allowed)}")
    after = _decoded(paging.cursor, paging.sort)

    def key(entry: Entry) -> str:
        return f"{_text(value_at(entry.body, field))} {place_of(kind, entry.body)}"

    keyed = ((key(entry), entry) for entry in entries)
    if after is not None:
        keyed = ((k, entry) for k, entry in keyed if (k < after if falls else k > after))
    pick = heapq.nlargest if falls else heapq.nsmallest
    chosen = pick(paging.limit + 1, keyed, key=lambda pair: pair[0])
    last = chosen[paging.limit - 1][0] if len(chosen) > paging.limit else None
    return [entry for _, entry in chosen], last


def _text(value: object) -> str:
    """Return a value so that texts are ordered as values are."""
    return f"{value:020d}" if isinstance(value, int) else "" if value is None else str(value)


def _shown(entry: Entry, fields: tuple[str, ...] | None) -> msgspec.Raw | Object:
    if fields is None:
        return msgspec.Raw(entry.json)
    shown: Object = {}
    for path in fields:
        into: Object = shown
        value: Any = entry.shown
        names = path.split(".")
        if names[0] not in value:
            raise InvalidInput(f"there is no field {names[0]!r}", field="fields", hint="the fields are in /schema")
        for name in names[:-1]:
            value = value.get(name) if isinstance(value, dict) else None
            into = into.setdefault(name, {})
        into[names[-1]] = value.get(names[-1]) if isinstance(value, dict) else None
    return shown


def _decoded(cursor: str | None, sort: str) -> str | None:
    if cursor is None:
        return None
    try:
        of_sort, _, key = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode().partition("\n")
    except ValueError:
        of_sort, key = "\0", ""
    if of_sort != sort:
        raise InvalidInput(
            "the cursor is invalid, or belongs to another sort order",
            field="cursor",
            hint="send the `next` of the previous page unchanged",
        )
    return key
