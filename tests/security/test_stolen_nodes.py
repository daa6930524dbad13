"""A node in wrong hands: what it says, what it asks for, and what it can do after it was removed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from novacron import pki
from novacron.agent.host.revoked_keys import RevokedKeys
from novacron.dwcp import frames
from novacron.dwcp.admittance import Admittance
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.frames import Frame, FrameType
from novacron.dwcp.listener import CONNECTIONS_PER_PEER_MAX, Listener
from novacron.model import limits
from novacron.model.image import ImportPhase, ImportSpec, Source
from novacron.model.node import ImageInfo, Inventory
from novacron.model.vm import VmSpec
from novacron.server.handshakes import CONNECTIONS, GREETED_MAX, PER_KEY_MAX, Handshakes
from novacron.server.images import ImageUpkeep
from novacron.server.reader import SEEN_MAX
from novacron.store import identities, imports, new_vms, nodes, owned, projects
from novacron.store.database import Connection, Database
from novacron.wire import codec
from novacron.wire import messages as wire
from tests.security.test_claims import Hostile
from tests.support.dwcp import Ends
from tests.support.fleet import node
from tests.support.stored_fleet import add_node
from tests.waiting import eventually

SILENT_CONNECTIONS = 260
SILENT_LINKS = 40


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return Ends(tmp_path_factory.mktemp("ends"))


def key_of(ends: Ends, name: str) -> str:
    return pki.authority_hash((ends.directory / f"{name}.crt").read_bytes())


@contextlib.asynccontextmanager
async def asking(ends: Ends, name: str, port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to node b as another node."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=ends.tls(name, server=False), server_hostname=pki.node_host("b")
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def is_answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    try:
        writer.writelines(frames.encode(Frame(FrameType.VITALS)))
        return (await asyncio.wait_for(frames.read(reader), 30)).type is FrameType.VITALS
    except (OSError, asyncio.IncompleteReadError):
        return False


async def test_a_node_that_was_removed_loses_its_connections_and_gets_no_more(ends: Ends, tmp_path: Path) -> None:
    revoked = RevokedKeys(tmp_path / "revoked.json", Admittance(pki.peer_key_hash))
    revoked.tell([])
    listener = Listener(ends.tls("b", server=True), pki.peer_name, revoked.admittance)
    async with (
        listener.listen("127.0.0.1", 0) as port,
        asking(ends, "a", port) as gone,
        asking(ends, "c", port) as good,
    ):
        assert await is_answered(*gone) and await is_answered(*good)
        revoked.tell([key_of(ends, "a")])
        assert not await is_answered(*gone)
        async with asking(ends, "a", port) as again:
            assert not await is_answered(*again)
        assert await is_answered(*good)
        revoked.tell([])
        async with asking(ends, "a", port) as back:
            assert await is_answered(*back)


async def test_nobody_connects_to_a_node_that_was_removed(ends: Ends) -> None:
    admittance = Admittance(pki.peer_key_hash)
    listener = Listener(ends.tls("b", server=True), pki.peer_name)
    pool = ConnectionPool(lambda: ends.tls("a", server=False), admittance)
    async with listener.listen("127.0.0.1", 0) as port:
        endpoint, host = ("127.0.0.1", port), pki.node_host("b")
        idle = await pool.take(endpoint, host)
        pool.give(endpoint, host, idle)
        admittance.revoke([key_of(ends, "b")])
        with pytest.raises(ConnectionRefusedError, match="not one of a node"):
            await pool.take(endpoint, host)
        assert idle.lost
    pool.close()


async def stored(revoked: RevokedKeys) -> None:
    """Return once what was told is on the disk."""
    storing = asyncio.create_task(revoked.run())
    await eventually(lambda: revoked._unstored is None, "the list is stored")
    storing.cancel()
    await asyncio.gather(storing, return_exceptions=True)


async def test_an_agent_that_restarts_without_the_server_refuses_what_it_refused_before(
    ends: Ends, tmp_path: Path
) -> None:
    key = key_of(ends, "a")
    revoked = RevokedKeys(tmp_path / "revoked.json", Admittance(pki.peer_key_hash))
    revoked.tell([key])
    await stored(revoked)
    after = RevokedKeys(tmp_path / "revoked.json", Admittance(lambda _: key))
    assert not after.admittance.admits(cast(Any, None), cast(Any, None))


@pytest.mark.parametrize(
    "list_",
    [None, b"", b'["key', b"{}", b"\xff\xfe", b"[1]"],
    ids=["none", "empty", "cut", "other", "not-utf8", "numbers"],
)
async def test_an_agent_without_a_readable_list_of_revoked_keys_speaks_with_nobody_until_the_server_sent_it(
    tmp_path: Path, list_: bytes | None
) -> None:
    path = tmp_path / "revoked.json"
    if list_ is not None:
        path.write_bytes(list_)

    class Connection:
        def abort(self) -> None: ...

    revoked = RevokedKeys(path, Admittance(lambda _: "key"))
    assert not revoked.admittance.admits(cast(Any, None), Connection())
    revoked.tell(["another"])
    assert revoked.admittance.admits(cast(Any, None), Connection()), "it is not waited for"
    await stored(revoked)
    again = RevokedKeys(path, Admittance(lambda _: "key"))
    assert again.admittance.admits(cast(Any, None), Connection())


async def test_silent_connections_of_one_node_and_of_strangers_stop_no_other_node(ends: Ends) -> None:
    listener = Listener(ends.tls("b", server=True), pki.peer_name)
    async with contextlib.AsyncExitStack() as held, listener.listen("127.0.0.1", 0) as port:
        for _ in range(SILENT_CONNECTIONS):  # these do not even begin with TLS
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            held.callback(writer.transport.abort)
        for _ in range(SILENT_CONNECTIONS):
            await held.enter_async_context(asking(ends, "a", port))
        async with asking(ends, "c", port) as other:
            assert await is_answered(*other)
        await eventually(lambda: listener._by_peer["a"] <= CONNECTIONS_PER_PEER_MAX, "it has no more than one node may")


async def joined(connection: Connection, name: str, key: str, *, accepted: bool = True) -> None:
    await identities.join(connection, name, key, accepted=accepted)


async def test_keys_of_hosts_that_are_no_nodes_are_told_to_the_others(database: Database) -> None:
    async with database.transaction() as connection:
        for name, key in (("host-a", "key a"), ("host-b", "key b"), ("host-c", "key c")):
            await joined(connection, name, key)
        await joined(connection, "host-new", "key new", accepted=False)
        await nodes.forget(connection, "host-b", "ann", "removed")
        await joined(connection, "host-c", "key of another host")
        assert await identities.strange_keys(connection) == ["key b", "key c", "key new"]
        await nodes.accept(connection, "host-new", None, "ann")
        await joined(connection, "host-b", "key b")
        assert await identities.strange_keys(connection) == ["key c"]


def test_a_certificate_is_renewed_for_the_same_key_only(tmp_path: Path) -> None:
    authority, key = pki.Authority.open(tmp_path), pki.new_key()
    certificate = authority.issue_node(pki.certificate_request(key, "host-a"), "host-a")
    same = pki.authority_hash(certificate)
    assert pki.authority_hash(authority.issue_node(pki.certificate_request(key, "host-a"), "host-a", same)) == same
    with pytest.raises(ValueError, match="another key"):
        authority.issue_node(pki.certificate_request(pki.new_key(), "host-a"), "host-a", same)


def with_image(name: str, digest: str) -> Inventory:
    has = node("x").status.inventory
    assert has is not None
    return msgspec.structs.replace(has, images=(ImageInfo(name, digest, 1, "disk"),))


async def images_of(connection: Connection, name: str) -> list[str]:
    inventory = (await nodes.get(connection, name)).status.inventory
    return [] if inventory is None else [image.digest for image in inventory.images]


async def test_what_a_node_claims_as_an_imported_image_is_seen_by_nobody_and_blocks_nobody(database: Database) -> None:
    async with database.transaction() as connection:
        for name in ("host-a", "evil"):
            await joined(connection, name, f"key {name}")
            await nodes.connected(connection, name, with_image("tiny", "t"))
        begun = await imports.create(connection, "default", ImportSpec("web", Source.UPLOAD, "", 1), "host-a", "ann")
        await nodes.connected(connection, "evil", with_image("web", "false"))  # while it is on its way
        assert await images_of(connection, "evil") == []
        await nodes.connected(connection, "host-a", with_image("web", "true"))
        await imports.report(connection, "host-a", imports.ImportReport(begun.id, ImportPhase.DONE, 1, ""))
        await nodes.connected(connection, "evil", with_image("web", "false"))
    async with database.transaction() as connection:
        assert await images_of(connection, "evil") == [] and await images_of(connection, "host-a") == ["true"]
        assert (await nodes.get(connection, "evil")).status.foreign_images == ("web",)
        alarms = await connection.fetchval("SELECT count(*) FROM events WHERE reason = 'ForeignImage'")
        assert alarms == 1
        await nodes.connected(connection, "evil", with_image("web", "true"))  # a copy
        assert await images_of(connection, "evil") == ["true"]


async def test_a_name_that_nobody_imported_means_what_the_first_node_has_and_vms_keep_it(database: Database) -> None:
    async with database.transaction() as connection:
        for name in ("host-a", "host-b", "evil"):
            await joined(connection, name, f"key {name}")
        await joined(connection, "host-new", "key new", accepted=False)
        await nodes.connected(connection, "host-new", with_image("tiny", "of nobody"))
        await nodes.connected(connection, "host-a", with_image("tiny", "true"))
        await nodes.connected(connection, "evil", with_image("tiny", "false"))
        await nodes.connected(connection, "host-b", with_image("tiny", "true"))
        assert await images_of(connection, "evil") == [] and await images_of(connection, "host-b") == ["true"]
        making = await projects.making(connection, "default")
        await new_vms.create(connection, making, new_vms.NewVm("web", VmSpec(image="tiny"), node="host-a"), "ann")
        twice = msgspec.structs.replace(with_image("tiny", "false"), images=with_image("tiny", "false").images * 2)
        await nodes.connected(connection, "evil", twice)
        (vm,) = (await owned.all(connection, node="host-a")).rows
        assert vm.image_digest == "true", "its node is told which image it is made of"
        await nodes.connected(connection, "host-a", with_image("tiny", "new"))
        assert await images_of(connection, "host-a") == [], "while another node has the image, the name means that"
        await nodes.connected(connection, "host-b", with_image("tiny", "new"))
        assert await images_of(connection, "host-b") == ["new"], "nobody has the old one any more"
        (vm,) = (await owned.all(connection, node="host-a")).rows
        assert vm.image_digest == "true"


class _Copies:
    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []

    async def begin(self, name: str, source: str | None, target: str, actor: str) -> None:
        self.begun.append((name, target))


async def test_a_node_is_given_an_image_only_for_a_vm_that_is_placed_on_it(database: Database) -> None:
    copies = _Copies()
    upkeep = ImageUpkeep(database, cast(Any, None), cast(Any, copies))
    async with database.transaction() as connection:
        await joined(connection, "host-a", "key")
        await nodes.connected(connection, "host-a", with_image("tiny", "t"))
        making = await projects.making(connection, "default")
        await new_vms.create(connection, making, new_vms.NewVm("web", VmSpec(image="tiny"), node="host-a"), "ann")
    await upkeep._fetch("host-a", "secret")
    await upkeep._fetch("host-a", "tiny")
    assert copies.begun == [("tiny", "host-a")]


@contextlib.asynccontextmanager
async def hostile_fleet(database: Database, directory: Path, nodes_: Sequence[str]) -> AsyncIterator[Hostile]:
    async with database.transaction() as connection:
        for name in nodes_:
            await add_node(connection, name)
    hostile = Hostile(database, directory)
    async with asyncio.timeout(60), hostile.listening():
        yield hostile


async def test_links_of_one_node_that_say_nothing_are_few_and_keep_no_other_node_out(
    database: Database, tmp_path: Path
) -> None:
    async with hostile_fleet(database, tmp_path, ()) as hostile, contextlib.AsyncExitStack() as stack:
        evil, good = await hostile.join("evil"), await hostile.join("good")
        refused = CONNECTIONS.cell("refused")
        before = refused[0]
        for _ in range(SILENT_LINKS):
            _, writer = await asyncio.open_connection("127.0.0.1", hostile.port, ssl=evil.tls(server=False))
            stack.callback(writer.transport.abort)
        await eventually(lambda: refused[0] > before, "one that is too many was refused")
        async with hostile.connected(good, ()):
            pass


async def test_a_node_that_connects_again_and_again_takes_one_turn_of_those_that_nodes_have() -> None:
    handshakes, entered, end = Handshakes(), list[str](), asyncio.Event()
    assert [handshakes.begin("evil", number) for number in range(PER_KEY_MAX + 1)] == [True] * PER_KEY_MAX + [False]
    handshakes.end("evil", 0)
    assert handshakes.begin("evil", PER_KEY_MAX) and handshakes.begin("good", 0)

    async def greet(key: str) -> None:
        async with handshakes.greeting(key):
            entered.append(key)
            await end.wait()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for _ in range(GREETED_MAX):
            group.create_task(greet("evil"))
        for number in range(GREETED_MAX - 1):
            group.create_task(greet(f"good-{number}"))
        await eventually(lambda: len(entered) == GREETED_MAX, "the others have their turns")
        assert entered.count("evil") == 1
        end.set()
    assert entered.count("evil") == GREETED_MAX


async def test_what_a_node_says_of_nodes_that_it_does_not_watch_counts_for_nothing(
    database: Database, tmp_path: Path
) -> None:
    """Else one stolen node says of a dead one that it lives, and its VMs start nowhere."""
    names = [f"host-{number}" for number in range(2 * limits.WATCHED_BY + 2)]
    async with hostile_fleet(database, tmp_path, names) as hostile:
        evil = await hostile.join("evil")
        async with hostile.connected(evil, ()) as link:
            session = hostile.links._sessions["evil"]
            await eventually(lambda: session.watched, "it was told whom to watch")
            seen = tuple(wire.PeerSeen(name, silent=False) for name in names)
            assert len(seen) <= SEEN_MAX
            await link.send(codec.encode(wire.Heartbeat(1, 0, 0.0, (), seen)))
            told: wire.Message | None = None
            while not isinstance(told, wire.Beaten):
                told, _ = codec.decode_from_server(await link.recv(decode=False))
            async with database.connection() as connection:
                rows = await connection.fetch("SELECT node FROM node_signs WHERE seen_by = 'evil'")
            assert {row["node"] for row in rows} == session.watched < set(names)
