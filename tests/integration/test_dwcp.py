"""DWCP sessions over real sockets and TLS."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading

import pytest
import uvloop

from novacron.dwcp import sender as sender_module
from novacron.dwcp import sockets
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.listener import Listener
from novacron.dwcp.receiver import ReceiveFailed
from novacron.dwcp.sender import SendFailed
from tests.support.dwcp import Ends, MemorySink, PieceSource, PlainPages, carry, sample_stream
from tests.waiting import pause_async


@pytest.mark.parametrize("streams", [1, 4, 16])
async def test_every_byte_arrives_in_order(ends: Ends, listening: tuple[Listener, int], streams: int) -> None:
    listener, port = listening
    data = sample_stream()
    sender = await carry(ends, listener, port, data, streams=streams)
    assert sender.counters.raw_bytes == len(data)
    assert sender.counters.wire_bytes < len(data) / 2


async def test_a_node_other_than_the_expected_one_is_refused(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    with listener.expect("s", "a", ends.terms()), pytest.raises(SendFailed, match="no session 's' is expected from c"):
        async with ends.sender(port, name="c"):
            pass


async def test_a_session_that_nobody_expects_is_refused(ends: Ends, listening: tuple[Listener, int]) -> None:
    with pytest.raises(SendFailed, match="no session"):
        async with ends.sender(listening[1], session="guess"):
            pass


async def test_a_certificate_of_another_authority_opens_nothing(
    ends: Ends, listening: tuple[Listener, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "OPEN_TIMEOUT_S", 1.0)
    listener, port = listening
    with listener.expect("s", "stranger", ends.terms()), pytest.raises(SendFailed):
        async with ends.sender(port, name="stranger"):
            pass


async def test_a_receiver_that_is_not_the_named_node_gets_nothing(ends: Ends, listening: tuple[Listener, int]) -> None:
    with pytest.raises(SendFailed, match=r"(?i)certificate"):
        async with ends.sender(listening[1], peer="c"):
            pass


async def test_a_tls_context_below_1_3_or_without_client_certificates_is_rejected(ends: Ends) -> None:
    context = ends.tls("a", server=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ValueError, match=r"TLS 1\.3"):
        await ConnectionPool(lambda: context).take(("127.0.0.1", 1), "x")


async def test_the_sender_learns_why_the_receiver_gave_up(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening

    class Full(MemorySink):
        def write(self, data: bytes) -> None:
            raise OSError("no space left")

    async def receive_into_full() -> None:
        with listener.expect("s", "a", ends.terms()) as incoming:
            await incoming.receive(Full())

    receiving = asyncio.create_task(receive_into_full())
    await asyncio.sleep(0)
    with pytest.raises(SendFailed, match="no space left"):
        async with ends.sender(port) as sender:
            await asyncio.wait_for(sender.send(PieceSource(os.urandom(8_000_000)), PlainPages()), 20)
    with pytest.raises(ReceiveFailed, match="no space left"):
        await receiving


async def test_a_slow_receiver_holds_the_sender_back(ends: Ends, listening: tuple[Listener, int]) -> None:
    """What the sender has read ahead is bounded: it is what becomes downtime when the guest stops."""
    listener, port = listening
    gate = threading.Event()

    class Slow(MemorySink):
        def write(self, data: bytes) -> None:
            gate.wait(60)

    async def receive_slowly() -> None:
        with listener.expect("s", "a", ends.terms()) as incoming:
            await incoming.receive(Slow())

    receiving = asyncio.create_task(receive_slowly())
    await asyncio.sleep(0)
    async with ends.sender(port, streams=4) as sender:
        sending = asyncio.create_task(sender.send(PieceSource(os.urandom(80_000_000)), PlainPages()))
        last = -1
        while sender.counters.raw_bytes != last:
            last = sender.counters.raw_bytes
            await pause_async(0.5)
        assert last < 50_000_000
        gate.set()
        await asyncio.wait_for(sending, 30)
    await receiving


def test_a_connection_that_was_dropped_a_moment_ago_can_still_be_asked() -> None:
    """In uvloop, as in the agent: found by a link that died late in a migration, which ended it."""

    async def drop() -> None:
        accepted: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            sock = writer.get_extra_info("socket")
            assert sockets.measured(sock) is not None
            writer.transport.abort()
            await pause_async(0.1)
            assert sockets.measured(sock) is None
            sockets.pace(sock, 1_000_000)
            for other_end in accepted:
                other_end.close()

    uvloop.run(drop())
