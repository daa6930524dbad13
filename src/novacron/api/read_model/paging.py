"""Lists: in which order, from where, how many, and which fields of each object. The same for every kind."""

from __future__ import annotations

import base64
import bisect
import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, takewhile
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from litestar import Response
from litestar.enums import MediaType
from litestar.params import QueryParameter

from novacron.api.access import authorization
from novacron.api.context import ApiRequest, services
from novacron.api.read_model.watch_cache import Entry, order_of
from novacron.model import limits
from novacron.model.errors import InvalidInput

Object = dict[str, Any]
Keep = Callable[[Object], bool]

SORTS: dict[str, tuple[str, ...]] = {
    "vm": ("name", "created_at", "revision", "node", "project", "spec.image", "spec.vcpus", "spec.memory_mib",
           "status.state"),
    "volume": ("name", "created_at", "revision", "node", "project", "size_mib", "used_bytes"),
    "node": ("name", "created_at", "revision", "spec.site"),
    "migration": ("created_at", "revision", "vm_name", "phase"),
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
    """Which part of a list is wanted, and what of its objects."""

    limit: int
    cursor: str | None
    sort: str | None
    fields: tuple[str, ...] | None


async def paging(
    limit: Annotated[int, QueryParameter(ge=1, le=limits.PAGE_SIZE_MAX, description="objects a page")]
    = limits.PAGE_SIZE_DEFAULT,
    cursor: Annotated[str | None, QueryParameter(description="`next` of the page before")] = None,
    sort: Annotated[str | None, QueryParameter(description="a field, like created_at; -created_at: falling")] = None,
    fields: Annotated[str | None, QueryParameter(description="only these, like id,name,status.state")] = None,
) -> Paging:  # fmt: skip
    """Take what every list takes. Raises InvalidInput."""
    if fields is not None and not FIELDS.match(fields):
        raise InvalidInput(f"{fields!r} are no fields", field="fields", hint="write them like id,name,status.state")
    return Paging(limit, cursor, sort, None if fields is None else tuple(fields.split(",")))


def answer(
    request: ApiRequest, kind: str, wanted: Paging, keep: Keep | None = None, *, newest_first: bool = False,
    mine: bool = False, prefix: str | None = None,
) -> Response[Any]:  # fmt: skip
    """Answer with a page of the objects of a kind that the caller may see, and that are to be kept; with ``mine``,
    ``keep`` alone says what the caller may see. ``prefix``: how the places of all that are kept begin (``order_of``).
    """
    cache = services(request).cache
    sees = None if mine else authorization.seer(request, kind)

    def good(entry: Entry) -> bool:
        return (sees is None or sees(entry.body)) and (keep is None or keep(entry.body))

    if wanted.sort is None:
        keys, entries = cache.ordered(kind)
        after = _decoded(wanted.cursor, "")
        order = _from(keys, after, newest_first=newest_first)
        if prefix is not None:  # what is before and behind it need not be looked at
            start = prefix if after is None or after < prefix else after
            order = takewhile(lambda key: key.startswith(prefix), _from(keys, start, newest_first=False))
        found = (entries[key] for key in order)
        chosen = list(islice(filter(good, found), wanted.limit + 1))
        last = order_of(kind, chosen[wanted.limit - 1].body) if len(chosen) > wanted.limit else None
    else:
        chosen, last = _sorted(kind, wanted, filter(good, cache.all(kind).values()))
    items = [_shown(entry, wanted.fields) for entry in chosen[: wanted.limit]]
    cursor = None if last is None else base64.urlsafe_b64encode(f"{wanted.sort or ''}\n{last}".encode()).decode()
    body = msgspec.json.encode({"items": items, "next": cursor, "revision": cache.revision})
    return Response(body, media_type=MediaType.JSON, headers={"Cache-Control": "no-cache"})


def _from(keys: list[str], after: str | None, *, newest_first: bool) -> Iterator[str]:
    """Yield keys in order, from behind ``after``."""
    if newest_first:
        end = len(keys) if after is None else bisect.bisect_left(keys, after)
        return (keys[at] for at in range(end - 1, -1, -1))
    start = 0 if after is None else bisect.bisect_right(keys, after)
    return (keys[at] for at in range(start, len(keys)))


def _sorted(kind: str, wanted: Paging, entries: Iterable[Entry]) -> tuple[list[Entry], str | None]:
    """Return a page by another order, one more than it holds, and the key of its last."""
    assert wanted.sort is not None
    field, falls = wanted.sort.removeprefix("-"), wanted.sort.startswith("-")
    allowed = SORTS.get(kind, SORTS_OF_ALL)
    if field not in allowed:
        raise InvalidInput(f"{kind} lists are not sorted by {field!r}", field="sort", hint=f"by {', '.join(allowed)}")
    after = _decoded(wanted.cursor, wanted.sort)

    def key(entry: Entry) -> str:
        return f"{_text(_at(entry.body, field))} {order_of(kind, entry.body)}"

    keyed = ((key(entry), entry) for entry in entries)
    if after is not None:
        keyed = ((k, entry) for k, entry in keyed if (k < after if falls else k > after))
    pick = heapq.nlargest if falls else heapq.nsmallest
    found = pick(wanted.limit + 1, keyed, key=lambda pair: pair[0])
    last = found[wanted.limit - 1][0] if len(found) > wanted.limit else None
    return [entry for _, entry in found], last


def _text(value: Any) -> str:
    """Return a value so that texts are ordered as values are."""
    return f"{value:020d}" if isinstance(value, int) else "" if value is None else str(value)


def _at(body: Any, path: str) -> Any:
    for name in path.split("."):
        body = body.get(name) if isinstance(body, dict) else None
    return body


def _shown(entry: Entry, fields: tuple[str, ...] | None) -> Any:
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
        said, _, key = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode().partition("\n")
    except ValueError:
        said, key = "\0", ""
    if said != sort:
        raise InvalidInput(
            "the cursor is not one of ours, or of another order", field="cursor", hint="send `next` as it was given"
        )
    return key
