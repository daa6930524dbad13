"""Questions to nodes that wait for their answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from novacron.model.errors import InvalidInput, Unavailable
from novacron.server.session import Session
from novacron.telemetry import traces
from novacron.telemetry.values import counter, histogram
from novacron.wire import messages as wire
from novacron.wire.questions import Question

T = TypeVar("T")

ASK_S = 30.0
ASKED_MAX = 256


class Questions:
    """Asks, and gives answers to who waits for them."""

    def __init__(self, find: Callable[[str], Session]) -> None:
        """``find``: returns the session of a node by name. Raises Unavailable."""
        self._find = find
        self._asked: dict[int, tuple[Session, asyncio.Future[msgspec.Raw]]] = {}
        self._next = 1

    async def ask(self, node: str, question: Question, answer: type[T], timeout_s: float = ASK_S) -> T:
        """Ask a node something and return the answer. Raises Unavailable, InvalidInput."""
        if len(self._asked) >= ASKED_MAX:
            raise Unavailable(f"{len(self._asked)} questions wait for an answer", hint="try again in a moment")
        session = self._find(node)
        number, self._next = self._next, self._next + 1
        waiting: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._asked[number] = (session, waiting)
        kind, outcome, began = type(question).__name__, "failed", time.perf_counter()
        try:
            with traces.span(f"server asks {kind}", kind=traces.SpanKind.CLIENT, node=node):
                await session.send(wire.Ask(number, question))
                async with asyncio.timeout(timeout_s):
                    found = msgspec.msgpack.decode(await waiting, type=answer)
            outcome = "answered"
            return found
        except TimeoutError:
            outcome = "timeout"
            raise Unavailable(f"node {node} does not answer", hint="see its agent's log") from None
        finally:
            counter("novacron_link_questions_total").add(kind, outcome)
            histogram("novacron_link_question_duration_seconds").observe(time.perf_counter() - began, kind)
            del self._asked[number]

    def answered(self, session: Session, said: wire.Answered) -> None:
        """Give an answer to who waits for it, if somebody does, and asked this node."""
        asked, waiting = self._asked.get(said.ask, (None, None))
        if waiting is None or asked is not session or waiting.done():
            return
        if said.error:
            waiting.set_exception(InvalidInput(f"node {session.node}: {said.error}", field=said.field))
        else:
            waiting.set_result(msgspec.Raw(bytes(said.value)))

    def lost(self, session: Session) -> None:
        """Tell who waits for answers over a session that there will be none."""
        for asked, waiting in self._asked.values():
            if asked is session and not waiting.done():
                why = f"node {session.node} disconnected before it answered"
                waiting.set_exception(Unavailable(why, hint="try again when it is back"))
