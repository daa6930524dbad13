"""The platform's keys in a server's processes: each follows what the database has."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from novacron import pki
from novacron.key_ring import SEAL_FILE, SEAL_PURPOSE, Generation, KeyRing, KeySeal, new_secret
from novacron.model.errors import InvalidInput, NovaError
from novacron.model.key import KeyName
from novacron.server import certificates
from novacron.server.settings import ServerSettings
from novacron.store import key_rotation, keys
from novacron.store.database import LOST, Connection, Database
from novacron.store.keys import NewKey, StoredKey
from novacron.supervise import Rarely
from novacron.telemetry import logs
from novacron.telemetry.values import gauge

log = logs.get(__name__)

CREATED = gauge("novacron_key_created_timestamp_seconds")
ROTATION_START = gauge("novacron_key_rotation_start_timestamp_seconds")
AGE_MAX = gauge("novacron_key_age_max_seconds")

LOOK_S = 1.0
"""How often each process looks for new generations: several times before one is used (``store/keys.py``)."""
SETTLED_S = 2.5
"""How long after its files have changed all processes of a server work with them."""
REPORT_S = 10.0
"""How often a server says that it is there while nothing is rotated."""


class KeyFollower:
    """The keys of one process, and the seal of those that the database has."""

    def __init__(self, database: Database, ring: KeyRing, seal: KeySeal) -> None:
        self.ring, self.seal = ring, seal
        self.changed: list[Callable[[], None]] = []
        self._database = database
        self._opened: dict[bytes, bytes] = {}

    @classmethod
    async def open(cls, database: Database, directory: Path, authority: pki.Authority) -> KeyFollower:
        """Load all keys. Raises InvalidInput for those that can't be opened, NovaError, OSError."""
        root = authority.root()
        seal = await asyncio.to_thread(KeySeal, directory / SEAL_FILE, pki.expand(root, SEAL_PURPOSE))
        opened = cls(database, KeyRing.first(root), seal)
        await opened.load()
        return opened

    @classmethod
    async def begin(
        cls, database: Database, directory: Path, authority: pki.Authority, *, renew: bool = False
    ) -> KeyFollower:
        """Load all keys, and make those that there are not: of an installation that had none they are derived from its
        CA's key, as they always were. ``renew``: replace those that can't be opened. Raises as ``open``."""
        root = authority.root()
        seal = await asyncio.to_thread(KeySeal, directory / SEAL_FILE, pki.expand(root, SEAL_PURPOSE))
        begun = cls(database, KeyRing.first(root), seal)
        began_at = datetime.fromtimestamp(pki.validity(authority.pem).starts_at_s, UTC)
        async with database.transaction() as connection:
            if renew:
                await begun._drop_unreadable(connection)
            for name in KeyName:
                key = NewKey(seal.seal(name, 1, root))
                if name is KeyName.CA:
                    sealed = seal.seal(name, 1, authority.key_pem)
                    key = NewKey(sealed, authority.pem.decode(), authority.marks[0])
                await keys.register(connection, name, key, began_at)
        await begun.load()
        await asyncio.to_thread(seal.keep)
        return begun

    async def _drop_unreadable(self, connection: Connection) -> None:
        for key in await keys.read(connection, lock=True):
            try:
                self.seal.unseal(key.name, key.generation, key.sealed)
            except InvalidInput:
                log.warning("a key can't be opened: it is replaced", key=key.name, generation=key.generation)
                await keys.drop(connection, key)

    async def load(self) -> list[StoredKey]:
        """Take over what the database has, and return it. Raises InvalidInput for what can't be opened, NovaError."""
        async with self._database.connection() as connection:
            stored = await keys.read(connection)
        secrets = {key.sealed: self._opened.get(key.sealed) or self._open(key) for key in stored}
        self._opened = secrets
        generations: dict[KeyName, list[Generation]] = {}
        for key in stored:
            if key.name is not KeyName.CA:
                generation = Generation(key.generation, secrets[key.sealed], key.used_from, key.in_use)
                generations.setdefault(key.name, []).append(generation)
        if self.ring.replace(generations):
            for notify in self.changed:
                notify()
        return stored

    def secret(self, key: StoredKey) -> bytes:
        """Return a key that was loaded."""
        return self._opened[key.sealed]

    def _open(self, key: StoredKey) -> bytes:
        try:
            return self.seal.unseal(key.name, key.generation, key.sealed)
        except InvalidInput:
            self.seal.reload()  # another process of this server may have another key by now
            return self.seal.unseal(key.name, key.generation, key.sealed)

    def next_generation(self, name: KeyName, generation: int) -> NewKey:
        """Return another generation of a key, sealed."""
        if name is not KeyName.CA:
            return NewKey(self.seal.seal(name, generation, new_secret()))
        key, certificate = pki.new_authority(time.time())
        return NewKey(
            self.seal.seal(name, generation, key), certificate.decode(), pki.authority_hash(certificate),
            self.seal.next_key(),
        )  # fmt: skip

    async def follow(self, take: Callable[[list[StoredKey]], Awaitable[None]] | None = None) -> None:
        """Follow the database until cancelled; ``take`` gets what it has each time."""
        log_now = Rarely()
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                stored = await self.load()
                if take is not None:
                    await take(stored)
            except (NovaError, OSError, ValueError, asyncpg.PostgresError, *LOST) as error:
                if log_now.due("keys"):
                    log.error("the platform's keys can't be followed", error=str(error), retry_s=LOOK_S)


