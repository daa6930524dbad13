"""Cached responses: single objects as the watch cache has them, and lists until an object changes that they depend on.
A list that is requested again is compressed once, too, for clients that accept it."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import brotli
import zstandard

from novacron.api.read_model.paging import ListDependency
from novacron.api.read_model.principals import Caller
from novacron.api.read_model.watch_cache import Cache

Header = tuple[bytes, bytes]
Answer = tuple[int, list[Header], bytes, str]
"""Status, headers, body, and the route that would have made it."""

KINDS = {
    "/api/v1/vms": "vm", "/api/v1/nodes": "node", "/api/v1/migrations": "migration", "/api/v1/networks": "network",
    "/api/v1/volumes": "volume", "/api/v1/security-groups": "security-group", "/api/v1/events": "event",
}  # fmt: skip
OWNED = ("vm", "migration", "volume")
"""Kinds whose single objects are answered here, by id."""
ROUTES = {parent: f"{parent}/{{ref:str}}" for parent in KINDS}
LISTS_MAX = 1000
DEPENDENCY = "list-dependency"
"""Key of a request's state, where its route puts the ``ListDependency`` of its answer."""
BODY_BYTES_MAX = 1 << 20
COMPRESS_BYTES_MIN = 1024
WAITS = (b"newer_than", b"min_revision")
ENCODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"zstd": lambda body: zstandard.ZstdCompressor(9).compress(body),
    b"br": lambda body: brotli.compress(body, quality=5),
    b"gzip": lambda body: gzip.compress(body, 6),
}
"""By preference."""
JSON: list[Header] = [
    (b"content-type", b"application/json"), (b"cache-control", b"no-cache"), (b"vary", b"accept-encoding"),
]  # fmt: skip


class _List:
    """A list as it was answered."""

    __slots__ = ("body", "dependency", "etag", "hits", "packed", "version")

    def __init__(self, version: int, body: bytes, etag: bytes, dependency: ListDependency | None) -> None:
        self.version, self.body, self.etag = version, body, etag
        self.dependency = dependency
        """None: any change of an object of its kind may change it."""
        self.packed: dict[bytes, tuple[list[Header], bytes]] = {}
        self.hits = 0

    def is_current(self, cache: Cache, kind: str) -> bool:
        """Say whether the answer is still the same: nothing has changed since that it depends on."""
        version = cache.version(kind)
        if version == self.version:
            return True
        if self.dependency is None:
            return False
        changes = cache.changes_since(kind, self.version)
        if changes is None or any(map(self.dependency.concerns, chain.from_iterable(changes))):
            return False
        self.version = version
        return True


class Capture:
    """Copies a response on its way out, to answer with it again."""

    def __init__(self, state: dict[str, Any], keep: Callable[[bytes, ListDependency | None], None]) -> None:
        """``state``: of the request, where its route leaves the list's scope."""
        self._state, self._keep = state, keep
        self._good = False
        self._parts: list[bytes] = []
        self._size = 0

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._good = message["status"] == 200
        elif self._good and self._size <= BODY_BYTES_MAX:
            self._parts.append(message.get("body", b""))
            self._size += len(self._parts[-1])
            if not message.get("more_body", False) and self._size <= BODY_BYTES_MAX:
                self._keep(b"".join(self._parts), self._state.get(DEPENDENCY))


class ResponseCache:
    """Answers that need no route."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._lists: dict[tuple[str, bytes, str], _List] = {}

    def answer(self, path: str, query: bytes, headers: dict[bytes, bytes], caller: Caller) -> Answer | None:
        """Return the answer to a GET, or None where a route must make it."""
        kind = KINDS.get(path.rstrip("/"))
        if kind is not None:
            return self._list(path, kind, query, headers, caller)
        parent, _, id = path.rpartition("/")
        kind = KINDS.get(parent)
        if kind not in OWNED or query:
            return None
        entry = self._cache.get(kind, id)
        if entry is None or not caller.access.sees(entry.body["project"]):
            return None
        etag = b'"%d"' % entry.revision
        if headers.get(b"if-none-match") == etag:
            return 304, [(b"etag", etag), *JSON[1:]], b"", ROUTES[parent]
        return 200, [(b"etag", etag), (b"content-length", b"%d" % len(entry.json)), *JSON], entry.json, ROUTES[parent]

    def _list(self, path: str, kind: str, query: bytes, headers: dict[bytes, bytes], caller: Caller) -> Answer | None:
        if b"text/event-stream" in headers.get(b"accept", b""):
            return None
        stored = self._lists.get((path, query, caller.view))
        if stored is None or not stored.is_current(self._cache, kind):
            return None
        stored.hits += 1
        if headers.get(b"if-none-match") == stored.etag:
            return 304, [(b"etag", stored.etag), *JSON[1:]], b"", path.rstrip("/")
        coding = (
            coding_of(headers.get(b"accept-encoding", b""), ENCODERS) if len(stored.body) >= COMPRESS_BYTES_MIN else b""
        )
        fields, body = self._packed(stored, coding)
        return 200, fields, body, path.rstrip("/")

    def _packed(self, stored: _List, coding: bytes) -> tuple[list[Header], bytes]:
        packed = stored.packed.get(coding)
        if packed is not None:
            return packed
        if coding and stored.hits < 2:  # it may change before it is requested again
            coding = b""
        body = ENCODERS[coding](stored.body) if coding else stored.body
        fields = [(b"etag", stored.etag), (b"content-length", b"%d" % len(body)), *JSON]
        if coding:
            fields.append((b"content-encoding", coding))
        stored.packed[coding] = fields, body
        return fields, body

    def capture(self, scope: dict[str, Any], headers: dict[bytes, bytes], caller: Caller | None) -> Capture | None:
        """Return what takes the answer of a list on its way out, or None where that is of no use. ``scope``: of the
        request (ASGI)."""
        path, query = scope["path"], scope["query_string"]
        kind = KINDS.get(path.rstrip("/"))
        if kind is None or caller is None or scope["method"] != "GET" or any(word in query for word in WAITS):
            return None
        if b"text/event-stream" in headers.get(b"accept", b""):
            return None
        version, key = self._cache.version(kind), (path, query, caller.view)

        def keep(body: bytes, of: ListDependency | None) -> None:
            etag = b'W/"%s-%d-%x"' % (kind.encode(), version, hash(key) & 0xFFFFFFFF)
            answer = _List(version, body, etag, of)
            if not answer.is_current(self._cache, kind):  # two answers must not have one ETag
                return
            if len(self._lists) >= LISTS_MAX:
                self._lists.clear()
            self._lists[key] = answer

        return Capture(scope.setdefault("state", {}), keep)


def coding_of(accepted: bytes, codings: Iterable[bytes]) -> bytes:
    """Return the first of these content codings that a client accepts, b"" for none."""
    if not accepted:
        return b""
    accepts = {}
    for part in accepted.split(b","):
        name, _, rest = part.strip().partition(b";")
        accepts[name.strip()] = b"q=0" not in rest.replace(b" ", b"") or b"q=0." in rest.replace(b" ", b"")
    return next((coding for coding in codings if accepts.get(coding)), b"")
