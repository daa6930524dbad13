"""Passwords: hashed with argon2id (RFC 9106) in a few threads, so that guessing is slow only for guessers and not for
anybody else; refused when they are easy to guess."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import ARGON2_VERSION

from novacron.api.access.client_address import counted_as
from novacron.api.access.shared_counters import Shared
from novacron.key_ring import Secrets
from novacron.model.errors import InvalidInput, NovaError, TooManyRequests
from novacron.model.token import keyed_digest, same_secret

AT_ONCE = 2
WAITING_MAX = 32
TRIES_S = 300.0
"""The period in which wrong passwords are counted, in seconds."""
TRIES_OF_DEVICE, TRIES_OF_NAME_AT_ADDRESS, TRIES_OF_SECOND_FACTOR = 10, 10, 10
TRIES_OF_NAME, TRIES_OF_ADDRESS = 100, 100
"""From wherever; for whatever name. They do not hold for a browser in which this user has logged in before, so that
nobody can lock a user out."""
REMEMBERED_MAX = 20_000
SCORE_MIN = 3
"""Of zxcvbn's 0 to 4: more than a hundred million guesses."""
SCORED_LENGTH_MAX = 72

_hasher = PasswordHasher()  # 64 MiB, three passes, four lanes: the library's defaults, RFC 9106's second choice


def _unmatched_hash() -> str:
    """Return a hash that no password has, and that costs as much to verify as others. To hash a password for it would
    cost each start of a server half a second of a processor."""
    salt, digest = (
        base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=")
        for size in (_hasher.salt_len, _hasher.hash_len)
    )
    cost = f"m={_hasher.memory_cost},t={_hasher.time_cost},p={_hasher.parallelism}"
    return f"$argon2id$v={ARGON2_VERSION}${cost}${salt}${digest}"


_NOBODYS = _unmatched_hash()


class KnownBrowsers:
    """Marks of browsers in which users have logged in, which only this platform can make."""

    def __init__(self, keys: Secrets) -> None:
        self._keys = keys

    def mark(self, user: str, device: str | None = None) -> str:
        """Return a mark for a browser of a user, by their id; None: another browser."""
        device = device or secrets.token_urlsafe(18)
        return f"{device}.{_seal(self._keys()[0], user, device)}"

    def browser_of(self, user: str, mark: str) -> str | None:
        """Return the browser that a mark stands for, if it is this user's."""
        device, _, seal = mark.rpartition(".")
        good = any(same_secret(_seal(key, user, device), seal) for key in self._keys())
        return device if device and good else None


def _seal(key: bytes, user: str, device: str) -> str:
    return keyed_digest(key, f"{user} {device}")


class Passwords:
    """Checks passwords, and slows down guessing."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._tried: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def hash_new(self, password: str, related: Sequence[str]) -> str:
        """Return the hash of a new password. Raises InvalidInput if it is easy to guess; ``related`` are words that a
        guesser tries first, such as the user's name."""
        async with self._turns:
            await asyncio.to_thread(check_strength, password, related)
            return await asyncio.to_thread(_hasher.hash, password)

    async def verify(self, name: str, address: str, hash: str | None, password: str, device: str | None = None) -> bool:
        """Say whether a password is the one of ``hash``; for nobody's (None), that it is not, and no sooner.

        ``device``: the browser, if this user has logged in there before. Each try counts from its beginning, so that
        many at once are no more than many in turn; good ones do not count. Raises TooManyRequests.
        """

        async def check() -> bool:
            return await self._matches(hash or _NOBODYS, password) and hash is not None

        return await self.counted(_limits(name, address, device), check)

    def limits_of_factor(self, name: str, address: str, device: str | None = None) -> dict[str, int]:
        """Return how many wrong second factors there may be: fewer than passwords, from wherever, for codes are short,
        and whoever tries one knows the password."""
        limits = _limits(name, address, device)
        if device is not None:
            return limits
        return {**limits, f"for a second factor of {name}": TRIES_OF_SECOND_FACTOR}

    async def counted(self, limits: dict[str, int], check: Callable[[], Awaitable[bool]]) -> bool:
        """Say whether ``check`` does, as a try that counts in ``limits`` from its beginning if it does not.

        Raises TooManyRequests, and what ``check`` raises, which does not count.
        """
        await self._begin(limits)
        try:
            good = await check()
        except NovaError:
            await self._take_back(limits)
            raise
        if good:
            await self._take_back(limits)
        return good

    async def _matches(self, hash: str, password: str) -> bool:
        if self._waiting >= WAITING_MAX:
            raise TooManyRequests("too many logins at once", hint="try again in a few seconds")
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(_matches, hash, password)
        finally:
            self._waiting -= 1

    async def _begin(self, limits: dict[str, int]) -> None:
        """Count a try. Raises TooManyRequests, and does not count it, if there were too many."""
        here = {key: self._count(key, 1) for key in limits}
        everywhere = await self._shared.add({f"tried:{key}": 1 for key in limits}, int(TRIES_S))
        for key, most in limits.items():
            if max(here[key], everywhere.get(f"tried:{key}", 0)) > most:
                await self._take_back(limits)
                left_s = self._tried[key][1] + TRIES_S - time.monotonic() if key in self._tried else TRIES_S
                raise TooManyRequests(
                    f"too many wrong passwords or codes: {key}", hint=f"try again in {max(1, int(left_s) + 1)} s"
                )

    async def _take_back(self, limits: dict[str, int]) -> None:
        for key in limits:
            self._count(key, -1)
        await self._shared.add({f"tried:{key}": -1 for key in limits}, int(TRIES_S))

    def _count(self, key: str, by: int) -> int:
        """Add to the tries of a key, and return how many there are now."""
        count, since = self._tried.pop(key, (0, time.monotonic()))
        if time.monotonic() - since > TRIES_S:
            count, since = 0, time.monotonic()
        count = max(0, count + by)
        if count:
            self._tried[key] = (count, since)
        if len(self._tried) > REMEMBERED_MAX:
            self._tried.popitem(last=False)
        return count


def _limits(name: str, address: str, device: str | None) -> dict[str, int]:
    """Return how many wrong passwords there may be, by what is counted."""
    if device is not None:
        return {f"for {name} in this browser ({device[:6]})": TRIES_OF_DEVICE}
    origin = counted_as(address)
    return {
        f"for {name} from {origin}": TRIES_OF_NAME_AT_ADDRESS,
        f"for {name}": TRIES_OF_NAME,
        f"from {origin}": TRIES_OF_ADDRESS,
    }


def check_strength(password: str, related: Sequence[str]) -> None:
    """Raise InvalidInput for a password that is easy to guess: common, repeated, a sequence, or made of known words."""
    from zxcvbn import zxcvbn  # its word lists take 80 ms and some MiB: only whoever sets passwords loads them

    result = zxcvbn(password[:SCORED_LENGTH_MAX], user_inputs=list(related))
    if result["score"] >= SCORE_MIN:
        return
    why = str(result["feedback"]["warning"]).rstrip(".")
    raise InvalidInput(
        f"the password is easy to guess{f': {why[:1].lower()}{why[1:]}' if why else ''}", field="password",
        hint="use several unrelated words, or let a password manager generate one",
    )  # fmt: skip


def _matches(hash: str, password: str) -> bool:
    try:
        return _hasher.verify(hash, password)
    except (VerificationError, InvalidHashError):
        return False
