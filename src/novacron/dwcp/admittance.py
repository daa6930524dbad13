"""Which peers this node speaks with: every one whose certificate is good, but for keys that were revoked."""

from __future__ import annotations

import ssl
import weakref
from collections.abc import Callable, Collection
from typing import Protocol

KeyOf = Callable[[ssl.SSLObject], str]
"""Returns what tells the key of the peer of a connection from others."""


class Cut(Protocol):
    """A connection that can be cut."""

    def abort(self) -> None: ...


class Admittance:
    """The revoked keys, and the open connections by their peers' keys."""

    def __init__(self, key_of: KeyOf, trusts: Callable[[ssl.SSLObject], bool] = lambda _: True) -> None:
        """``trusts`` says whether a peer's certificate is still good: a TLS context that is in use may go on trusting
        a CA that was retired."""
        self._key_of = key_of
        self._trusts = trusts
        self._revoked: frozenset[str] | None = frozenset()
        """None: it is not known which, so nobody is admitted."""
        self._open: weakref.WeakKeyDictionary[Cut, tuple[str, ssl.SSLObject]] = weakref.WeakKeyDictionary()

    def close(self) -> None:
        """Admit nobody until it is known which keys are revoked, and cut all connections."""
        self._revoked = None
        for connection in list(self._open):
            connection.abort()

    def revoke(self, keys: Collection[str]) -> None:
        """Let these be all revoked keys, and cut the connections of their peers."""
        self._revoked = revoked = frozenset(keys)
        for connection, (key, _) in list(self._open.items()):
            if key in revoked:
                connection.abort()

    def check_anew(self) -> None:
        """Cut the connections of peers whose certificates are not trusted any more: they can come with others."""
        for connection, (_, tls) in list(self._open.items()):
            if not self._trusts(tls):
                connection.abort()

    def admits(self, tls: ssl.SSLObject, connection: Cut) -> bool:
        """Say whether a connection may be used. From then on it is cut if its peer's key is revoked."""
        key = self._key_of(tls)
        if self._revoked is None or key in self._revoked or not self._trusts(tls):
            return False
        self._open[connection] = key, tls
        return True
