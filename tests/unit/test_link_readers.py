"""The readers of the link wait for nothing, and what meets a defect holds up nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sized
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from novacron.agent.control.consoles import AT_ONCE_MAX, INPUT_BYTES_MAX, ConsoleRequests
from novacron.agent.control.dispatch import Dispatcher, Parts
from novacron.agent.vm.journal import Record
from novacron.model import limits
from novacron.model.console import ConsoleLine
from novacron.model.errors import Unavailable
from novacron.model.ownership import Order, OrderKind
from novacron.model.vm import VmStatus
from novacron.server.reader import Reader, Takers
from novacron.server.session import ConsoleChannel, NodeSession
from novacron.supervise import Rarely
from novacron.wire import codec
from novacron.wire import messages as wire
from tests.support.agent import services_in
from tests.waiting import eventually


def statement(vm: str) -> wire.Statement:
    return wire.Statement(vm, Order(OrderKind.GONE, 1))


class Workers:
    """VMs' workers, of which some can't be had."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.stated: list[str] = []

    def add(self, vm: str, _: Record) -> Any:
        if vm in self.broken:
            raise ValueError("its record is damaged")
        return SimpleNamespace(finished=False, set_desired=lambda statement: self.stated.append(statement.vm))


async def test_a_failed_statement_for_one_vm_is_retried_and_delays_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("novacron.agent.control.dispatch.UNTAKEN_RETRY_S", 0.001)
    workers, none = Workers(), cast(Any, None)
    workers.broken.add("vm-1")
    parts = Parts(services_in(tmp_path), {}, workers.add, none, none, none, none, none)
    dispatcher = Dispatcher(parts, none)
    dispatcher.take(wire.Desired((statement("vm-1"), statement("vm-2")), whole=False))
    assert workers.stated == ["vm-2"]
    retrying = asyncio.create_task(dispatcher.retry())
    workers.broken.clear()
    await eventually(lambda: "vm-1" in workers.stated, "it is tried again")
    retrying.cancel()
    assert workers.stated == ["vm-2", "vm-1"]


class SlowConsoles:
    """Consoles of which none opens before it may."""

    def __init__(self) -> None:
        self.may_open = asyncio.Event()
        self.did: asyncio.Queue[object] = asyncio.Queue()

    async def open(self, channel: int, _vm: str, _kind: ConsoleLine) -> None:
        await self.may_open.wait()
        self.did.put_nowait(("open", channel))

    async def write(self, _channel: int, data: bytes) -> None:
        self.did.put_nowait(data)

    def close(self, channel: int) -> None:
        self.did.put_nowait(("close", channel))


async def test_a_console_that_opens_slowly_gets_its_input_in_order_and_delays_nobody() -> None:
    consoles, sent = SlowConsoles(), list[wire.Message]()
    requests = ConsoleRequests(cast(Any, consoles), cast(Any, consoles), sent.append)
    requests.open(wire.ConsoleOpen(1, "vm-1"))
    requests.write(1, b"a")
    requests.write(1, b"b")
    assert consoles.did.empty()
    consoles.may_open.set()
    async with asyncio.timeout(10):
        assert [await consoles.did.get() for _ in range(3)] == [("open", 1), b"a", b"b"]
        requests.close(1)
        assert await consoles.did.get() == ("close", 1)
    for channel in range(AT_ONCE_MAX + 1):
        requests.open(wire.ConsoleOpen(100 + channel, "vm-1"))
    refused = wire.ConsoleClosed(100 + AT_ONCE_MAX, "the node has too many consoles open")
    assert sent[-1] == refused, "there is a limit"
    await requests.end()


class Socket:
    """A connection over which a node sends prepared messages."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[bytes] = asyncio.Queue()
        self.sent: asyncio.Queue[bytes] = asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._said()

    async def _said(self) -> AsyncIterator[bytes]:
        while True:
            yield await self.says.get()

    def say(self, message: wire.Message) -> None:
        self.says.put_nowait(codec.encode(message))

    async def send(self, raw: bytes) -> None:
        self.sent.put_nowait(raw)


class SlowStore:
    """Stores nothing before it may; takes the place of heartbeats and reports."""

    def __init__(self) -> None:
        self.may_store = asyncio.Event()
        self.stored: list[object] = []

    async def store(self, *what: object) -> None:
        await self.may_store.wait()
        self.stored.append(what)


def reader(
    socket: Socket, store: SlowStore, observations: list[asyncio.Future[None]] | None = None
) -> tuple[Reader, NodeSession]:
    """Return what reads a node's messages. Futures of what it reports of its VMs are added to ``observations``."""

    def add(report: object) -> asyncio.Future[None]:
        assert observations is not None
        observations.append(asyncio.get_running_loop().create_future())
        return observations[-1]

    session, none = NodeSession("host-a", cast(Any, socket)), cast(Any, None)
    takers = Takers(
        none, none, time.monotonic, none, none, none, cast(Any, store), cast(Any, SimpleNamespace(add=add)),
        cast(Any, store), Rarely(),
    )  # fmt: skip
    return Reader(session, takers), session


