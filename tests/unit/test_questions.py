"""Questions to nodes: declared once, answered once, bounded, and never waited for in vain."""

from __future__ import annotations

import asyncio
from typing import Any, cast, get_type_hints

import msgspec
import pytest

from novacron.agent.control import queries
from novacron.model.errors import InvalidInput, Unavailable
from novacron.model.node import ImageInfo
from novacron.server.pending import Pending
from novacron.server.questions import IN_FLIGHT_PER_NODE_MAX, Questions
from novacron.server.session import NodeSession
from novacron.wire import codec, questions
from novacron.wire import messages as wire


class Node:
    """A connected agent that answers as the test says."""

    def __init__(self) -> None:
        self.asked: list[wire.Message] = []
        self._asked_more = asyncio.Condition()
        self.session = NodeSession("host-a", cast(Any, self))
        self.questions = Questions(lambda _: self.session)

    async def send(self, raw: bytes) -> None:
        async with self._asked_more:
            self.asked.append(codec.decode_from_server(raw)[0])
            self._asked_more.notify_all()

    async def is_asked(self, count: int) -> None:
        async with asyncio.timeout(5), self._asked_more:
            await self._asked_more.wait_for(lambda: len(self.asked) >= count)

    def reply(self, reply: wire.Reply) -> None:
        self.questions.take_reply(self.session, reply)


def encoded(value: object) -> msgspec.Raw:
    return msgspec.Raw(codec.encoder.encode(value))


def test_each_question_has_one_handler_whose_result_is_what_the_question_declares() -> None:
    assert set(queries.HANDLERS) == set(questions.ALL)
    for question, handler in queries.HANDLERS.items():
        declared = questions.answer_type(question)
        assert get_type_hints(handler)["return"] == declared, question


def test_questions_keep_their_wire_format() -> None:
    ask = wire.Ask(3, encoded(questions.RemoveImage("debian", "ab")), trace="00-1")
    assert msgspec.msgpack.decode(codec.encode(ask)) == {
        "type": "ask", "trace": "00-1", "ask": 3,
        "question": {"type": "RemoveImage", "name": "debian", "digest": "ab"},
    }  # fmt: skip
    answered = {"type": "answered", "ask": 3, "value": 7, "error": "full", "field": "name"}
    said = codec.decode_from_agent(msgspec.msgpack.encode(answered))
    assert isinstance(said, wire.Answered)
    assert said == wire.Answered(3, said.value, "name", error="full")
    assert msgspec.to_builtins(wire.Copied("copy-1", error="full")) == {
        "type": "copied", "copy": "copy-1", "error": "full",
    }  # fmt: skip
    assert msgspec.to_builtins(wire.ProbeReady("probe-1")) == {"type": "probeready", "probe": "probe-1"}


async def test_an_answer_reaches_whoever_asked() -> None:
    node = Node()
    asking = asyncio.create_task(node.questions.ask("host-a", questions.TakePiece("import-1", 0, b"x")))
    await node.is_asked(1)
    (ask,) = node.asked
    assert isinstance(ask, wire.Ask)
    assert questions.decode(ask.question) == questions.TakePiece("import-1", 0, b"x")
    node.reply(wire.Answered(ask.ask, encoded(1)))
    assert await asking == 1


async def test_a_refusal_reaches_whoever_asked_with_its_field() -> None:
    node = Node()
    asking = asyncio.create_task(node.questions.ask("host-a", questions.SetLogLevel("loud")))
    await node.is_asked(1)
    node.reply(wire.Answered(1, field="level", error="no such level"))
    with pytest.raises(InvalidInput, match="no such level") as refused:
        await asking
    assert refused.value.field == "level"


async def test_an_answer_of_another_type_fails_the_question_alone() -> None:
    node = Node()
    asking = asyncio.create_task(node.questions.ask("host-a", questions.TakePiece("import-1", 0, b"x")))
    await node.is_asked(1)
    node.reply(wire.Answered(1, encoded("many")))
    with pytest.raises(Unavailable, match="sent an unexpected answer to TakePiece"):
        await asking


async def test_questions_to_one_node_are_limited_and_waiting_callers_hear_of_its_disconnection() -> None:
    node = Node()
    asking = [
        asyncio.create_task(node.questions.ask("host-a", questions.TakeScreenshot("vm-1")))
        for _ in range(IN_FLIGHT_PER_NODE_MAX)
    ]
    await node.is_asked(IN_FLIGHT_PER_NODE_MAX)
    with pytest.raises(Unavailable, match="are waiting for an answer"):
        await node.questions.ask("host-a", questions.TakeScreenshot("vm-1"))
    node.questions.disconnected(node.session)
    failed = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(error, Unavailable) and "disconnected" in error.detail for error in failed)
    asking = [asyncio.create_task(node.questions.ask("host-a", questions.TakeScreenshot("vm-1")))]
    await node.is_asked(IN_FLIGHT_PER_NODE_MAX + 1)
    asking[0].cancel()


async def test_a_node_that_does_not_answer_is_waited_for_no_longer_than_the_question_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(questions.ReadMetrics, "time_limit_s", 0.01)
    with pytest.raises(Unavailable, match="does not answer"):
        await Node().questions.ask("host-a", questions.ReadMetrics(open_metrics=False))


async def test_only_the_node_that_was_asked_can_reply() -> None:
    pending = Pending[str]("questions", 10, 10)
    with pending.expect("host-a", 1) as future:
        pending.settle("host-b", 1, "forged")
        assert not future.done()
        pending.settle("host-a", 1, "true")
        assert await future == "true"
    pending.settle("host-a", 1, "late")
    assert len(pending) == 0


async def test_a_request_that_a_node_fails_at_is_settled_whether_or_not_the_node_was_ready() -> None:
    node = Node()
    image = ImageInfo("tiny", "0" * 64, 1, "kernel")
    expected = wire.CopyExpected("copy-1", "host-b", image, on_demand=False)
    asking = asyncio.create_task(node.questions.request("host-a", expected))
    await node.is_asked(1)
    node.reply(wire.Copied("copy-1", error="there is no room"))
    assert (await asking).error == "there is no room"


async def test_an_agent_answers_a_question_that_it_does_not_know() -> None:
    newer = encoded({"type": "ReadMind", "vm": "vm-1"})
    reply = await queries.answer(wire.Ask(5, newer), cast(Any, None))
    assert reply.ask == 5
    assert "does not support this request" in reply.error
