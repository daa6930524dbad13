"""The agent link over real sockets: what one side can't take costs neither side the link."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import websockets
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from lab.ports import free_ports
from lab.replicas import serving
from novacron import pki
from novacron.agent import identity as identities
from novacron.agent.control.link import SKIPPED, LinkClient, Renamed
from novacron.agent.identity import Identity
from novacron.client import Client
from novacron.key_ring import KeyRing
from novacron.model.errors import Unavailable
from novacron.model.node import Accelerator, AcceleratorKind, Inventory
from novacron.model.token import decode_ticket
from novacron.model.volume import Pool, PoolKind
from novacron.server.link import LinkServer
from novacron.server.session import NodeSession
from novacron.store.database import Database
from novacron.wire import codec
from novacron.wire import messages as wire
from novacron.wire.base import REFUSED
from tests.support.stored_fleet import add_node
from tests.waiting import eventually

INVENTORY = Inventory(
    cpus=2, memory_mib=4096, architecture="x86_64", kernel="6.1", qemu_version="7.2",
    accelerator=Accelerator(AcceleratorKind.TCG, ""), images=(), bridge=None, dwcp_endpoint="127.0.0.1:1",
    agent_version="0", pools=(Pool("local", PoolKind.LOCAL, 1 << 30, 1 << 30),),
)  # fmt: skip


class Server:
    """A control plane that says what the test tells it to."""

    def __init__(self, directory: Path) -> None:
        self.authority = pki.Authority.open(directory / "server")
        self._certificate = self.authority.issue_server(directory / "server", ["127.0.0.1"])
        self._ca = directory / "server" / "ca.crt"
        self.connected: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self.heard: asyncio.Queue[wire.Message] = asyncio.Queue()
        self.url = ""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        context = pki.mutual_tls(self._ca, *self._certificate, server=True)
        async with serve(self._serve, "127.0.0.1", 0, ssl=context, compression=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            self.url = f"https://127.0.0.1:{port}"
            yield

    async def _serve(self, link: ServerConnection) -> None:
        self.connected.put_nowait(link)
        with contextlib.suppress(websockets.ConnectionClosed):
            async for raw in link:
                assert isinstance(raw, bytes)
                self.heard.put_nowait(codec.decode_from_agent(raw))

    def identity(self, directory: Path) -> Identity:
        key = pki.new_key()
        pki.write_secret(directory / "node.key", pki.key_pem(key))
        pki.write_secret(directory / "ca.crt", self.authority.pem)
        certificate = self.authority.issue_node(pki.certificate_request(key, "host-a"), "host-a")
        pki.write_secret(directory / "node.crt", certificate)
        return Identity(directory, self.url, "host-a")

    async def hears(self, type: type[wire.Message]) -> wire.Message:
        while not isinstance(message := await self.heard.get(), type):
            pass
        return message


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path)
    async with server.listening():
        yield server


class Node:
    """An agent's end of the link."""

    def __init__(self, identity: Identity, receive: Callable[[wire.Message], None] | None = None) -> None:
        self.taken: asyncio.Queue[wire.Message] = asyncio.Queue()
        self.identity = identity
        self.link = LinkClient(
            identity, lambda: wire.Hello(wire.PROTOCOL, INVENTORY, ()), receive or self.taken.put_nowait, lambda: None,
            lambda: wire.Heartbeat(1, 0, 0.0, ()), lambda: None,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.link.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_an_agent_skips_undecodable_messages_and_handles_the_next(server: Server, tmp_path: Path) -> None:
    before = SKIPPED.cell("undecodable")[0]
    node = Node(server.identity(tmp_path / "node"))
    async with asyncio.timeout(30), node.running():
        link = await server.connected.get()
        for raw in (b"\xc1", msgspec.msgpack.encode({"type": "fromthefuture"}), b""):
            await link.send(raw)
        await link.send("text, where bytes should be")
        await link.send(codec.encode(wire.Beaten(7)))
        assert await node.taken.get() == wire.Beaten(7)
        assert SKIPPED.cell("undecodable")[0] - before == 4
        assert server.connected.empty(), "it is the same connection"


async def test_a_defect_with_one_message_costs_neither_the_link_nor_the_next_message(
    server: Server, tmp_path: Path
) -> None:
    taken: asyncio.Queue[int] = asyncio.Queue()

    def receive(message: wire.Message) -> None:
        assert isinstance(message, wire.Beaten)
        if message.number == 1:
            raise KeyError("a defect")
        taken.put_nowait(message.number)

    async with asyncio.timeout(30), Node(server.identity(tmp_path / "node"), receive).running():
        link = await server.connected.get()
        for number in (1, 2):
            await link.send(codec.encode(wire.Beaten(number)))
        assert await taken.get() == 2
        assert server.connected.empty()


async def test_a_message_that_a_thread_sends_arrives_at_once(server: Server, tmp_path: Path) -> None:
    node = Node(server.identity(tmp_path / "node"))
    async with asyncio.timeout(30), node.running():
        await server.hears(wire.Heartbeat)  # the next one is seconds away: nothing else wakes the link
        await asyncio.to_thread(node.link.send, wire.Removed("vm-1"))
        async with asyncio.timeout(1.5):
            assert await server.hears(wire.Removed) == wire.Removed("vm-1")


async def test_a_link_that_keeps_breaking_is_retried_with_growing_pauses(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("novacron.agent.control.link.random.uniform", lambda _low, _high: 1.0)
    paused = asyncio.sleep

    async def note(pause_s: float) -> None:
        if pause_s < 3:  # not those between heartbeats
            pauses.append(round(pause_s, 3))
            await paused(0)
        else:
            await paused(pause_s)

    monkeypatch.setattr("novacron.agent.control.link.asyncio.sleep", note)
    async with asyncio.timeout(30), Node(server.identity(tmp_path / "node")).running():
        for _ in range(4):
            (await server.connected.get()).transport.abort()
        while len(pauses) < 4:
            await paused(0.01)
    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]


async def test_an_agent_that_is_refused_says_why_and_asks_ever_later(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, str, float]] = []
    slept: list[float] = []
    monkeypatch.setattr("novacron.agent.control.link.random.uniform", lambda _low, _high: 1.0)
    monkeypatch.setattr(
        "novacron.agent.control.link.log.error",
        lambda text, **about: said.append((text, about["reason"], about["retry_s"])),
    )
    paused = asyncio.sleep

    async def note(pause_s: float) -> None:
        is_retry = len(said) > len(slept) and said[len(slept)][2] == pause_s
        if is_retry:
            slept.append(pause_s)
        await paused(0 if is_retry else pause_s)

    monkeypatch.setattr("novacron.agent.control.link.asyncio.sleep", note)
    async with asyncio.timeout(30), Node(server.identity(tmp_path / "node")).running():
        for _ in range(8):
            await (await server.connected.get()).close(code=REFUSED, reason="this node was removed")
        while len(slept) < 8:
            await paused(0.01)
    assert slept == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    assert said[0] == ("the server refuses this node", "this node was removed", 5.0)


