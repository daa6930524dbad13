"""Indexes of the objects of one kind: their order in lists, and for the usual filters which of them have a value.

Each change of an object updates them in place, so a filtered list looks only at objects that pass its most selective
filter. A list of 20 of 100,000 VMs takes well under 5 ms, whatever it is filtered by.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import msgspec

Object = dict[str, Any]
Condition = tuple[tuple[str, object], ...]
"""``(field, value)`` pairs, at least one of which an object must have. Fields of structs within are ``spec.image``."""

INDEXED: dict[str, tuple[str, ...]] = {
    "vm": ("project", "node", "status.state", "spec.image", "tags"),
    "volume": ("project", "vm", "vm_name", "tags"),
    "migration": ("project", "vm", "vm_name", "phase"),
    "event": ("project", "object", "name"),
    "snapshot": ("project", "vm"),
    "export": ("project",),
    "backup-repository": ("project",),
    "backup-policy": ("project",),
    "backup": ("project", "vm", "vm_name", "repository", "repository_name", "policy"),
    "plan": ("project",),
    "replica": ("project", "vm", "vm_name", "node", "site"),
    "import": ("project", "phase"),
    "drain": ("node",),
    "drill": ("drill",),
    "network": ("project",),
    "security-group": ("project",),
    "flavor": ("project",),
    "template": ("project",),
    "floating-address": ("project",),
    "forward": ("project", "vm", "vm_name"),
}
"""Of each kind: the fields that lists are filtered by."""
NOTHING: Condition = ()
"""No object meets it."""
LOOKED_UP_MAX = 2000
PAST_ALL_NAMES = "\U0010ffff"


class Entry(msgspec.Struct, frozen=True):
    """One object: its values, and its JSON as it goes over the network."""

    revision: int
    body: Object
    json: bytes

    @property
    def shown(self) -> Object:
        """Return the values that users see."""
        values: Object = msgspec.json.decode(self.json)
        return values


def place_of(kind: str, body: Object) -> str:
    """Return the place of an object in lists of its kind, which are in this order: by time, by name, or by key."""
    match kind:
        case "event":
            return f"{body['id']:020d}"
        case "migration" | "import" | "export" | "backup" | "replica" | "drain" | "snapshot":
            return f"{body['created_at']} {body['id']}"
        case "drill":
            return f"{body['ended_at']} {body['id']}"
        case "unreconciled-vm":
            return f"{body['vm_name']} {body['id']}"
        case "floating-address":
            return str(body["address"])
        case _:
            return " ".join(str(body[field]) for field in ("name", "id") if field in body)


def value_at(body: object, path: str) -> object:
    """Return the value of a field, such as ``spec.image``; None where there is none."""
    for name in path.split("."):
        body = body.get(name) if isinstance(body, dict) else None
    return body


def values_at(body: object, path: str) -> Sequence[object]:
    """Return the values of a field by which it is looked for: those of a list are several."""
    value = value_at(body, path)
    return value if isinstance(value, list) else (value,)


def matches(body: Object, condition: Condition) -> bool:
    """Say whether an object meets a condition."""
    return any(value in values_at(body, field) for field, value in condition)


class ListPart(msgspec.Struct, frozen=True):
    """Which part of an order is asked for."""

    after: str | None = None
    """Only places behind this one."""
    prefix: str = ""
    """Only places that begin so."""
    newest_first: bool = False
    """Backwards; ``after`` then is the place before which to begin."""


class _Places:
    """Places in order."""

    __slots__ = ("_members", "_ordered")

    def __init__(self) -> None:
        self._ordered: list[str] = []
        self._members: set[str] = set()

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, place: str) -> None:
        if place not in self._members:
            self._members.add(place)
            bisect.insort(self._ordered, place)

    def remove(self, place: str) -> None:
        if place in self._members:
            self._members.remove(place)
            del self._ordered[bisect.bisect_left(self._ordered, place)]

    @property
    def members(self) -> set[str]:
        return self._members

    def part(self, part: ListPart) -> Iterator[str]:
        """Yield the places of a part."""
        ordered = self._ordered
        start = bisect.bisect_left(ordered, part.prefix) if part.prefix else 0
        end = bisect.bisect_left(ordered, part.prefix + PAST_ALL_NAMES) if part.prefix else len(ordered)
        if part.after is not None and part.newest_first:
            end = min(end, bisect.bisect_left(ordered, part.after))
        elif part.after is not None:
            start = max(start, bisect.bisect_right(ordered, part.after))
        numbers = range(end - 1, start - 1, -1) if part.newest_first else range(start, end)
        return map(ordered.__getitem__, numbers)


_EMPTY = _Places()


class Index:
    """The objects of one kind, by place."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._fields = INDEXED.get(kind, ())
        self._entries: dict[str, Entry] = {}
        self._all = _Places()
        self._with: dict[tuple[str, object], _Places] = {}

    def change(self, old: Entry | None, new: Entry | None) -> None:
        """Replace an object's former entry by its new one; None: it was not there, or is gone."""
        before = None if old is None else place_of(self._kind, old.body)
        now = None if new is None else place_of(self._kind, new.body)
        if before is not None and before != now:
            self._all.remove(before)
            self._entries.pop(before, None)
        if now is not None:
            assert new is not None
            self._all.add(now)
            self._entries[now] = new
        for field in self._fields:
            had = () if old is None else values_at(old.body, field)
            has = () if new is None else values_at(new.body, field)
            if (before, had) != (now, has):
                self._move(field, (before, had), (now, has))

    def _move(
        self, field: str, was: tuple[str | None, Sequence[object]], now: tuple[str | None, Sequence[object]]
    ) -> None:
        """Move an object from its former place among those with its former values of a field."""
        (old_place, old_values), (new_place, new_values) = was, now
        for value in old_values if old_place is not None else ():
            self._remove((field, value), str(old_place))
        for value in new_values if new_place is not None else ():
            self._with.setdefault((field, value), _Places()).add(str(new_place))

    def _remove(self, value: tuple[str, object], place: str) -> None:
        places = self._with.get(value)
        if places is not None:
            places.remove(place)
            if not places:
                del self._with[value]

    def select(self, conditions: Sequence[Condition], part: ListPart) -> Iterator[Entry]:
        """Yield, in order, the objects of a part of the order that meet all conditions."""
        unions, others = list[list[_Places]](), list[Condition]()
        for condition in conditions:
            if all(field in self._fields for field, _ in condition):
                unions.append([self._with.get(pair, _EMPTY) for pair in condition])
            else:
                others.append(condition)
        unions.sort(key=lambda union: sum(map(len, union)))
        places = _intersection(unions, part) if len(unions) > 1 else _merged((unions or [[self._all]])[0], part)
        entries: Iterator[Entry] = map(self._entries.__getitem__, places)
        for condition in others:
            entries = _meeting(entries, condition)
        return entries


