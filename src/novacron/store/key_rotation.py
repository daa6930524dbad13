"""The rotation of the platform's keys: begun and finished by administrators, and brought forward by servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from novacron.model.errors import Conflict
from novacron.model.key import KeyName, KeyPhase, ServerKey, phase_of
from novacron.store import events, keys
from novacron.store.database import Connection
from novacron.store.key_waits import waits_for
from novacron.store.keys import NewKey, StoredKey

SHOWN_MAX = 50
"""How many of those that a rotation waits for are named."""
FORGOTTEN_S = 86_400.0
"""When a server that is away is forgotten."""


async def rotate(connection: Connection, name: KeyName, make: Callable[[int], NewKey], actor: str) -> ServerKey:
    """Add a generation. Raises Conflict while there are two."""
    generations = _of(name, await keys.read(connection, lock=True))
    if len(generations) > 1:
        raise Conflict(
            f"the key {name} is being rotated already",
            field="name",
            hint=f"finish that first: novacron key finish {name}",
        )
    number = generations[-1].generation + 1
    await keys.add(connection, name, number, make(number))
    message = f"generation {number} was created; {number - 1} is accepted until you run: novacron key finish {name}"
    await events.record(connection, events.NewEvent("key", name, name, "KeyRotating", message, actor))
    return await get(connection, name)


async def finish(connection: Connection, name: KeyName, actor: str, *, force: bool = False) -> ServerKey:
    """Stop to accept the generations before the newest; of the CA once no server has a certificate of one.

    Raises Conflict while something needs them; with ``force`` only while the newest is not in use yet.
    """
    generations = _of(name, await keys.read(connection, lock=True))
    key = await _shown(connection, generations)
    if key.phase in (KeyPhase.STEADY, KeyPhase.RETIRING):
        return key
    if key.phase is KeyPhase.SPREADING or (key.waits_for and not force):
        raise Conflict(
            f"generation {key.generations[-1]} of the key {name} is still needed: {'; '.join(key.waits_for)}",
            field="name", hint="see: novacron key list",
        )  # fmt: skip
    message = f"only generation {key.generation} is accepted"
    if name is KeyName.CA:
        message = f"the CA of the generation before {key.generation} is being retired"
        await connection.execute(
            "UPDATE platform_keys SET retired_at = now() WHERE name = $1 AND generation < $2", name, key.generation
        )
    else:
        for earlier in generations[:-1]:
            await keys.drop(connection, earlier)
    left = f", although: {'; '.join(key.waits_for)}" if key.waits_for else ""
    await events.record(connection, events.NewEvent("key", name, name, "KeyRotated", message + left, actor))
    return await get(connection, name)


async def get(connection: Connection, name: KeyName) -> ServerKey:
    """Return a key as users see it."""
    return await _shown(connection, _of(name, await keys.read(connection)))


async def list_all(connection: Connection) -> list[ServerKey]:
    """Return all keys as users see them."""
    stored = await keys.read(connection)
    return [await _shown(connection, _of(name, stored)) for name in KeyName]


def _of(name: KeyName, stored: Sequence[StoredKey]) -> list[StoredKey]:
    return [key for key in stored if key.name is name]


def _phase(generations: Sequence[StoredKey]) -> KeyPhase:
    return phase_of(generations[-1].in_use, len(generations), generations[0].retired_at is not None)


async def _shown(connection: Connection, generations: Sequence[StoredKey]) -> ServerKey:
    current = ([key for key in generations if key.in_use] or generations[:1])[-1]
    phase = _phase(generations)
    waiting = await waits_for(connection, phase, generations)
    return ServerKey(
        current.name, current.generation, phase, current.created_at,
        tuple(key.generation for key in reversed(generations)), tuple(waiting[:SHOWN_MAX]),
    )  # fmt: skip


async def report(connection: Connection, server: str, trusts: Sequence[str], authority: str, seal: str) -> None:
    """Note which CAs a server trusts, which one has issued its certificate, and with what it seals keys."""
    await connection.execute(
        "INSERT INTO server_keys (server, trusts, authority, seal, seen_at) VALUES ($1, $2, $3, $4, clock_timestamp())"
        " ON CONFLICT (server) DO UPDATE SET trusts = $2, authority = $3, seal = $4, seen_at = clock_timestamp()",
        server, list(trusts), authority, seal,
    )  # fmt: skip
    await connection.execute(
        "DELETE FROM server_keys WHERE seen_at < clock_timestamp() - make_interval(secs => $1)", FORGOTTEN_S
    )


async def left(connection: Connection, server: str) -> None:
    """A server ends: nothing waits for it."""
    await connection.execute("DELETE FROM server_keys WHERE server = $1", server)


async def advance(connection: Connection, seal: Callable[[StoredKey], bytes]) -> None:
    """Bring the CA's rotation forward if nothing keeps it: let the new CA issue, or forget the one before."""
    stored = await keys.read(connection, lock=True)
    generations = _of(KeyName.CA, stored)
    phase, newest = _phase(generations), generations[-1]
    if phase not in (KeyPhase.SPREADING, KeyPhase.RETIRING) or await waits_for(connection, phase, generations):
        return
    if phase is KeyPhase.SPREADING:
        await connection.execute(
            "UPDATE platform_keys SET used_from = clock_timestamp() WHERE name = $1 AND generation = $2",
            newest.name, newest.generation,
        )  # fmt: skip
        reason, message = "KeyUsed", "it is trusted everywhere, and issues certificates from now on"
    else:
        for earlier in generations[:-1]:
            await keys.drop(connection, earlier)
        remaining = [key for key in stored if key not in generations[:-1]]
        await keys.seal_anew(connection, remaining, seal)
        reason, message = "KeyRetired", "the previous CA is no longer trusted"
    name = KeyName.CA
    about = f"generation {newest.generation}: {message}"
    await events.record(connection, events.NewEvent("key", name, name, reason, about))
