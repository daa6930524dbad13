"""Passwords: hashed with argon2id (RFC 9106) in a few threads, so that guessing is slow only for guessers
and not for anybody else."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from novacron.api.access.shared_counters import Shared
from novacron.model.errors import TooManyRequests

AT_ONCE = 2
WAITING_MAX = 32
TRIES, TRIES_S = 10, 300.0
"""The period in which wrong passwords for a name, and from an address, are counted, in seconds."""
REMEMBERED_MAX = 20_000

_hasher = PasswordHasher()  # 64 MiB, three passes, four lanes: the library's defaults, RFC 9106's second choice
_NOBODYS = _hasher.hash("nobody has this password")


class Passwords:
    """Checks passwords, and slows down guessing."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def hash(self, password: str) -> str:
        async with self._turns:
            return await asyncio.to_thread(_hasher.hash, password)

    async def verify(self, name: str, address: str, hash: str | None, password: str) -> bool:
        """Say whether a password is the one of ``hash``; for nobody's (None), that it is not, and no sooner.

        Raises TooManyRequests after too many wrong ones for this name or from this address.
        """
        keys = (f"name {name}", f"address {address}")
        everywhere = await self._shared.get(tuple(f"wrong:{key}" for key in keys))
        for key in keys:
            count, since = self._wrong.get(key, (0, 0.0))
            left_s = since + TRIES_S - time.monotonic()
            if everywhere.get(f"wrong:{key}", 0) >= TRIES:
                count, left_s = TRIES, TRIES_S
            if count >= TRIES and left_s > 0:
                raise TooManyRequests(f"too many wrong passwords for {key}", hint=f"try again in {int(left_s) + 1} s")
        if self._waiting >= WAITING_MAX:
            raise TooManyRequests("too many logins at once", hint="try again in a few seconds")
        self._waiting += 1
        try:
            async with self._turns:
                good = await asyncio.to_thread(_matches, hash or _NOBODYS, password) and hash is not None
        finally:
            self._waiting -= 1
        for key in keys:
            self._count(key, good=good)
        if not good:
            await self._shared.add({f"wrong:{key}": 1 for key in keys}, int(TRIES_S))
        return good

    def _count(self, key: str, *, good: bool) -> None:
        count, since = self._wrong.pop(key, (0, time.monotonic()))
        if good and key.startswith("name "):
            return
        if time.monotonic() - since > TRIES_S:
            count, since = 0, time.monotonic()
        self._wrong[key] = (count + (not good), since)
        if len(self._wrong) > REMEMBERED_MAX:
            self._wrong.popitem(last=False)


def _matches(hash: str, password: str) -> bool:
    try:
        return _hasher.verify(hash, password)
    except (VerificationError, InvalidHashError):
        return False
