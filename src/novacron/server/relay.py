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
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from novacron.api.access.context import Agents, ConsoleStream
from novacron.model.console import ConsoleLine
from novacron.model.errors import MALFORMED, NovaError, Unavailable
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
"""Of one worker, under way, without those that wait for a console's output."""
CONSOLES_MAX = 256
STREAMS_MAX = 2 * CONSOLES_MAX
"""Of one worker, open."""
CALL_S_MAX = 150.0
"""How long a worker waits for an answer: longer than whatever the other process waits for."""
READ_S_MAX = 30.0
"""How long a console is read before the worker is told that nothing came."""


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


class EstimateMove(Call[MoveForeseen], frozen=True, tag=True):
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


class OpenNodeConsole(Call[None], frozen=True, tag=True):
    """Open a VM's console, or (not 0) a port of it. The worker gives it a number of its own."""

    console: int
    node: str
    vm: str
    kind: ConsoleLine
    port: int


class ConsoleRead(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a console (none: nothing has come lately), or at its end None and the reason."""

    data: bytes | None
    reason: str


class ReadConsole(Call[ConsoleRead], frozen=True, tag=True):
    """Wait for bytes of a console."""

    console: int


class WriteConsole(Call[bool], frozen=True, tag=True):
    """Send bytes to a console. The answer is whether there was room for them in time."""

    console: int
    data: bytes


class CloseConsole(Call[None], frozen=True, tag=True):
    """Close a console."""

    console: int


class CancelCall(Call[None], frozen=True, tag=True):
    """Nobody waits for the answer to a call any more: end it."""

    id: int


AnyCall = (
    AskNode
    | ListConnected
    | ProbePath
    | EstimateMove
    | StartImageCopy
    | OpenNodeConsole
    | ReadConsole
    | WriteConsole
    | CloseConsole
    | CancelCall
)


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A call on its way."""

    id: int
    call: msgspec.Raw
    """Decoded apart: one that can't be decoded is answered with an error."""
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
_envelopes = msgspec.msgpack.Decoder(Envelope)
_calls: msgspec.msgpack.Decoder[AnyCall] = msgspec.msgpack.Decoder(AnyCall)
_answers = msgspec.msgpack.Decoder(CallResult)


def _error_classes() -> dict[str, type[NovaError]]:
    classes, unvisited = {}, [NovaError]
    while unvisited:
        error = unvisited.pop()
        classes[error.code] = error
        unvisited += error.__subclasses__()
    return classes


ERRORS = _error_classes()
DEFECT = Failure("internal-error", "the server failed, not the request", None, "try again")


async def _read(reader: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {size} bytes")
    return await reader.readexactly(size)


def _frame(message: Envelope | CallResult) -> bytes:
    """Return the bytes of a message. Raises Unavailable for more than the other end takes."""
    data = _encode(message)
    if len(data) > FRAME_BYTES_MAX:
        raise Unavailable(
            f"a message of {len(data)} bytes is too large for the processes of this server", hint="request less data"
        )
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
        self._running: dict[int, asyncio.Task[None]] = {}
        self._free_calls = asyncio.Semaphore(CALLS_MAX + STREAMS_MAX)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    envelope = _envelopes.decode(await _read(self._reader))
                    await self._begin(envelope, group)
        except* (asyncio.IncompleteReadError, ConnectionError) as errors:
            log.info("a worker process has ended", error=str(errors.exceptions[0]))
        except* MALFORMED as errors:
            log.error("a worker process says what can't be read: its connection ends", error=str(errors.exceptions[0]))
        finally:
            self._writer.close()
            for console in self._consoles.values():
                with contextlib.suppress(Exception):  # the others are closed all the same
                    await console.close()

    async def _begin(self, envelope: Envelope, group: asyncio.TaskGroup) -> None:
        """Begin to answer a call."""
        try:
            call = _calls.decode(envelope.call)
        except MALFORMED as error:
            log.error("a call of a worker can't be read", error=str(error))
            self._writer.write(_frame(CallResult(envelope.id, NOTHING, DEFECT)))
            return
        if isinstance(call, CancelCall):  # at once: it makes room for others
            if call.id in self._running:
                self._running[call.id].cancel()
            return
        await self._free_calls.acquire()
        task = group.create_task(self._answer(envelope, call))
        self._running[envelope.id] = task
        task.add_done_callback(partial(self._ended, envelope.id))

    def _ended(self, id: int, task: asyncio.Task[None]) -> None:
        del self._running[id]
        self._free_calls.release()

    async def _answer(self, envelope: Envelope, call: AnyCall) -> None:
        kind, trace = type(call).__name__, envelope.trace
        try:
            with traces.span(f"server does {kind}", parent=trace) if trace else nullcontext():
                frame = _frame(CallResult(envelope.id, msgspec.Raw(_encode(await self._do(call)))))
        except NovaError as error:
            frame = _frame(CallResult(envelope.id, NOTHING, Failure(error.code, error.detail, error.field, error.hint)))
        except Exception:  # a defect met by one request is that request's
            log.exception("defect while a worker is answered", call=kind)
            frame = _frame(CallResult(envelope.id, NOTHING, DEFECT))
        self._writer.write(frame)
        await self._writer.drain()

    async def _do(self, call: AnyCall) -> object:
        match call:
            case AskNode():
                return await self._agents.ask(call.node, questions.decode(call.question))
            case ListConnected():
                return await self._agents.connected()
            case ProbePath():
                return await self._agents.probe(call.source, call.target, call.seconds)
            case EstimateMove():
                return await self._agents.estimate_move(call.vm, call.source, call.target)
            case StartImageCopy():
                return await self._agents.copy_image(call.name, call.source, call.target, call.actor)
            case OpenNodeConsole():
                console = await self._agents.open_console(call.node, call.vm, call.kind, call.port)
                self._consoles[call.console] = console
                return None
            case ReadConsole():
                return await self._read_console(call.console)
            case WriteConsole():
                return await self._write_console(call.console, call.data)
            case CloseConsole():
                if call.console in self._consoles:
                    await self._consoles.pop(call.console).close()
                return None
            case CancelCall():
                raise AssertionError("it is done at once")

    async def _read_console(self, number: int) -> ConsoleRead:
        console = self._consoles.get(number)
        if console is None:
            return ConsoleRead(None, "closed")
        try:
            async with asyncio.timeout(READ_S_MAX):
                return ConsoleRead(await console.read(), console.reason)
        except TimeoutError:
            return ConsoleRead(b"", "")

    async def _write_console(self, number: int, data: bytes) -> bool:
        console = self._consoles.get(number)
        if console is None:
            return True
        try:
            async with asyncio.timeout(READ_S_MAX):
                await console.room()
        except TimeoutError:
            return False
        await console.write(data)
        return True


class Relay:
    """The agents, as a worker reaches them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.gone = asyncio.Event()
        """The process that has the links has ended."""
        self._writer = writer
        self._calls = Pending[CallResult]("calls", CALLS_MAX, CALLS_MAX)
        self._streams = Pending[CallResult]("consoles", STREAMS_MAX, STREAMS_MAX)
        """Apart, for they may last as long as somebody looks: each console is read, and written to."""
        self._numbers = itertools.count(1)
        self._consoles: set[int] = set()
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
                self._calls.settle(None, answer.id, answer)
                self._streams.settle(None, answer.id, answer)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            log.info("the process with the agents' links has ended", error=str(error))
        except MALFORMED as error:
            log.error("an answer can't be read: this worker ends", error=str(error))
        finally:
            self.gone.set()
            for pending in (self._calls, self._streams):
                pending.fail(None, "this server is shutting down", "try again")

    async def call(self, call: Call[A]) -> A:
        """Return the answer to a call. Raises NovaError."""
        if self.gone.is_set():
            raise Unavailable("this server is shutting down", hint="try again")
        id, pending = (
            next(self._numbers),
            self._streams if isinstance(call, ReadConsole | WriteConsole) else self._calls,
        )
        with pending.expect(None, id) as future:
            try:
                async with asyncio.timeout(CALL_S_MAX):
                    self._write(id, call)
                    await self._writer.drain()
                    answer = await future
            except TimeoutError:
                self._tell(CancelCall(id))
                log.error("the process with the agents' links does not answer", call=type(call).__name__)
                raise Unavailable("this server's processes do not answer one another", hint="try again") from None
            except asyncio.CancelledError:
                self._tell(CancelCall(id))
                raise
        if answer.failure is not None:
            failure = answer.failure
            raise ERRORS[failure.code](failure.detail, field=failure.field, hint=failure.hint)
        return msgspec.msgpack.decode(answer.result, type=questions.answer_type(type(call)))

    def _write(self, id: int, call: Call[A]) -> None:
        self._writer.write(_frame(Envelope(id, msgspec.Raw(_encode(call)), traces.carry())))

    def _tell(self, call: Call[None]) -> None:
        """Say something to which no answer is expected."""
        if not self.gone.is_set():
            self._write(next(self._numbers), call)

    async def ask(self, node: str, question: Question[A]) -> A:
        raw = await self.call(AskNode(node, msgspec.Raw(_encode(question))))
        return msgspec.msgpack.decode(raw, type=questions.answer_type(type(question)))

    async def open_console(self, node: str, vm: str, kind: ConsoleLine, port: int = 0) -> ConsoleStream:
        if len(self._consoles) >= CONSOLES_MAX:
            raise Unavailable(f"{len(self._consoles)} consoles are open at this server", hint="close one")
        number = next(self._numbers)
        self._consoles.add(number)
        try:
            await self.call(OpenNodeConsole(number, node, vm, kind, port))
        except BaseException:  # also when its viewer goes meanwhile: it may be open
            self._consoles.discard(number)
            self._tell(CloseConsole(number))
            raise
        return _RelayedConsole(self, number)

    async def close_console(self, number: int) -> None:
        """Close a console. That is no call of which only so many may be under way: it makes room."""
        self._consoles.discard(number)
        self._tell(CloseConsole(number))
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def connected(self) -> list[str]:
        return await self.call(ListConnected())

    async def probe(self, source: str, target: str, seconds: float) -> PathMeasured:
        return await self.call(ProbePath(source, target, seconds))

    async def estimate_move(self, vm: str, source: str, target: str) -> MoveForeseen:
        return await self.call(EstimateMove(vm, source, target))

    async def copy_image(self, name: str, source: str | None, target: str, actor: str) -> ImageCopy:
        return await self.call(StartImageCopy(name, source, target, actor))


class _RelayedConsole:
    """A console that another process has open."""

    def __init__(self, relay: Relay, number: int) -> None:
        self.reason = ""
        self._relay, self._number = relay, number

    async def read(self) -> bytes | None:
        while True:
            piece = await self._relay.call(ReadConsole(self._number))
            if piece.data != b"":
                self.reason = piece.reason
                return piece.data

    async def write(self, data: bytes) -> None:
        while not await self._relay.call(WriteConsole(self._number, data)):
            pass

    async def room(self) -> None:
        """There is none to wait for here: each call does."""

    async def close(self) -> None:
        await self._relay.close_console(self._number)
