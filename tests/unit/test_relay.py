"""Worker processes and the process that has the agents' links: no call, console or frame takes the others' place."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from novacron.model.console import ConsoleLine
from novacron.model.errors import NovaError, Unavailable
from novacron.server import relay
from novacron.server.relay import Relay
from novacron.server.session import ConsoleChannel, NodeSession
from novacron.wire import codec
from novacron.wire import messages as wire
from novacron.wire.questions import SetLogLevel
from tests.waiting import eventually, pause_async


class Socket:
    """The link of a node that takes what it is sent, or, once ``stuck``, nothing."""

    def __init__(self) -> None:
        self.sent: list[wire.Message] = []
        self.stuck = False

    async def send(self, raw: bytes) -> None:
        message, _ = codec.decode_from_server(raw)
        self.sent.append(message)
        if self.stuck and isinstance(message, wire.ConsoleOpen):
            await asyncio.Event().wait()

    def closed(self) -> list[int]:
        return [message.channel for message in self.sent if isinstance(message, wire.ConsoleClose)]


class Node:
    """Stands for all agents: one node's session, and questions that are never answered."""

    def __init__(self) -> None:
        self.socket = Socket()
        self.session = NodeSession("a", cast(Any, self.socket))
        self.opened = asyncio.Event()
        self.asked = self.cancelled = 0

    async def connected(self) -> list[str]:
        return ["a"]

    async def open_console(self, node: str, vm: str, kind: ConsoleLine, port: int = 0) -> ConsoleChannel:
        channel = await self.session.open_console(vm, kind, port)
        self.opened.set()
        return channel

    async def ask(self, node: str, question: object) -> None:
        self.asked += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@asynccontextmanager