async def test_an_agent_with_another_name_starts_afresh(server: Server, tmp_path: Path) -> None:
    node = Node(server.identity(tmp_path / "node"))
    async with asyncio.timeout(30), node.running() as task:
        link = await server.connected.get()
        await link.send(codec.encode(wire.Rename("host-b")))
        request = await server.hears(wire.RenewCertificate)
        assert isinstance(request, wire.RenewCertificate)
        certificate = server.authority.issue_node(request.csr, "host-b")
        await link.send(codec.encode(wire.CertificateIssued(certificate)))
        with pytest.raises(Renamed):
            await task


class NoDatabase:
    """Stands in where nothing gets as far as the database."""

    def connection(self) -> None:
        raise Unavailable("there is no database")

    transaction = connection


UNREACHABLE = wire.Hello(wire.PROTOCOL, msgspec.structs.replace(INVENTORY, dwcp_endpoint="nonsense" * 50), ())
SPOKEN = f"this server speaks protocol {wire.PROTOCOL}"
FIRST_MESSAGES = (
    (b"\xc1", SPOKEN),
    (msgspec.msgpack.encode({"type": "fromthefuture"}), SPOKEN),
    (codec.encode(wire.Removed("vm-1")), SPOKEN),
    (codec.encode(UNREACHABLE), "dwcp_endpoint: 'nonsense"),
)