async def test_a_console_goes_on_while_heartbeats_and_reports_wait_to_be_stored() -> None:
    socket, store = Socket(), SlowStore()
    taking, session = reader(socket, store)
    channel = session.channels[1] = ConsoleChannel(1, session)
    running = asyncio.create_task(taking.run(cast(Any, socket)))
    socket.say(wire.Heartbeat(1, 0, 0.0, ()))
    socket.say(wire.Measured((("vm-1", 0.5),)))
    socket.say(wire.ConsoleOutput(1, b"login:"))
    async with asyncio.timeout(10):
        assert await channel.read() == b"login:"
        assert store.stored == [] and socket.sent.empty()
        store.may_store.set()
        message, _ = codec.decode_from_server(await socket.sent.get())
    assert message == wire.Beaten(1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_node_that_reports_faster_than_can_be_stored_has_to_connect_again() -> None:
    socket, store = Socket(), SlowStore()
    taking, _ = reader(socket, store)
    for _ in range(limits.LINK_QUEUE_MAX + 2):
        socket.say(wire.Measured(()))
    with pytest.raises(Unavailable, match="faster than the server can store"):
        async with asyncio.timeout(10):
            await taking.run(cast(Any, socket))


async def until_waiting(items: Sized, count: int) -> None:
    await eventually(lambda: len(items) == count, f"there are {count}")


async def test_what_a_node_reports_waits_within_a_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPORT_QUEUE_BYTES_MAX", 10_000)
    socket, store = Socket(), SlowStore()
    taking, _ = reader(socket, store)
    for _ in range(20):
        socket.say(wire.MigrationFailed("mig", "x" * 1000))
    with pytest.raises(Unavailable, match="faster than the server can store"):
        async with asyncio.timeout(10):
            await taking.run(cast(Any, socket))


async def test_what_a_node_reports_of_its_vms_waits_within_a_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPORT_QUEUE_BYTES_MAX", 10_000)
    socket, waiting = Socket(), list[asyncio.Future[None]]()
    taking, _ = reader(socket, SlowStore(), waiting)
    running = asyncio.create_task(taking.run(cast(Any, socket)))
    for number in range(1, 21):
        socket.say(wire.Observed("vm-1", 1, VmStatus(reason="x" * 1000)))
        await until_waiting(waiting, number)
        waiting[-1].set_result(None)
    for _ in range(20):
        socket.say(wire.Observed("vm-1", 1, VmStatus(reason="x" * 1000)))
    with pytest.raises(Unavailable, match="faster than the server can store"):
        async with asyncio.timeout(10):
            await running


async def test_reports_that_are_stored_make_room_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPORT_QUEUE_BYTES_MAX", 10_000)
    socket, store = Socket(), SlowStore()
    store.may_store.set()
    taking, _ = reader(socket, store)
    running = asyncio.create_task(taking.run(cast(Any, socket)))
    for number in range(1, 21):
        socket.say(wire.MigrationFailed("mig", "x" * 1000))
        await until_waiting(store.stored, number)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_console_whose_viewer_is_slow_holds_so_many_bytes_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONSOLE_QUEUE_BYTES_MAX", 10_000)
    session = NodeSession("host-a", cast(Any, Socket()))
    channel = session.channels[1] = ConsoleChannel(1, session)
    for _ in range(100):
        channel.feed(b"x" * 900)
        assert await channel.read() == b"x" * 900, "what is read makes room"
    for _ in range(100):
        channel.feed(b"x" * 900)
    assert session.channels == {} and channel.reason == "the viewer is too slow"
    read = 0
    while (data := await channel.read()) is not None:
        read += len(data)
    assert read <= 10_000
    assert await channel.read() is None, "and it stays over"


async def test_input_of_a_console_that_opens_slowly_waits_within_a_limit_of_bytes() -> None:
    consoles, sent = SlowConsoles(), list[wire.Message]()
    requests = ConsoleRequests(cast(Any, consoles), cast(Any, consoles), sent.append)
    requests.open(wire.ConsoleOpen(1, "vm-1"))
    for _ in range(INPUT_BYTES_MAX // 65536):
        requests.write(1, b"x" * 65536)
    assert sent == []
    requests.write(1, b"x")
    assert sent == [wire.ConsoleClosed(1, "the console does not accept input")]
    await requests.end()
