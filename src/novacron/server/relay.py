"""What worker processes ask of the process that has the agents' links: calls and answers over a Unix socket.

Each is a length (4 bytes, big-endian) and a MessagePack array. The socket is in the server's own directory, which is
its user's alone. Any question to a node passes (``AskNode``); what the server itself is asked is a ``Call`` of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar, cast

import msgspec

from novacron.api.access.context import Agents, ConsoleStream
from novacron.model.console import ConsoleKind
from novacron.model.errors import NovaError, Unavailable
from novacron.model.event import ImageCopy
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.server.pending import Pending
from novacron.telemetry import logs, traces
from novacron.wire import questions
from novacron.wire.questions import A_co, Answerable, Question

log = logs.get(__name__)

A = TypeVar("A")

FRAME_BYTES_MAX = 16 << 20
CALLS_MAX = 256
"""Of one worker, under way."""


class Call(Answerable[A_co], frozen=True):
    """Base of what a worker may ask for."""


class AskNode(Call[msgspec.Raw], frozen=True, tag=True):
    """Ask a node a question: any of ``wire/questions.py``. The answer is as the question declares it."""

    node: str
    question: msgspec.Raw


class ListConnected(Call[list[str]], frozen=True, tag=True):
    """The nodes that are connected."""


class ProbePath(Call[PathMeasured], frozen=True, tag=True):
    """Let one node measure the path to another."""

    source: str
    target: str
    seconds: float


class ForeseeMove(Call[MoveForeseen], frozen=True, tag=True):
    """Let a VM's node measure how its move to another node would go."""

    vm: str
    source: str
    target: str


class StartImageCopy(Call[ImageCopy], frozen=True, tag=True):
    """Begin to copy an image to a node."""

    name: str
    source: str | None
    target: str
    actor: str


class OpenNodeConsole(Call[int], frozen=True, tag=True):
    """Open a VM's console. The answer is its number among the worker's consoles."""

    node: str
    vm: str
    kind: ConsoleKind