async def test_a_first_message_that_no_node_may_send_is_answered_with_the_reason_and_ends_that_link_alone(
    server: Server, tmp_path: Path
) -> None:
    links = LinkServer(cast(Database, NoDatabase()), server.authority, KeyRing.first(b"root"))
    identity = server.identity(tmp_path / "node")
    ca = tmp_path / "server" / "ca.crt"
    context = pki.mutual_tls(ca, ca.with_name("server.crt"), ca.with_name("server.key"), server=True)
    (port,) = free_ports(1)
    with capture_logs() as logged:
        await refused_each(links, port, context, identity)
    refused = [line["reason"] for line in logged if line["event"] == "an agent is refused"]
    assert refused == [SPOKEN], "said once, however often that agent comes"


async def test_what_an_agent_says_that_it_knows_is_remembered(
    server: Server, tmp_path: Path, database: Database
) -> None:
    async with database.transaction() as connection:
        await add_node(connection, "a")
    for knows in (False, True):
        links = LinkServer(database, server.authority, KeyRing.first(b"root"))
        session = NodeSession("a", cast(Any, None))
        await links._welcome(session, wire.Hello(wire.PROTOCOL, INVENTORY, (), knows_unreadable=knows))
        assert session.knows_unreadable is knows


async def refused_each(links: LinkServer, port: int, context: ssl.SSLContext, identity: Identity) -> None:
    """Connect with each of ``FIRST_MESSAGES``, which is answered with the reason."""
    async with asyncio.timeout(30), links.listen("127.0.0.1", port, context):
        for first, reason in FIRST_MESSAGES:
            async with connect(
                f"wss://127.0.0.1:{port}", ssl=identity.tls(server=False), compression=None, proxy=None
            ) as agent:
                await agent.send(first)
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await agent.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == REFUSED and closed.value.rcvd.reason.startswith(reason)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving() as running_server:
        yield running_server.client


@contextlib.asynccontextmanager
async def connected(
    client: Client, directory: Path, name: str, *, accept: bool = True, boot: str = ""
) -> AsyncIterator[ClientConnection]:
    """Connect to a real server as a node does that has just joined."""
    ticket = decode_ticket(await asyncio.to_thread(client.join_token, name, 3600, accept))
    identity = await asyncio.to_thread(identities.join, directory, ticket, name)
    url = identity.link_url.replace("https://", "wss://")
    async with connect(url, ssl=identity.tls(server=False), compression=None, proxy=None) as link:
        await link.send(codec.encode(wire.Hello(wire.PROTOCOL, INVENTORY, (), boot=boot)))
        yield link


async def refused_with(identity: Identity, boot: str) -> str:
    """Connect as a node's agent on a host that was booted at another time; return why the server ends that."""
    url = identity.link_url.replace("https://", "wss://")
    async with connect(url, ssl=identity.tls(server=False), compression=None, proxy=None) as link:
        await link.send(codec.encode(wire.Hello(wire.PROTOCOL, INVENTORY, (), boot=boot)))
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await link.recv()
    assert link.close_code == REFUSED
    return str(link.close_reason)


async def test_a_copy_of_a_node_on_another_host_is_refused_while_the_node_is_heard(
    client: Client, tmp_path: Path
) -> None:
    async with asyncio.timeout(30), connected(client, tmp_path, "host-twice", boot="first") as link:
        await link.send(codec.encode(wire.Heartbeat(1, 0, 0.0, ())))
        assert await acknowledged(link) == 1
        identity = identities.load(tmp_path)
        assert identity is not None
        assert "now works on another host" in await refused_with(identity, "second")
        await link.send(codec.encode(wire.Heartbeat(2, 1, 0.0, ())))
        assert await acknowledged(link) == 2, "it stays connected"
    said = await asyncio.to_thread(lambda: list(client.list("events", object="host-twice")))
    assert [event["reason"] for event in said].count("TwoHosts") == 1


