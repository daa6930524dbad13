"""What goes from a session's receiver to its sender; sessions that begin anew, late, or unasked."""

from __future__ import annotations

import asyncio
import os
import threading

import msgspec
import pytest

from novacron.dwcp.listener import Listener
from novacron.dwcp.receiver import ReceiveFailed
from novacron.dwcp.sender import SendFailed
from tests.support.dwcp import Ends, FaultyRelay, MemorySink, PlainPages
from tests.waiting import eventually, pause_async


class Open:
    """A stream whose bytes are available at once, and that ends on request."""

    def __init__(self, data: bytes) -> None:
        self.piece_bytes = len(data)
        self.over = threading.Event()
        self._data = data

    def read(self) -> bytes:
        if self._data:
            data, self._data = self._data, b""
            return data
        self.over.wait(60)
        return b""

    def abort(self) -> None:
        self.over.set()


async def test_the_return_channel_delivers_in_order_and_once_across_resets(
    ends: Ends, listening: tuple[Listener, int]
) -> None:
    listener, port = listening
    said = [os.urandom(100 + number) for number in range(60)]
    got = bytearray()
    async with FaultyRelay(port).run() as middle:
        with listener.expect("s", "a", ends.terms()) as incoming:
            kept = MemorySink()
            receiving = asyncio.create_task(incoming.receive(kept))
            sender, stream = ends.sender(middle.port), Open(b"x" * 5000)
            sender.on_back = got.extend
            async with sender:
                sending = asyncio.create_task(sender.send(stream, PlainPages()))
                for number, data in enumerate(said):
                    await incoming.back.send(data)
                    if number % 20 == 10:
                        middle.cut()
                    await pause_async(0.005)
                await eventually(lambda: len(got) >= sum(map(len, said)))
                stream.over.set()
                await asyncio.gather(sending, receiving)
    assert bytes(got) == b"".join(said) and kept.data == b"x" * 5000
    assert sender.counters.resumed >= 1


async def test_a_restarted_sender_replaces_a_replaceable_session(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    terms = msgspec.structs.replace(ends.terms(), replaceable=True)
    with listener.expect("s", "a", terms) as incoming:
        receiving = asyncio.create_task(incoming.receive(MemorySink()))
        async with ends.sender(port) as first:
            stream = Open(b"x" * 5000)
            sending = asyncio.create_task(first.send(stream, PlainPages()))
            await eventually(lambda: first.counters.delivered_bytes > 0)
            with pytest.raises(SendFailed, match="another sender"):
                await ends.sender(port).__aenter__()
            with pytest.raises(ReceiveFailed, match="begins anew"):
                await receiving
            with pytest.raises(SendFailed):
                await sending


async def test_an_unexpected_session_is_reported(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    asked: list[tuple[str, str]] = []
    listener.on_knock = lambda session, peer: asked.append((session, peer))
    with pytest.raises(SendFailed, match="no session 'other' is expected from a"):
        await ends.sender(port, session="other").__aenter__()
    assert asked == [("other", "a")]


async def test_a_receiver_can_wait_for_a_session_or_not(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, _ = listening
    with (
        listener.expect("s", "a", ends.terms()) as incoming,
        pytest.raises(ReceiveFailed, match="did not begin"),
    ):
        await incoming.receive(MemorySink(), 0.2)
