"""How soon what was begun with a right ends once the right is taken away (``script/bench api --only rights``)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import secrets
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import asyncpg
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from bench.api_load import Stand
from bench.report import Figure
from lab.platform import until
from novacron import pki
from novacron.agent import identity
from novacron.agent.control.link import LinkClient
from novacron.agent.host.revoked_keys import RevokedKeys
from novacron.client import Client
from novacron.dwcp import frames
from novacron.dwcp.admittance import Admittance
from novacron.dwcp.frames import Frame, FrameType
from novacron.dwcp.listener import Listener
from novacron.model.node import Accelerator, AcceleratorKind, Inventory
from novacron.model.token import decode_ticket
from novacron.wire import messages as wire

END_S_MAX = 1.0
"""From the request that takes a right away to the end of what was begun with it."""
REMOVED_S_MAX = 5.0
"""From the request that removes a node to the end of its connections with the others."""
WAIT_S_MAX = 60.0
BEGUN_S = 0.5
"""Until what was sent is being worked on: waiting for a node, or for the rest of a body."""
PIECE_BYTES = 1 << 20


class _Member:
    """A member of the default project, and ways to take their rights away."""

    def __init__(self, client: Client) -> None:
        self.name = f"leaves-{secrets.token_hex(4)}"
        self._client = client
        client.create_user(self.name, kind="service")
        self._grant = client.grant(self.name, "member", "default")["id"]
        token = client.create_token(self.name, user=self.name)
        self._token, self.secret = token["id"], token["secret"]

    def disable(self) -> None:
        self._client.request("PATCH", f"/api/v1/users/{self.name}", {"disabled": True})

    def take_role(self) -> None:
        self._client.request("DELETE", f"/api/v1/grants/{self._grant}")

    def revoke(self) -> None:
        self._client.request("DELETE", f"/api/v1/tokens/{self._token}")


LOSSES: tuple[Callable[[_Member], None], ...] = (_Member.disable, _Member.take_role, _Member.revoke)


class _Asked(NamedTuple):
    """What a member begins: paths of this server's."""

    port: int
    tls: ssl.SSLContext
    secret: str

    @property
    def url(self) -> str:
        return f"wss://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def _request(asked: _Asked, line: str, *headers: str, body: bytes = b"") -> AsyncIterator[Awaitable[object]]:
    """Send a request, or some of it; yield what ends when its connection does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", asked.port, ssl=asked.tls)
    lines = [f"{line} HTTP/1.1", "Host: nova", f"Authorization: Bearer {asked.secret}", "Connection: close", *headers]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()
    try:
        yield _over(reader)
    finally:
        writer.transport.abort()


async def _over(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(65536):
            pass


@contextlib.asynccontextmanager
async def _socket(asked: _Asked, path: str, *, token: bool) -> AsyncIterator[Awaitable[object]]:
    """Open a WebSocket; yield what ends when it is closed."""
    headers = {"Authorization": f"Bearer {asked.secret}"} if token else {}
    async with connect(asked.url + path, ssl=asked.tls, additional_headers=headers) as socket:

        async def closed() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await socket.recv()

        yield closed()


async def _one_loss(asked: _Asked, targets: dict[str, str], lose: Callable[[], None]) -> dict[str, float]:
    """Begin everything, take the right away, and return after how many seconds each has ended."""
    upload = f"Content-Length: {PIECE_BYTES}"
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        begun = {
            "console": await enter(_socket(asked, targets["console"], token=False)),
            "watch": await enter(_socket(asked, "/api/v1/watch", token=True)),
            "event stream": await enter(_request(asked, "GET /api/v1/events", "Accept: text/event-stream")),
            "upload": await enter(_request(asked, f"PUT {targets['upload']}", upload, body=bytes(PIECE_BYTES // 2))),
            "export": await enter(_request(asked, f"GET {targets['export']}")),
            "download from a guest": await enter(_request(asked, f"GET {targets['download']}")),
        }
        tasks = {what: asyncio.ensure_future(ends) for what, ends in begun.items()}
        await asyncio.sleep(BEGUN_S)
        if early := [what for what, task in tasks.items() if task.done()]:
            raise RuntimeError(f"over before the right was taken away: {early}")
        began, took = time.monotonic(), dict[str, float]()

        def note(what: str, _ended: asyncio.Future[object]) -> None:
            took[what] = time.monotonic() - began

        for what, task in tasks.items():
            task.add_done_callback(functools.partial(note, what))
        await asyncio.to_thread(lose)
        async with asyncio.timeout(WAIT_S_MAX):
            await asyncio.gather(*tasks.values())
        await asyncio.sleep(0)
    return took


async def _targets(stand: Stand, asked: _Asked) -> dict[str, str]:
    """Return the paths of what a member begins. Nodes here answer no questions: what asks one goes on."""
    client = Client(stand.client.config._replace(token=asked.secret))
    vm = next(iter(client.list("vms", limit=1)))
    ticket = client.request("POST", f"/api/v1/vms/{vm['id']}/actions/open-console")
    name = f"image-{secrets.token_hex(4)}"
    upload = stand.client.request("POST", "/api/v1/imports?project=default", {"name": name, "size_bytes": PIECE_BYTES})
    export = f"export-{secrets.token_hex(8)}"
    connection = await asyncpg.connect(stand.postgres.url)
    try:
        await connection.execute(
            "INSERT INTO exports (id, vm, vm_name, node, spec, phase, size_bytes, disk_bytes, sha256)"
            " SELECT $1, id, name, node, spec, 'ready', 8, 8, $3 FROM vms WHERE id = $2",
            export, vm["id"], "0" * 64,
        )  # fmt: skip
    finally:
        await connection.close()
    until(lambda: any(item["id"] == export for item in client.list("exports")), "the server knows of the export", 30)
    return {
        "console": ticket["path"],
        "upload": f"/api/v1/imports/{upload['id']}/data?offset=0",
        "export": f"/api/v1/exports/{export}/data?offset=0",
        "download": f"/api/v1/vms/{vm['id']}/file?path=/etc/hostname",
        "import": f"/api/v1/imports/{upload['id']}",
    }


class _Node:
    """A node with nothing but the real link to the server, and real DWCP connections."""

    def __init__(self, who: identity.Identity, directory: Path) -> None:
        self._who = who
        self.revoked = RevokedKeys(directory / "revoked.json", Admittance(pki.peer_key_hash))
        self.told = asyncio.Event()
        self.listener = Listener(who.tls(server=True), pki.peer_name, self.revoked.admittance)
        self._numbers = itertools.count(1)
        self._began = time.monotonic()
        self._link = LinkClient(who, self._hello, self._receive, lambda: None, self._beat, lambda: None)

    async def run(self) -> None:
        await self._link.run()

    def _hello(self) -> wire.Hello:
        inventory = Inventory(
            cpus=1, memory_mib=1024, architecture="x86_64", kernel="6.1", qemu_version="7.2",
            accelerator=Accelerator(AcceleratorKind.KVM, ""), images=(), bridge=None, dwcp_endpoint="127.0.0.1:1",
            agent_version="0",
        )  # fmt: skip
        return wire.Hello(wire.PROTOCOL, inventory, ())

    def _beat(self) -> wire.Heartbeat:
        return wire.Heartbeat(next(self._numbers), 0, time.monotonic() - self._began, (), clock=time.time())

    def _receive(self, message: wire.Message) -> None:
        if isinstance(message, wire.Revoked):
            self.revoked.tell(message.keys)
            self.told.set()


def _join(client: Client, directory: Path) -> identity.Identity:
    name = f"leaves-{secrets.token_hex(4)}"
    return identity.join(directory / name, decode_ticket(client.join_token(name, accept=True)), name)


async def _removed_s(stand: Stand) -> float:
    """Remove a node that has a DWCP connection to another one; return after how many seconds that has ended."""
    directory = stand.directory / "rights"
    stays = await asyncio.to_thread(_join, stand.client, directory)
    leaves = await asyncio.to_thread(_join, stand.client, directory)
    node = _Node(stays, directory)
    running = asyncio.create_task(node.run())
    try:
        async with asyncio.timeout(WAIT_S_MAX), node.listener.listen("127.0.0.1", 0) as port:
            await node.told.wait()
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=leaves.tls(server=False), server_hostname=pki.node_host(stays.name)
            )
            writer.writelines(frames.encode(Frame(FrameType.VITALS)))
            await frames.read(reader)  # it is spoken with
            began = time.monotonic()
            await asyncio.to_thread(stand.client.delete, "nodes", leaves.name)
            await _over(reader)
            return time.monotonic() - began
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        stand.client.delete("nodes", stays.name)


async def _measure(stand: Stand, rounds: int) -> dict[str, list[float]]:
    took, ca = defaultdict[str, list[float]](list), stand.client.config.ca
    assert ca is not None
    tls = ssl.create_default_context(cadata=ca)
    for number in range(rounds):
        for lose in LOSSES:
            member = await asyncio.to_thread(_Member, stand.client)
            asked = _Asked(stand.ports[0], tls, member.secret)
            targets = await _targets(stand, asked)
            for what, seconds in (await _one_loss(asked, targets, functools.partial(lose, member))).items():
                took[what].append(seconds)
            stand.client.request("DELETE", targets["import"])
        took["removed"].append(await _removed_s(stand))
        print(f"rights: round {number + 1} of {rounds}", flush=True)
    return took


def rights_figures(stand: Stand, rounds: int) -> list[Figure]:
    """Take rights away by each way there is, while everything that lasts is under way."""
    took: dict[str, list[float]] = asyncio.run(_measure(stand, rounds))
    removed = took.pop("removed")
    return [
        *(Figure(f"a right is taken away: end of a {what}, the latest of {len(seconds)}", max(seconds), "s", END_S_MAX,
                 tuple(seconds)) for what, seconds in took.items()),
        Figure(f"a node is removed: end of its DWCP connections, the latest of {len(removed)}", max(removed), "s",
               REMOVED_S_MAX, tuple(removed)),
    ]  # fmt: skip
