"""How many requests may be at the same stage at once: in all, and for each user and each address without a token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple


class SlotLimits(NamedTuple):
    """At once: in all, of one user, and of one address from which callers have no valid token."""

    total: int
    per_user: int
    per_address: int


class Full(Exception):
    """No slot is free: in all, or (``own``) because this user or address has as many as one may have."""

    def __init__(self, *, own: bool) -> None:
        super().__init__("no slot is free")
        self.own = own


class Slots:
    """The requests of one stage."""

    def __init__(self, limits: SlotLimits) -> None:
        self.limits = limits
        self.taken = 0
        self._taken_by: dict[str, int] = {}

    @contextlib.contextmanager
    def taken_for(self, user: str | None, address: str, *, exempt: bool = False) -> Iterator[None]:
        """Hold a slot for a user (None: for an address). Raises Full, but not for the exempt, who count all the
        same."""
        key = f"address {address}" if user is None else f"user {user}"
        of_key = self._taken_by.get(key, 0)
        if not exempt and of_key >= (self.limits.per_address if user is None else self.limits.per_user):
            raise Full(own=True)
        if not exempt and self.taken >= self.limits.total:
            raise Full(own=False)
        self.taken += 1
        self._taken_by[key] = of_key + 1
        try:
            yield
        finally:
            self.taken -= 1
            self._taken_by[key] -= 1
            if not self._taken_by[key]:
                del self._taken_by[key]