async def connected(node: Node) -> AsyncIterator[tuple[Relay, Path]]:
    """A worker's connection to the process with the links."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "relay"
        async with relay.listen(path, cast(Any, node)):
            worker = await Relay.open(path)
            try:
                async with asyncio.timeout(60):
                    yield worker, path
            finally:
                await worker.close()


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_consoles_that_viewers_closed_take_no_place_of_calls() -> None:
    node = Node()
    async with connected(node) as (worker, _):
        for _ in range(relay.CALLS_MAX + relay.CONSOLES_MAX + 1):
            console = await worker.open_console("a", "vm", ConsoleLine.SERIAL)
            reading = asyncio.create_task(console.read())
            await asyncio.sleep(0)
            await cancel(reading)
            await console.close()
        assert await worker.connected() == ["a"]
        await eventually(lambda: not node.session.channels, "the consoles are closed")
        assert len(node.socket.closed()) == relay.CALLS_MAX + relay.CONSOLES_MAX + 1


async def test_a_closed_console_ends_for_those_who_still_read_it() -> None:
    node = Node()
    async with connected(node) as (worker, _):
        console = await worker.open_console("a", "vm", ConsoleLine.SERIAL)
        reading = asyncio.create_task(console.read())
        await console.close()
        assert await reading is None
        assert await console.read() is None
        await console.write(b"nobody")


async def test_open_consoles_take_no_place_of_calls_and_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "CALLS_MAX", 2)
    monkeypatch.setattr(relay, "CONSOLES_MAX", 5)
    async with connected(Node()) as (worker, _):
        consoles = [await worker.open_console("a", "vm", ConsoleLine.SERIAL) for _ in range(5)]
        readings = [asyncio.create_task(console.read()) for console in consoles]
        await asyncio.sleep(0)
        assert await worker.connected() == ["a"]
        with pytest.raises(Unavailable, match="5 consoles are open"):
            await worker.open_console("a", "vm", ConsoleLine.SERIAL)
        await consoles[0].close()
        await worker.open_console("a", "vm", ConsoleLine.SERIAL)
        for reading in readings:
            await cancel(reading)


async def test_a_console_that_is_silent_for_long_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "READ_S_MAX", 0.01)
    node = Node()
    async with connected(node) as (worker, _):
        console = await worker.open_console("a", "vm", ConsoleLine.SERIAL)
        reading = asyncio.create_task(console.read())
        await eventually(lambda: len(worker._streams) == 1, "it is read")
        await pause_async(0.1)
        assert not reading.done()
        (channel,) = node.session.channels.values()
        channel.feed(b"login:")
        assert await reading == b"login:"
        channel.end("the VM has ended")
        assert await console.read() is None and console.reason == "the VM has ended"


async def test_a_console_whose_viewer_goes_while_it_is_opened_is_closed() -> None:
    node = Node()
    node.socket.stuck = True
    async with connected(node) as (worker, _):
        opening = asyncio.create_task(worker.open_console("a", "vm", ConsoleLine.SERIAL))
        await eventually(lambda: node.socket.sent, "the node is asked")
        await cancel(opening)
        await eventually(lambda: node.socket.closed() == [1] and not node.session.channels, "it is closed")
        assert not worker._consoles


async def test_a_console_whose_viewer_goes_just_when_it_is_open_is_closed() -> None:
    node = Node()
    async with connected(node) as (worker, _):
        opening = asyncio.create_task(worker.open_console("a", "vm", ConsoleLine.SERIAL))
        await node.opened.wait()
        await cancel(opening)
        await eventually(lambda: node.socket.closed() == [1] and not node.session.channels, "it is closed")


async def test_a_call_that_is_not_answered_ends_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "CALL_S_MAX", 0.05)
    node = Node()
    async with connected(node) as (worker, _):
        with pytest.raises(Unavailable, match="do not answer"):
            await worker.ask("a", SetLogLevel("debug"))
        await eventually(lambda: node.cancelled == node.asked, "nothing goes on")
        assert len(worker._calls) == 0


async def test_a_call_whose_caller_has_gone_is_ended() -> None:
    node = Node()
    async with connected(node) as (worker, _):
        for _ in range(2 * relay.CALLS_MAX):
            asking = asyncio.create_task(worker.ask("a", SetLogLevel("debug")))
            await asyncio.sleep(0)
            await cancel(asking)
        assert await worker.connected() == ["a"]
        await eventually(lambda: node.cancelled == node.asked, "nothing goes on")


async def test_a_call_that_cant_be_read_is_answered_and_ends_no_other() -> None:
    async with connected(Node()) as (worker, path):
        with capture_logs() as logged:
            reader, writer = await asyncio.open_unix_connection(path)
            for data in (b"\x93\x01\x91\xa4what\xa0", b"\x93\x02\x92\xadListConnected\xa1\xff\xa0"):
                writer.write(len(data).to_bytes(4, "big") + data)
                answer = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
                assert b"internal-error" in answer
        assert [line["event"] for line in logged].count("a call of a worker can't be read") == 2
        assert await worker.connected() == ["a"]
        writer.close()


@pytest.mark.parametrize("said", [b"\x00\x00\x00\x01\xc1", (relay.FRAME_BYTES_MAX + 1).to_bytes(4, "big")])
async def test_what_no_process_of_ours_says_is_logged_on_either_side(said: bytes) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()
        writer.close()

    with capture_logs() as logged:
        async with connected(Node()) as (_, path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(said)
            assert await reader.read() == b"", "its connection ends"
            writer.close()
        with tempfile.TemporaryDirectory() as directory:
            async with await asyncio.start_unix_server(lie, Path(directory) / "relay"):
                worker = await Relay.open(Path(directory) / "relay")
                asking = asyncio.create_task(worker.connected())
                async with asyncio.timeout(30):
                    await worker.gone.wait()
                    with pytest.raises(Unavailable):
                        await asking
                await worker.close()
    events = [line["event"] for line in logged if line["log_level"] == "error"]
    assert len(events) == 2 and all("can't be read" in event for event in events), events


async def test_an_answer_that_is_too_large_is_an_error_of_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "FRAME_BYTES_MAX", 10_000)
    node = Node()

    async def many() -> list[str]:
        return ["a" * 20_000]

    monkeypatch.setattr(node, "connected", many)
    async with connected(node) as (worker, _):
        with pytest.raises(NovaError, match="too large"):
            await worker.connected()
