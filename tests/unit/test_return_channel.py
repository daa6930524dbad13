"""The way back: in order, once, whatever connections do with its frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.dwcp.frames import Frame, FrameType, ProtocolError
from novacron.dwcp.return_channel import AGAIN_S, BYTES_MAX, FRAMES_MAX, ReturnReceiver, ReturnSender


def accepting(frames: list[Frame]) -> Callable[[Frame], bool]:
    """Return a connection that takes every frame."""

    def take(frame: Frame) -> bool:
        frames.append(frame)
        return True

    return take


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=30), st.randoms(use_true_random=False))
def test_the_return_channel_delivers_in_order_and_once(said: list[bytes], chance: object) -> None:
    assert hasattr(chance, "random") and hasattr(chance, "shuffle")
    on_their_way: list[Frame] = []
    sender = ReturnSender(accepting(on_their_way))
    receiver, got = ReturnReceiver(), b""
    for data in said:
        asyncio.run(sender.send(data))
        sender.repeat(at_once=chance.random() < 0.3)
        chance.shuffle(on_their_way)
        while on_their_way and chance.random() < 0.6:
            frame = on_their_way.pop()
            if chance.random() < 0.7:  # else it is lost
                got += receiver.take(frame)
        if chance.random() < 0.5:
            sender.taken(receiver.next)
    for _ in range(2):
        sender.repeat(at_once=True)
    for frame in on_their_way:
        got += receiver.take(frame)
    assert got == b"".join(said)
    sender.taken(receiver.next)
    on_their_way.clear()
    sender.repeat(at_once=True)
    assert not on_their_way


def test_long_messages_go_in_frames_of_a_bounded_size() -> None:
    frames: list[Frame] = []
    sender = ReturnSender(accepting(frames))
    asyncio.run(sender.send(b"x" * (2 * BYTES_MAX + 1)))
    assert [len(frame.payload) for frame in frames] == [BYTES_MAX, BYTES_MAX, 1]


async def test_a_full_return_channel_makes_its_sender_wait() -> None:
    sender = ReturnSender(lambda _: True)
    for _ in range(FRAMES_MAX):
        await sender.send(b"x")
    waiting = asyncio.create_task(sender.send(b"y"))
    await asyncio.sleep(0)
    assert not waiting.done()
    sender.taken(1)
    await waiting


async def test_all_is_said_once_the_peer_has_acknowledged_all() -> None:
    sender = ReturnSender(lambda _: True)
    await sender.drain()
    await sender.send(b"x")
    await sender.send(b"y")
    draining = asyncio.create_task(sender.drain())
    for number in (0, 1):
        sender.taken(number)
        await asyncio.sleep(0)
        assert not draining.done()
    sender.taken(2)
    await draining


async def test_unacknowledged_messages_are_repeated_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[Frame] = []
    sender = ReturnSender(accepting(frames))
    await sender.send(b"x")
    sender.repeat()
    assert len(frames) == 1
    monkeypatch.setattr("time.monotonic", lambda: sender._said_at + AGAIN_S + 0.1)
    sender.repeat()
    assert len(frames) == 2 and frames[0] == frames[1]


def test_frames_that_the_protocol_does_not_allow_are_refused() -> None:
    receiver, sender = ReturnReceiver(), ReturnSender(lambda _: True)
    for frame in (Frame(FrameType.BACK, FRAMES_MAX, b"x"), Frame(FrameType.BACK, 0, b"x" * (BYTES_MAX + 1))):
        with pytest.raises(ProtocolError):
            receiver.take(frame)
    with pytest.raises(ProtocolError):
        sender.taken(1)
