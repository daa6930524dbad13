# Made of aio/handles.py by script/generate: change that, and run it.
"""Objects of the API with methods: what they were when last seen, waiting for them, following their changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Self, TypeVar

from novacron.client import typed
from novacron.client.protocol import LONG_POLL_S, Object, quoted, without_none
from novacron.client.sync.calls import ApiCalls
from novacron.client.values import ObjectChange

T = TypeVar("T")
WAIT_S = 300.0
"""How long ``wait_until`` waits, unless it is told."""


class Handle(Generic[T]):
    """An object of the API. ``object`` is how it was last seen; methods that change it, wait or refresh
    update that. Not for use by several tasks at once."""

    def __init__(self, connection: ApiCalls, type_: type[T], body: Object) -> None:
        self._connection, self._type, self._kind = connection, type_, typed.kind_of(type_)
        self._take(body)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._ref} revision {self._revision}>"

    def _take(self, body: Object) -> Self:
        """Remember how the object is now."""
        self.object: T = typed.read(self._type, body)
        self._ref = typed.key_of(self._type, body)
        self._revision = int(body.get("revision", 0))
        return self

    @property
    def _path(self) -> str:
        return f"/api/v1/{self._kind}/{quoted(self._ref)}"

    def _act(self, action: str, body: Mapping[str, object] | None = None) -> Object:
        fields = None if body is None else without_none(body)
        return self._connection._object("POST", f"{self._path}/actions/{action}", fields)

    def _change(self, changes: Mapping[str, object], if_unchanged: bool = False) -> Self:
        """Change fields; with ``if_unchanged`` only if the object is as it was last seen. Raises StaleRevisionError."""
        match = {"If_Match": f'"{self._revision}"'} if if_unchanged else {}
        body: Object = self._connection.request("PATCH", self._path, dict(changes), None, **match)
        return self._take(body)


class Readable(Handle[T]):
    """An object that can be read by itself."""

    def refresh(self) -> Self:
        """Read the object again. Raises NotFoundError."""
        return self._take(self._connection._object("GET", self._path))


class Watched(Readable[T]):
    """An object whose changes can be waited for."""

    def wait_until(self, condition: Callable[[T], bool], timeout_s: float = WAIT_S) -> Self:
        """Wait on the server until ``condition`` is true of the object. Raises TimeoutError, also if it is gone."""
        reached = self._connection.wait(
            self._kind, self._ref, lambda body: body is not None and condition(typed.read(self._type, body)), timeout_s
        )
        assert reached is not None, "the condition is false of what is gone"
        return self._take(reached)

    def wait_until_gone(self, timeout_s: float = WAIT_S) -> None:
        """Wait until the object does not exist any more. Raises TimeoutError."""
        self._connection.wait(self._kind, self._ref, lambda body: body is None, timeout_s)

    def changes(self) -> Iterator[T]:
        """Yield the object now, and after each change from then on, until it is gone. Goes on where it was cut off;
        of changes in quick succession only the last may be seen."""
        body: Object | None = self._connection._newer(self._kind, self._ref, 0, int(LONG_POLL_S))
        seen = 0
        while body is not None:
            if int(body["revision"]) > seen:
                seen = self._take(body)._revision
                yield self.object
            body = self._connection._newer(self._kind, self._ref, seen, int(LONG_POLL_S))


class Removable(Handle[T]):
    """An object that can be deleted."""

    def delete(self) -> None:
        """Begin to delete it; ``wait_until_gone`` waits until it is gone."""
        self._connection.request("DELETE", self._path)


H = TypeVar("H")


class Collection(Generic[T, H]):
    """All objects of a kind that the caller may see."""

    _type: type[T]
    _handle: Callable[[ApiCalls, type[T], Object], H]

    def __init__(self, connection: ApiCalls) -> None:
        self._connection, self._kind = connection, typed.kind_of(self._type)

    def _of(self, body: Object) -> H:
        return self._handle(self._connection, self._type, body)

    def _list(self, limit: int | None, **filters: str | None) -> Iterator[H]:
        given = {name: value for name, value in filters.items() if value is not None}
        for body in self._connection.list(self._kind, limit, **given):
            yield self._of(body)

    def _create(self, body: Mapping[str, object], idempotency_key: str | None = None) -> H:
        key = {} if idempotency_key is None else {"Idempotency_Key": idempotency_key}
        made: Object = self._connection.request("POST", f"/api/v1/{self._kind}", dict(body), None, **key)
        return self._of(made)


class Findable(Collection[T, H]):
    """Objects of which each can be read by itself."""

    def get(self, ref: str) -> H:
        """Return one object, by id or name. Raises NotFoundError."""
        return self._of(self._connection.get(self._kind, ref))


class Followed(Collection[T, H]):
    """Objects whose changes can be followed."""

    def watch(self, after: int | None = None) -> Iterator[ObjectChange[T]]:
        """Yield each change of these objects from now on, or after a revision; goes on where it was cut off.

        Raises RevisionGoneError if changes after it are no longer kept; Unreachable when it can't go on.
        """
        for _, body in self._connection.stream(after, typed.STREAM_KINDS[self._type]):
            if body.get("deleted") is True:
                yield ObjectChange(str(body["id"]), None)
            else:
                yield ObjectChange(typed.key_of(self._type, body), typed.read(self._type, body))


class Listed(Collection[T, H]):
    """Objects that are listed without filters."""

    def list(self, limit: int | None = None, sort: str | None = None) -> Iterator[H]:
        """Yield them, page by page; ``sort`` is a field, with ``-`` before it for the reverse."""
        return self._list(limit, sort=sort)
