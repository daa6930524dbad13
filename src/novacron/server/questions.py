"""What nodes are asked: questions, and the other requests that nodes reply to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from novacron.model.errors import MALFORMED, InvalidInput, Unavailable
from novacron.server.pending import Pending
from novacron.server.session import NodeSession
from novacron.telemetry import traces
from novacron.telemetry.values import counter, histogram
from novacron.wire import codec
from novacron.wire import messages as wire
from novacron.wire.questions import Question, answer_type

A = TypeVar("A")

IN_FLIGHT_MAX, IN_FLIGHT_PER_NODE_MAX = 256, 64
"""Requests that wait for a reply, in all and of one node. An agent works on as many at once."""


class Questions:
    """Sends requests to nodes and returns their replies."""

    def __init__(self, find: Callable[[str], NodeSession]) -> None:
        """``find``: returns the session of a node by name. Raises Unavailable."""
        self._find = find
        self._pending = Pending[wire.Reply]("questions", IN_FLIGHT_MAX, IN_FLIGHT_PER_NODE_MAX)
        self._numbers = itertools.count(1)

    async def ask(self, node: str, question: Question[A]) -> A:
        """Ask a node something and return the answer. Raises Unavailable, InvalidInput."""
        kind, outcome, began = type(question).__name__, "failed", time.perf_counter()
        request = wire.Ask(next(self._numbers), msgspec.Raw(codec.encode(question)))
        try:
            with traces.span(f"server asks {kind}", kind=traces.SpanKind.CLIENT, node=node):
                async with asyncio.timeout(question.time_limit_s):
                    reply = await self.request(node, request)
            if reply.error:
                field = reply.field if isinstance(reply, wire.Answered) else None
                raise InvalidInput(f"node {node}: {reply.error}", field=field)
            assert isinstance(reply, wire.Answered)
            answer = msgspec.msgpack.decode(reply.value, type=answer_type(type(question)))
            outcome = "answered"
            return answer
        except MALFORMED as error:
            raise Unavailable(
                f"node {node} sent an unexpected answer to {kind}: {error}", hint="update the node's agent"
            ) from error
        except TimeoutError:
            outcome = "timeout"
            raise Unavailable(f"node {node} does not answer", hint="see its agent's log") from None
        finally:
            counter("novacron_link_questions_total").add(kind, outcome)
            histogram("novacron_link_question_duration_seconds").observe(time.perf_counter() - began, kind)

    async def request(self, node: str, request: wire.Request) -> wire.Reply:
        """Send a request and return the node's reply, whatever it says.

        Raises Unavailable, also when the node disconnects. The caller limits the time.
        """
        session = self._find(node)
        with self._pending.expect(session, request.reply_key) as future:
            await session.send(request)
            return await future

    @contextlib.contextmanager
    def expect_over_any_connection(self, node: str, key: str) -> Iterator[asyncio.Future[wire.Reply]]:
        """Give a future of a node's reply that may also come after the node connected again. Raises Unavailable."""
        with self._pending.expect(node, key) as future:
            yield future

    def take_reply(self, session: NodeSession, reply: wire.Reply) -> None:
        """Hand a reply to its waiter; a reply without a waiter is dropped."""
        for key in reply.replies_to:
            self._pending.settle(session, key, reply)
            self._pending.settle(session.node, key, reply)

    def disconnected(self, session: NodeSession) -> None:
        """Fail all requests that wait for a reply over this connection."""
        why = f"node {session.node} disconnected before it answered"
        self._pending.fail(session, why, "try again when it is connected")
