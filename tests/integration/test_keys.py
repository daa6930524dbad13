"""The rotation of the platform's keys by two servers over one real database."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from novacron import pki
from novacron.key_ring import SEAL_FILE
from novacron.model.errors import Conflict, IdempotencyMismatch, InvalidInput
from novacron.model.key import KeyName, KeyPhase
from novacron.server.keys import SETTLED_S, AuthorityKeeper, KeyFollower
from novacron.server.settings import ServerSettings
from novacron.store import idempotency, identities, key_rotation, nodes
from novacron.store.database import Database
from tests.integration.test_link import INVENTORY

DAY_S = 86_400.0
ME = "admin"
PURPOSE = "a purpose"


class Server:
    """What a server has of the keys, without the server."""

    def __init__(self, database: Database, state: Path, port: int) -> None:
        self.database, self.state = database, state
        self.authority = pki.Authority.open(state)
        self.settings = ServerSettings("", state, port=port)
        self.now_s = 0.0

    async def begin(self) -> None:
        self.keys = await KeyFollower.begin(self.database, self.state, self.authority)
        self.keeper = AuthorityKeeper(self.settings, self.database, self.authority, self.keys, lambda: self.now_s)
        await self.keeper.begin()

    async def step(self) -> None:
        """Look, and look again once all processes work with what was new."""
        for _ in range(2):
            await self.keeper.step(await self.keys.load())
            self.now_s += SETTLED_S

    def server_issuer(self) -> str:
        return pki.pem_issuer_of((self.state / "server.crt").read_bytes(), self.authority.pem)


@pytest.fixture
async def servers(database: Database, tmp_path: Path) -> tuple[Server, Server]:
    """Two servers of one installation: the second has the first one's CA, as documented."""
    first = Server(database, tmp_path / "a", 7443)
    for name in ("ca.crt", "ca.key"):
        pki.write_secret(tmp_path / "b" / name, (tmp_path / "a" / name).read_bytes())
    second = Server(database, tmp_path / "b", 8443)
    await first.begin()
    await second.begin()
    return first, second


async def rotate(server: Server, name: KeyName) -> None:
    async with server.database.transaction() as connection:
        await key_rotation.rotate(
            connection, name, lambda generation: server.keys.next_generation(name, generation), ME
        )


async def finish(server: Server, name: KeyName, *, force: bool = False) -> None:
    async with server.database.transaction() as connection:
        await key_rotation.finish(connection, name, ME, force=force)


async def phase(server: Server, name: KeyName) -> KeyPhase:
    async with server.database.connection() as connection:
        return (await key_rotation.get(connection, name)).phase


async def waits_for(server: Server, name: KeyName) -> str:
    async with server.database.connection() as connection:
        return "; ".join((await key_rotation.get(connection, name)).waits_for)


async def pass_time(database: Database, name: KeyName, seconds: float) -> None:
    """Let a rotation have begun earlier by so much."""
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE platform_keys SET used_from = used_from - make_interval(secs => $2) WHERE name = $1", name, seconds
        )


@pytest.mark.parametrize(
    ("name", "kept_s", "why"),
    [
        (KeyName.PAGE, 0.0, ""),
        (KeyName.SEAL, 600.0, "logins that started earlier are possible until"),
        (KeyName.FACTOR, 60.0, "secrets that a server was sealing at that moment are possible until"),
        (KeyName.IDEMPOTENCY, 86_400.0, "repeats of earlier requests are possible until"),
    ],
)
async def test_a_key_is_rotated_on_all_servers_without_a_moment_in_which_they_disagree(
    servers: tuple[Server, Server], name: KeyName, kept_s: float, why: str
) -> None:
    first, second = servers
    before = first.keys.ring.derive(name, PURPOSE)
    assert second.keys.ring.derive(name, PURPOSE) == before
    others = [other for other in KeyName if other not in (name, KeyName.CA)]
    beside = [first.keys.ring.derive(other, PURPOSE) for other in others]
    await rotate(first, name)
    with pytest.raises(Conflict, match="being rotated already"):
        await rotate(second, name)
    assert await phase(first, name) is KeyPhase.SPREADING
    with pytest.raises(Conflict, match="is still needed: servers load generation 2"):
        await finish(first, name, force=True)
    for server in servers:
        await server.keys.load()
        assert server.keys.ring.derive(name, PURPOSE) == before, "not used before all know it"
    await pass_time(first.database, name, 11)
    await first.keys.load()  # the second one has not looked yet
    new = first.keys.ring.derive(name, PURPOSE)
    assert new != before and new in second.keys.ring.accepted(name, PURPOSE)
    assert before in first.keys.ring.accepted(name, PURPOSE)
    if why:
        assert why in await waits_for(first, name)
        with pytest.raises(Conflict, match=why):
            await finish(first, name)
        await pass_time(first.database, name, kept_s)
    await finish(first, name)
    await finish(first, name)  # repeated
    assert await phase(first, name) is KeyPhase.STEADY
    for server in servers:
        await server.keys.load()
        assert server.keys.ring.accepted(name, PURPOSE) == [new]
    assert [first.keys.ring.derive(other, PURPOSE) for other in others] == beside, "each key is independent"
    restarted = await KeyFollower.open(first.database, first.state, pki.Authority.open(first.state))
    assert restarted.ring.accepted(name, PURPOSE) == [new]


