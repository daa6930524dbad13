"""Principals: tokens and sessions by the hashes of their secrets, with their users' rights. Fed by the change feed, so
that a revocation takes effect immediately."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from novacron.model.access import Access, Right, Role, access
from novacron.model.token import TokenKind

KINDS = ("token", "user", "grant")
"""Kinds of objects that principals are made of."""


class Caller(msgspec.Struct, frozen=True):
    """A caller: a token or a session, by id, of a user."""

    id: str
    name: str
    """The user's."""
    user: str
    kind: TokenKind
    access: Access
    project: str
    """Project of new objects, unless a request names another."""
    expires_at_s: float
    """When it ends, in seconds since 1970."""
    view: str
    """What the caller sees: callers with equal views get equal answers to equal reads."""


NEVER_S = float("inf")


class Callers:
    """All tokens and sessions that may call."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[str, dict[str, Any]]] = {}
        self._by_digest: dict[str, str] = {}
        self._grants: dict[str, set[str]] = {}
        self._made: dict[str, Caller | None] = {}
        self.version = 0
        """Grows whenever a caller's rights may have changed."""
        self.clear()

    def clear(self) -> None:
        self.version += 1
        self._objects = {kind: {} for kind in KINDS}
        self._by_digest.clear()
        self._grants.clear()
        self._made.clear()

    def get(self, digest: str) -> Caller | None:
        """Return the caller whose secret has this hash (SHA-256, hexadecimal); None: there is none."""
        caller = self._made.get(digest)
        if caller is None and digest in self._by_digest:
            caller = self._made[digest] = self._make(digest)
        return caller

    def by_id(self, id: str) -> Caller | None:
        """Return the caller of a token or session, if it is still valid."""
        token = self._objects["token"].get(id)
        return None if token is None else self.get(token["hash"])

    def change(self, kind: str, key: str, body: dict[str, Any] | None) -> None:
        """Apply a change of a token, a user or a grant; None: it was deleted."""
        self.version += 1
        self._made.clear()
        was = self._objects[kind].pop(key, None)
        if kind == "token" and was is not None:
            self._by_digest.pop(was["hash"], None)
        if kind == "grant" and was is not None:
            self._grants.get(was["user"], set()).discard(key)
        if body is None:
            return
        if kind == "token" and not body["revoked"]:
            self._by_digest[body["hash"]] = key
        if kind == "grant":
            self._grants.setdefault(body["user"], set()).add(key)
        self._objects[kind][key] = body  # last: what can't be read is not there

    def access_of(self, user: str) -> Access:
        """Return what a user may do, by their roles."""
        grants = [self._objects["grant"][id] for id in self._grants.get(user, ())]
        return access((grant["project"], Role(grant["role"])) for grant in grants)

    def _make(self, digest: str) -> Caller | None:
        token = self._objects["token"][self._by_digest[digest]]
        user = self._objects["user"].get(token["user"])
        if user is None or user["disabled"]:
            return None
        has = self.access_of(user["id"])
        scopes = None if token["scopes"] is None else frozenset(Right(scope) for scope in token["scopes"])
        cut = has.within(scopes, token["project"])
        only = next(iter(has.projects)) if len(has.projects) == 1 and not has.everywhere else "default"
        own = user.get("default_project")
        usual = own if own is not None and cut.sees(own) else only
        ends = NEVER_S if token["expires_at"] is None else datetime.fromisoformat(token["expires_at"]).timestamp()
        return Caller(
            token["id"], user["name"], user["id"], TokenKind(token["kind"]), cut, token["project"] or usual, ends,
            "*" if cut.sees_all else " ".join(sorted(name for name in cut.projects if cut.sees(name))),
        )  # fmt: skip