class AuthorityKeeper:
    """Keeps a server's files of the CA as the database has it, and brings the CA's rotation forward."""

    def __init__(
        self, settings: ServerSettings, database: Database, authority: pki.Authority, platform_keys: KeyFollower,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.use: Callable[[], None] = lambda: None
        """Takes certificates into use."""
        self._settings = settings
        self._database = database
        self._authority = authority
        self._keys = platform_keys
        self._server = f"{settings.public_host}:{settings.port} ({socket.gethostname()} {secrets.token_hex(3)})"
        self._clock, self._settled_at, self._report_at = clock, 0.0, 0.0

    async def begin(self) -> tuple[Path, Path]:
        """Bring this server's files to what the database has, and issue its certificate; return it and its key.

        Raises InvalidInput, NovaError, OSError, ValueError.
        """
        state_dir = self._settings.state_dir
        await self.adopt(await self._keys.load())
        self._authority.renew()
        issued = self._authority.issue_server(state_dir, certificates.hosts(self._settings))
        await self.step(await self._keys.load())
        return issued

    async def adopt(self, stored: Sequence[StoredKey]) -> bool:
        """Trust and issue as the database says; say whether something is different. Raises OSError, ValueError."""
        generations = [key for key in stored if key.name is KeyName.CA]
        used = [key for key in generations if key.in_use] or generations[:1]
        before = next((key for key in used[:-1] if key.retired_at is None), None)
        return await asyncio.to_thread(
            self._authority.adopt,
            self._keys.secret(used[-1]),
            None if before is None else self._keys.secret(before),
            [key.certificate.encode() for key in generations],
        )

    async def step(self, stored: Sequence[StoredKey]) -> None:
        """Take over what is new, and say what this server has. Raises OSError, ValueError, NovaError."""
        self._measure(stored)
        changed = await self.adopt(stored)
        rotating = sum(key.name is KeyName.CA for key in stored) > 1
        if not (changed or rotating or self._clock() >= self._report_at):
            return
        certificate = self._settings.state_dir / "server.crt"
        issued_by = pki.pem_issuer_of(certificate.read_bytes(), self._authority.pem)
        if issued_by != self._authority.server_mark:
            reissue = self._authority.reissue_server
            await asyncio.to_thread(reissue, self._settings.state_dir, certificates.hosts(self._settings))
            changed, issued_by = True, self._authority.server_mark
        await self._follow_seal(rotating=rotating)
        if changed:
            self.use()
            self._settled_at = self._clock() + SETTLED_S
            log.info("the CA's rotation goes on", trusts=len(self._authority.marks))
        if self._clock() >= self._settled_at:
            self._report_at = self._clock() + REPORT_S
            async with self._database.transaction() as connection:
                await key_rotation.report(
                    connection, self._server, self._authority.marks, issued_by, self._keys.seal.mark
                )
                if rotating:
                    await key_rotation.advance(connection, self._sealed_anew)

    def _measure(self, stored: Sequence[StoredKey]) -> None:
        AGE_MAX.set(self._settings.key_age_days * 86_400)
        for name in KeyName:
            generations = [key for key in stored if key.name is name]
            newest = generations[-1]
            current = ([key for key in generations if key.in_use] or generations)[-1]
            CREATED.set(current.created_at.timestamp(), name)
            ROTATION_START.set(newest.created_at.timestamp() if generations[1:] else 0, name)

    async def _follow_seal(self, *, rotating: bool) -> None:
        """Take over the key with which keys are sealed next, and forget the one before once it seals nothing."""
        seal = self._keys.seal
        if not rotating and not seal.has_others:
            return
        async with self._database.connection() as connection:
            following = await keys.next_seal(connection)
        if following is not None and following[0] != seal.mark:
            await asyncio.to_thread(seal.take_next, following[1])
        elif following is None and not rotating:
            await asyncio.to_thread(seal.forget_others)

    def _sealed_anew(self, key: StoredKey) -> bytes:
        return self._keys.seal.seal_anew(key.name, key.generation, key.sealed)

    async def leave(self) -> None:
        """Nothing waits for this server from now on."""
        with contextlib.suppress(NovaError, asyncpg.PostgresError, *LOST):
            async with self._database.transaction() as connection:
                await key_rotation.left(connection, self._server)