async def test_a_repeated_request_is_recognized_whichever_generation_recognizes_it(database: Database) -> None:
    async with database.transaction() as connection:
        await idempotency.claim(connection, idempotency.KeyClaim("t", "k", b"new", (b"old",)))
        await idempotency.settle(
            connection, idempotency.KeyClaim("t", "k", b"new"), idempotency.StoredAnswer(200, b"1", {})
        )
    for claim in (idempotency.KeyClaim("t", "k", b"new"), idempotency.KeyClaim("t", "k", b"old", (b"new",))):
        async with database.transaction() as connection:
            answer = await idempotency.claim(connection, claim)
            assert answer is not None and answer.body == b"1"
    with pytest.raises(IdempotencyMismatch):
        async with database.transaction() as connection:
            await idempotency.claim(connection, idempotency.KeyClaim("t", "k", b"newer", (b"older",)))


async def connect(database: Database, name: str, trusts: Callable[[], tuple[str, ...]], authority: str) -> None:
    async with database.transaction() as connection:
        await nodes.connected(connection, name, INVENTORY)
        await nodes.certified(connection, name, 4e9, authority)
        await nodes.trusting(connection, name, trusts())


async def test_the_ca_is_rotated_once_all_trust_the_new_one_and_dropped_once_nothing_hangs_on_the_old_one(
    servers: tuple[Server, Server],
) -> None:
    first, second = servers
    database, old = first.database, first.authority.marks[0]
    seals = {(server.state / SEAL_FILE).read_bytes() for server in servers}
    assert len(seals) == 1
    async with database.transaction() as connection:
        for name in ("here", "away"):
            await identities.join(connection, name, f"key of {name}")
    for name in ("here", "away"):
        await connect(database, name, lambda: (old,), old)
    async with database.transaction() as connection:
        await connection.execute("UPDATE nodes SET status = status || '{\"ready\": false}' WHERE name = 'away'")
    await rotate(first, KeyName.CA)
    await first.step()
    assert len(first.authority.marks) == 2 and first.authority.marks[0] == old, "trusted, and does not issue yet"
    new = first.authority.marks[1]
    said = await waits_for(first, KeyName.CA)
    assert "server 127.0.0.1:8443" in said and "node here does not trust the new CA yet" in said
    assert "away" not in said
    await second.step()
    await first.step()
    assert await phase(first, KeyName.CA) is KeyPhase.SPREADING, "a node does not trust it yet"
    await connect(database, "here", lambda: (old, new), old)
    await first.step()
    assert await phase(first, KeyName.CA) is KeyPhase.OVERLAPPING
    for server in servers:
        await server.step()
        assert server.authority.marks == (new, old), "it issues to nodes"
        assert server.server_issuer() == old, "clients that trust the old CA only are still answered"
        restarted = pki.Authority.open(server.state)
        restarted.issue_server(server.state, ["127.0.0.1"])
        assert server.server_issuer() == old, "also after a restart"
    with pytest.raises(Conflict, match="node here has a certificate of the previous CA"):
        await finish(first, KeyName.CA)
    await connect(database, "here", lambda: (new, old), new)
    with pytest.raises(Conflict, match=r"node away is not connected .* novacron agent --rejoin"):
        await finish(first, KeyName.CA)
    await finish(first, KeyName.CA, force=True)
    await first.step()
    assert first.server_issuer() == new and first.authority.marks == (new, old), "the other server is not so far"
    for _ in range(2):
        for server in reversed(servers):
            await server.step()
    assert await phase(first, KeyName.CA) is KeyPhase.STEADY
    for server in servers:
        await server.step()
        assert server.authority.marks == (new,) and server.server_issuer() == new
        assert not (server.state / "ca-before.key").exists()
    assert {(server.state / SEAL_FILE).read_bytes() for server in servers}.isdisjoint(seals)
    assert len((first.state / SEAL_FILE).read_bytes().split()) == 1
    third = Server(database, first.state.with_name("c"), 9443)  # whoever has the old CA's key can't open the new one
    with pytest.raises(InvalidInput, match=r"can't be opened with .*seal\.key"):
        await third.begin()
    pki.write_secret(third.state / SEAL_FILE, (first.state / SEAL_FILE).read_bytes())
    await third.begin()
    assert third.authority.marks == (new,), "the seal is all that another server needs"


async def test_keys_that_cannot_be_opened_are_replaced_only_if_that_is_said(
    servers: tuple[Server, Server], tmp_path: Path
) -> None:
    first, _ = servers
    stranger = Server(first.database, tmp_path / "stranger", 9443)
    with pytest.raises(InvalidInput, match=r"copy seal\.key, ca.key and ca.crt from another server"):
        await stranger.begin()
    assert not (stranger.state / SEAL_FILE).exists(), "a wrong file would be in the way of the right one"
    kept = await KeyFollower.begin(first.database, first.state, first.authority, renew=True)
    assert kept.ring.derive(KeyName.PAGE, PURPOSE) == first.keys.ring.derive(KeyName.PAGE, PURPOSE)
    renewed = await KeyFollower.begin(first.database, stranger.state, stranger.authority, renew=True)
    assert renewed.ring.derive(KeyName.PAGE, PURPOSE) != first.keys.ring.derive(KeyName.PAGE, PURPOSE)


async def test_a_ca_whose_end_is_near_is_renewed_by_every_server_for_the_same_key(
    database: Database, tmp_path: Path
) -> None:
    pki.Authority.open(tmp_path / "a", lambda: time.time() - pki.CA_DAYS * DAY_S * 0.9)
    server = Server(database, tmp_path / "a", 7443)
    marks, ends_at_s = server.authority.marks, pki.expires_at_s(server.authority.pem)
    assert ends_at_s < time.time() + 2 * 365 * DAY_S
    await server.begin()
    for _ in range(2):  # what the database has of it ends earlier, and does not come back
        await server.step()
        assert pki.expires_at_s(server.authority.pem) > time.time() + (pki.CA_DAYS - 1) * DAY_S
    assert server.authority.marks == marks
    assert await phase(server, KeyName.CA) is KeyPhase.STEADY
