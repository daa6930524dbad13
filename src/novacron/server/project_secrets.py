"""What nodes get of a project's secrets, for as long as they have something of it: the key of its pages' digests, and
the keys of its disks, which the platform key unwraps."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import TypeVar

from novacron.key_ring import KeyRing
from novacron.model.encryption import DataKey, WrappedKey
from novacron.model.errors import NovaError
from novacron.platform_key import PlatformKeys
from novacron.store import project_keys
from novacron.store.database import Connection
from novacron.supervise import Rarely
from novacron.telemetry import logs

log = logs.get(__name__)

RETRY_S = 15.0
"""How long after a failure a key is unwrapped again: every node that needs it would ask otherwise."""
HELD_MAX = 10_000
T = TypeVar("T")

NO_KEYS: Mapping[str, DataKey] = {}


class ProjectSecrets:
    """Keys that were unwrapped are held in memory, with the digest of what the database has of them: one that was
    erased there is not given any more. ``retry`` is called when a key that could not be unwrapped may be asked for
    again."""

    def __init__(self, keys: KeyRing, platform_keys: PlatformKeys, retry: Callable[[], None]) -> None:
        self._keys, self._platform_keys, self._retry = keys, platform_keys, retry
        self._held: dict[str, tuple[bytes, DataKey]] = {}
        self._failed_at: dict[str, float] = {}
        self._log_now = Rarely()
        self._retrying: asyncio.TimerHandle | None = None

    def page_keys(self, project_id: str, began: datetime | None) -> list[bytes]:
        """Return the keys of a project's pages, the one to use first, now or in a migration that began then."""
        return self._keys.page_keys(project_id, began)

    async def data_keys(self, connection: Connection, ids: Collection[str]) -> Mapping[str, DataKey]:
        """Return those of these keys that are to be had now."""
        needed = {id for id in ids if id}
        if not needed:
            return NO_KEYS
        stored = {key.id: key for key in await project_keys.wrapped(connection, needed)}
        for erased in needed - stored.keys():
            self._held.pop(erased, None)
        keys = {id: await self._key(wrapped) for id, wrapped in stored.items()}
        return {id: key for id, key in keys.items() if key is not None}

    async def _key(self, wrapped: WrappedKey) -> DataKey | None:
        digest = hashlib.sha256(wrapped.wrapped).digest()
        held = self._held.get(wrapped.id)
        if held is not None and held[0] == digest:
            return held[1]
        if time.monotonic() < self._failed_at.get(wrapped.id, -RETRY_S) + RETRY_S:
            return None
        try:
            key = await self._platform_keys.unwrap(wrapped)
        except Exception as error:  # of this key; what needs other keys goes on
            if self._log_now.due(wrapped.id):
                why = str(error) if isinstance(error, NovaError) else type(error).__name__  # its text may have a secret
                log.error("a project's key can't be unwrapped: what it encrypts can't start", key=wrapped.id, error=why)
            _make_room(self._failed_at)
            self._failed_at[wrapped.id] = time.monotonic()
            self._retry_later()
            return None
        _make_room(self._held)
        self._held[wrapped.id] = digest, key
        self._failed_at.pop(wrapped.id, None)
        return key

    def _retry_later(self) -> None:
        if self._retrying is None:
            self._retrying = asyncio.get_running_loop().call_later(RETRY_S, self._ask_again)

    def _ask_again(self) -> None:
        self._retrying = None
        self._retry()


def _make_room(held: dict[str, T]) -> None:
    if len(held) >= HELD_MAX:
        del held[next(iter(held))]