async def acknowledged(link: ClientConnection) -> int:
    """Return the number of the next heartbeat that is acknowledged."""
    while True:
        message, _ = codec.decode_from_server(await link.recv(decode=False))
        if isinstance(message, wire.Beaten):
            return message.number


async def test_a_server_skips_undecodable_messages_and_handles_the_next(client: Client, tmp_path: Path) -> None:
    async with asyncio.timeout(30), connected(client, tmp_path, "host-odd") as link:
        removal = codec.encode(wire.Removed("vm-1"))
        for raw in (b"\xc1", msgspec.msgpack.encode({"type": "fromthefuture"}), removal[:-2]):
            await link.send(raw)
        await link.send("text, where bytes should be")
        await link.send(codec.encode(wire.Heartbeat(1, 0, 0.0, ())))
        assert await acknowledged(link) == 1
    assert 'novacron_link_skipped_messages_total{reason="undecodable"} 4' in client.metrics()


async def test_a_report_that_cannot_be_stored_costs_neither_the_link_nor_the_next_report(
    client: Client, tmp_path: Path
) -> None:
    async with asyncio.timeout(30), connected(client, tmp_path, "host-faulty") as link:
        await link.send(codec.encode(wire.RenewCertificate(b"no request")))
        await link.send(codec.encode(wire.Hello(wire.PROTOCOL, INVENTORY, ())))  # said once, and not now
        await link.send(codec.encode(wire.InventoryChanged(UNREACHABLE.inventory)))
        for key in (pki.new_key(), pki.load_key(tmp_path / "node.key")):  # only the latter is the node's
            await link.send(codec.encode(wire.RenewCertificate(pki.certificate_request(key, "host-faulty"))))
        while True:
            message, _ = codec.decode_from_server(await link.recv(decode=False))
            if isinstance(message, wire.CertificateIssued):
                break
        await link.send(codec.encode(wire.Heartbeat(1, 0, 0.0, ())))
        assert await acknowledged(link) == 1
    metrics = client.metrics()
    assert 'novacron_link_skipped_messages_total{reason="defect"} 3' in metrics
    assert 'novacron_link_skipped_messages_total{reason="refused"} 1' in metrics
    assert client.get("nodes", "host-faulty")["status"]["inventory"]["dwcp_endpoint"] == INVENTORY.dwcp_endpoint


async def test_what_a_host_has_counts_once_it_is_accepted(client: Client, tmp_path: Path) -> None:
    async def pools() -> list[str] | None:
        node = await asyncio.to_thread(client.get, "nodes", "host-new")
        return [pool["name"] for pool in node["status"]["inventory"]["pools"]] if node["status"]["ready"] else None

    async def is_connected() -> bool:
        return await pools() == []

    async with asyncio.timeout(60), connected(client, tmp_path, "host-new", accept=False):
        await eventually(is_connected, "it is connected, and nothing that it has counts", 30)
        accepted = await asyncio.to_thread(client.act, "nodes", "host-new", "accept")
        assert not accepted["spec"]["cordoned"] and accepted["spec"]["accepted"]
        await eventually(pools, "its pools count", 30)


async def test_a_node_is_told_within_seconds_that_another_was_removed(client: Client, tmp_path: Path) -> None:
    ticket = decode_ticket(await asyncio.to_thread(client.join_token, "host-gone", 3600, True))
    gone = await asyncio.to_thread(identities.join, tmp_path / "gone", ticket, "host-gone")
    key = pki.authority_hash(gone.certificate.read_bytes())
    async with asyncio.timeout(60), connected(client, tmp_path / "told", "host-told") as link:
        await link.send(codec.encode(wire.Heartbeat(1, 0, 0.0, ())))
        assert await acknowledged(link) == 1
        await asyncio.to_thread(client.delete, "nodes", "host-gone")
        while True:
            message, _ = codec.decode_from_server(await link.recv(decode=False))
            if isinstance(message, wire.Revoked) and key in message.keys:
                break