def _merged(union: Sequence[_Places], part: ListPart) -> Iterator[str]:
    if len(union) == 1:
        return union[0].part(part)
    merged = heapq.merge(*(places.part(part) for places in union), reverse=part.newest_first)
    return map(itemgetter(0), groupby(merged))  # an object may meet several alternatives


def _intersection(unions: Sequence[Sequence[_Places]], part: ListPart) -> Iterator[str]:
    """Yield the places of a part that all unions have, of which the first has the fewest.

    The first places are looked up one by one, because a page mostly needs no more. If few of them are in all unions,
    the rest is intersected at once.
    """
    tests = [_member_of(union) for union in unions[1:]]
    last = None
    for last in islice(_merged(unions[0], part), LOOKED_UP_MAX):
        if all(test(last) for test in tests):
            yield last
    if last is None:
        return
    both = set.intersection(*(_members(union) for union in unions))
    rest = (place for place in both if place.startswith(part.prefix))
    if part.newest_first:
        yield from sorted((place for place in rest if place < last), reverse=True)
    else:
        yield from sorted(place for place in rest if place > last)


def _members(union: Sequence[_Places]) -> set[str]:
    return union[0].members if len(union) == 1 else set[str]().union(*(places.members for places in union))


def _member_of(union: Sequence[_Places]) -> Callable[[str], bool]:
    if len(union) == 1:
        return union[0].members.__contains__
    tests = [places.members.__contains__ for places in union]
    return lambda place: any(test(place) for test in tests)


def _meeting(entries: Iterable[Entry], condition: Condition) -> Iterator[Entry]:
    return (entry for entry in entries if matches(entry.body, condition))