class ConsoleRead(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a console, or at its end None and the reason."""

    data: bytes | None
    reason: str


class ReadConsole(Call[ConsoleRead], frozen=True, tag=True):
    """Wait for bytes of a console."""

    console: int


class WriteConsole(Call[None], frozen=True, tag=True):
    """Send bytes to a console."""

    console: int
    data: bytes


class CloseConsole(Call[None], frozen=True, tag=True):
    """Close a console."""

    console: int


AnyCall = (
    AskNode
    | ListConnected
    | ProbePath
    | ForeseeMove
    | StartImageCopy
    | OpenNodeConsole
    | ReadConsole
    | WriteConsole
    | CloseConsole
)


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A call on its way."""

    id: int
    call: AnyCall
    trace: str = ""
    """The trace to which it belongs (W3C Trace Context: traceparent)."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An error as users see it."""

    code: str
    detail: str
    field: str | None
    hint: str | None


class CallResult(msgspec.Struct, frozen=True, array_like=True):
    """What came of a call."""

    id: int
    result: msgspec.Raw
    failure: Failure | None = None


NOTHING = msgspec.Raw(b"\xc0")
_encode = msgspec.msgpack.Encoder().encode
_calls = msgspec.msgpack.Decoder(Envelope)
_answers = msgspec.msgpack.Decoder(CallResult)


def _error_classes() -> dict[str, type[NovaError]]:
    classes, unvisited = {}, [NovaError]
    while unvisited:
        error = unvisited.pop()
        classes[error.code] = error
        unvisited += error.__subclasses__()
    return classes


ERRORS = _error_classes()


async def _read(reader: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {size} bytes")
    return await reader.readexactly(size)


def _frame(message: Envelope | CallResult) -> bytes:
    data = _encode(message)
    return len(data).to_bytes(4, "big") + data


@contextlib.asynccontextmanager
async def listen(path: Path, agents: Agents) -> AsyncIterator[None]:
    """Answer workers for as long as the block runs."""
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(lambda r, w: _Desk(agents, r, w).run(), path)
    path.chmod(0o600)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


class _Desk:
    """Answers one worker."""

    def __init__(self, agents: Agents, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._agents = agents
        self._reader, self._writer = reader, writer
        self._consoles: dict[int, ConsoleStream] = {}
        self._numbers = itertools.count(1)
        self._free_calls = asyncio.Semaphore(CALLS_MAX)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._free_calls.acquire()
                    group.create_task(self._answer(_calls.decode(await _read(self._reader))))
        except* (asyncio.IncompleteReadError, ConnectionError, ValueError) as errors:
            log.info("a worker process has ended", error=str(errors.exceptions[0]))
        finally:
            for console in self._consoles.values():
                await console.close()
            self._writer.close()

    async def _answer(self, envelope: Envelope) -> None:
        kind, trace, result, failure = type(envelope.call).__name__, envelope.trace, NOTHING, None
        try:
            with traces.span(f"server does {kind}", parent=trace) if trace else nullcontext():
                result = msgspec.Raw(_encode(await self._do(envelope.call)))
        except NovaError as error:
            failure = Failure(error.code, error.detail, error.field, error.hint)
        except Exception:  # a defect met by one request is that request's
            log.exception("defect while a worker is answered", call=kind)
            failure = Failure("internal-error", "something went wrong here, not with the request", None, "try again")
        finally:
            self._free_calls.release()
        self._writer.write(_frame(CallResult(envelope.id, result, failure)))
        await self._writer.drain()

    async def _do(self, call: AnyCall) -> object:
        match call:
            case AskNode():
                return await self._agents.ask(call.node, questions.decode(call.question))
            case ListConnected():
                return await self._agents.connected()
            case ProbePath():
                return await self._agents.probe(call.source, call.target, call.seconds)
            case ForeseeMove():
                return await self._agents.foresee(call.vm, call.source, call.target)
            case StartImageCopy():
                return await self._agents.copy_image(call.name, call.source, call.target, call.actor)
            case OpenNodeConsole():
                number = next(self._numbers)
                self._consoles[number] = await self._agents.open_console(call.node, call.vm, call.kind)
                return number
            case ReadConsole():
                console = self._consoles[call.console]
                return ConsoleRead(await console.read(), console.reason)
            case WriteConsole():
                await self._consoles[call.console].write(call.data)
                return None
            case CloseConsole():
                await self._consoles.pop(call.console).close()
                return None


class Relay:
    """The agents, as a worker reaches them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.gone = asyncio.Event()
        """The process that has the links has ended."""
        self._writer = writer
        self._pending = Pending[CallResult]("calls", CALLS_MAX, CALLS_MAX)
        self._numbers = itertools.count(1)
        self._listening = asyncio.create_task(self._listen(reader), name="relay")

    @classmethod
    async def open(cls, path: Path) -> Relay:
        """Connect to the process that has the links. Raises OSError."""
        return cls(*await asyncio.open_unix_connection(path, limit=1 << 20))

    async def close(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                answer = _answers.decode(await _read(reader))
                self._pending.settle(None, answer.id, answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.gone.set()
            self._pending.fail(None, "this server is about to end", "try again")

    async def call(self, call: Call[A]) -> A:
        """Return the answer to a call. Raises NovaError."""
        if self.gone.is_set():
            raise Unavailable("this server is about to end", hint="try again")
        id = next(self._numbers)
        with self._pending.expect(None, id) as future:
            self._writer.write(_frame(Envelope(id, cast("AnyCall", call), traces.carry())))
            await self._writer.drain()
            answer = await future
        if answer.failure is not None:
            failure = answer.failure
            raise ERRORS[failure.code](failure.detail, field=failure.field, hint=failure.hint)
        return msgspec.msgpack.decode(answer.result, type=questions.answer_type(type(call)))

    async def ask(self, node: str, question: Question[A]) -> A:
        raw = await self.call(AskNode(node, msgspec.Raw(_encode(question))))
        return msgspec.msgpack.decode(raw, type=questions.answer_type(type(question)))

    async def open_console(self, node: str, vm: str, kind: ConsoleKind) -> ConsoleStream:
        return _RelayedConsole(self, await self.call(OpenNodeConsole(node, vm, kind)))

    async def connected(self) -> list[str]:
        return await self.call(ListConnected())

    async def probe(self, source: str, target: str, seconds: float) -> PathMeasured:
        return await self.call(ProbePath(source, target, seconds))

    async def foresee(self, vm: str, source: str, target: str) -> MoveForeseen:
        return await self.call(ForeseeMove(vm, source, target))

    async def copy_image(self, name: str, source: str | None, target: str, actor: str) -> ImageCopy:
        return await self.call(StartImageCopy(name, source, target, actor))


class _RelayedConsole:
    """A console that another process has open."""

    def __init__(self, relay: Relay, number: int) -> None:
        self.reason = ""
        self._relay, self._number = relay, number

    async def read(self) -> bytes | None:
        piece = await self._relay.call(ReadConsole(self._number))
        self.reason = piece.reason
        return piece.data

    async def write(self, data: bytes) -> None:
        await self._relay.call(WriteConsole(self._number, data))

    async def close(self) -> None:
        with contextlib.suppress(NovaError):
            await self._relay.call(CloseConsole(self._number))
