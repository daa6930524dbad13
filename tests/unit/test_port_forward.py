"""TCP connections to guests: back-pressure both ways, their ends, and the command lines that use them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from novacron.agent.host.networks import GuestPlace
from novacron.agent.vm.port_forward import PortForwards
from novacron.cli.ssh import ssh_command
from novacron.flow_credit import PIECE_BYTES_MIN, TOLD_BYTES, WINDOW_BYTES, SendCredit, Taken
from novacron.model.console import ConsoleLine
from novacron.server.session import ConsoleChannel, NodeSession
from novacron.wire import codec
from novacron.wire import messages as wire
from tests.waiting import eventually

PIECE = bytes(64 * 1024)


async def test_a_sender_waits_while_a_window_is_on_its_way() -> None:
    credit = SendCredit()
    for _ in range(WINDOW_BYTES // len(PIECE)):
        await credit.wait()
        credit.spend(PIECE)
    waiting = asyncio.create_task(credit.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    credit.give_back(-1)
    await asyncio.sleep(0)
    assert not waiting.done(), "a negative amount made room"
    credit.give_back(1 << 60)
    await waiting
    for _ in range(WINDOW_BYTES // PIECE_BYTES_MIN):  # what was given back does not add up beyond the window
        await credit.wait()
        credit.spend(b"x")
    assert not credit._room.is_set()


def test_a_sender_is_told_before_its_window_is_used_up() -> None:
    taken = Taken()
    told = [due_bytes for _ in range(WINDOW_BYTES // PIECE_BYTES_MIN) if (due_bytes := taken.add(b"x"))]
    assert told == [TOLD_BYTES] * 4


class Link:
    """The link of a node, which keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[wire.Message] = []

    async def send(self, raw: bytes) -> None:
        self.sent.append(codec.decode_from_server(raw)[0])


async def test_input_waits_for_the_guest_and_not_for_ever() -> None:
    link = Link()
    channel = await NodeSession("a", cast(Any, link)).open_console("vm", ConsoleLine.SERIAL, 22)
    assert link.sent == [wire.ConsoleOpen(channel.number, "vm", port=22)]
    for _ in range(WINDOW_BYTES // len(PIECE)):
        await channel.write(PIECE)
    more = asyncio.create_task(channel.write(PIECE))
    await asyncio.sleep(0)
    assert not more.done()
    channel.take(len(PIECE))
    await more
    last = asyncio.create_task(channel.write(PIECE))
    await asyncio.sleep(0)
    channel.end("it is over")
    await last
    assert len([m for m in link.sent if isinstance(m, wire.ConsoleInput)]) == WINDOW_BYTES // len(PIECE) + 1


async def test_a_node_is_told_what_the_viewer_has_read() -> None:
    link = Link()
    channel: ConsoleChannel = await NodeSession("a", cast(Any, link)).open_console("vm", ConsoleLine.SERIAL, 22)
    for _ in range(TOLD_BYTES // len(PIECE)):
        channel.feed(PIECE)
        await channel.read()
    assert wire.ConsoleTaken(channel.number, TOLD_BYTES) in link.sent


class Forwards:
    """A node's connections to a server that stands for a guest, in this namespace and at this host's address."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, runs: bool = True) -> None:
        monkeypatch.setattr("novacron.agent.vm.port_forward.SERVICE", "lo")
        monkeypatch.setattr("novacron.agent.vm.port_forward.namespace.within", lambda _, work: work())
        self.sent: list[wire.Message] = []
        place = GuestPlace("netns", "127.0.0.1", "127.0.0.1")
        self.ports = PortForwards(lambda _: place if runs else None, self._send)

    async def _send(self, message: wire.Message) -> None:
        self.sent.append(message)

    def output(self) -> bytes:
        return b"".join(m.data for m in self.sent if isinstance(m, wire.ConsoleOutput))

    def reasons(self) -> list[str]:
        return [m.reason for m in self.sent if isinstance(m, wire.ConsoleClosed)]


@contextlib.asynccontextmanager
async def guest(serve: Any) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_bytes_go_both_ways_until_the_guest_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())  # to its end
        writer.close()

    forwards = Forwards(monkeypatch)
    async with guest(echo) as port:
        await forwards.ports.open(1, "vm", port)
        await forwards.ports.write(1, b"hello")
        await forwards.ports.write(1, b"")
        await eventually(lambda: forwards.reasons() == [wire.CLOSED], "the guest's end was told")
    assert forwards.output() == b"hello"


async def test_a_guest_that_sends_without_end_waits_for_its_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(PIECE)
                await writer.drain()

    forwards = Forwards(monkeypatch)
    async with guest(flood) as port:
        await forwards.ports.open(1, "vm", port)
        await eventually(lambda: len(forwards.output()) >= WINDOW_BYTES, "a window came")
        for _ in range(50):
            await asyncio.sleep(0)
        first = len(forwards.output())
        assert first < WINDOW_BYTES + len(PIECE)
        forwards.ports.take(1, TOLD_BYTES)
        await eventually(lambda: len(forwards.output()) >= first + TOLD_BYTES // 2, "more came")
        forwards.ports.close(1)
        await eventually(lambda: forwards.reasons() == [wire.CLOSED], "it is over")


async def test_it_is_said_why_a_port_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    forwards = Forwards(monkeypatch)
    await forwards.ports.open(1, "vm", port)
    assert "refused" in forwards.reasons()[0] and f"port {port}" in forwards.reasons()[0]
    off = Forwards(monkeypatch, runs=False)
    await off.ports.open(1, "vm", 22)
    assert "is not running" in off.reasons()[0]


def test_ssh_gets_one_command_and_no_option_from_what_is_run() -> None:
    command = ssh_command("vm-1", 2222, "admin", "key", ["ForwardAgent=yes"], ["ls", "-l", "a b"])
    assert command[:3] == ["ssh", "-o", "ForwardAgent=yes"]
    assert command[-5:] == ["--", "vm-1", "ls", "-l", "a b"]
    assert any(text.startswith("ProxyCommand=") and text.endswith("vm forward-port vm-1 2222") for text in command)
    assert "HostKeyAlias=novacron-vm-1" in command
