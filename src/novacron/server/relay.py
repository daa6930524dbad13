"""What worker processes ask of the process that has the agents' links: calls and answers over a Unix socket.

Each is a length (4 bytes, big-endian) and a MessagePack array. The socket is in the server's own directory, which is
its user's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from novacron.api.context import Agents, Console
from novacron.model.console import ConsoleKind
from novacron.model.errors import NovaError, Unavailable
from novacron.model.event import ImageCopy
from novacron.model.firmware_state import FirmwareState
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.telemetry import logs, traces

log = logs.get(__name__)

FRAME_BYTES_MAX = 16 << 20
CALLS_MAX = 256
"""Of one worker, under way."""
PLAIN = ("console_log", "screenshot", "probe", "foresee", "take_piece", "read_export", "read_firmware_state",
         "remove_image", "copy_image", "node_metrics", "set_log_level",
         "connected")  # fmt: skip


class Call(msgspec.Struct, frozen=True, array_like=True):
    id: int
    method: str
    arguments: list[Any]
    trace: str = ""
    """To which trace it belongs (W3C Trace Context: traceparent)."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An error as users are told of it."""

    code: str
    detail: str
    field: str | None
    hint: str | None


class Answer(msgspec.Struct, frozen=True, array_like=True):
    id: int
    result: msgspec.Raw
    failure: Failure | None = None


class ConsoleRead(msgspec.Struct, frozen=True, array_like=True):
    data: bytes | None
    reason: str


_encode = msgspec.msgpack.Encoder().encode


def _errors() -> dict[str, type[NovaError]]:
    found, left = {}, [NovaError]
    while left:
        one = left.pop()
        found[one.code] = one
        left += one.__subclasses__()
    return found


ERRORS = _errors()


async def _read(reader: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {size} bytes")
    return await reader.readexactly(size)


def _frame(message: Call | Answer) -> bytes:
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
        self._consoles: dict[int, Console] = {}
        self._numbers = itertools.count(1)
        self._turns = asyncio.Semaphore(CALLS_MAX)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._turns.acquire()
                    call = msgspec.msgpack.decode(await _read(self._reader), type=Call)
                    group.create_task(self._answer(call))
        except* (asyncio.IncompleteReadError, ConnectionError, ValueError) as errors:
            log.info("a worker has gone", error=str(errors.exceptions[0]))
        finally:
            for console in self._consoles.values():
                await console.close()
            self._writer.close()

    async def _answer(self, call: Call) -> None:
        try:
            with traces.span(f"server does {call.method}", parent=call.trace) if call.trace else nullcontext():
                answer = Answer(call.id, msgspec.Raw(_encode(await self._do(call.method, call.arguments))))
        except NovaError as error:
            failure = Failure(error.code, error.detail, error.field, error.hint)
            answer = Answer(call.id, msgspec.Raw(_encode(None)), failure)
        except Exception:  # a defect met by one request is that request's
            log.exception("defect while a worker is answered", method=call.method)
            failure = Failure("internal-error", "something went wrong here, not with the request", None, "try again")
            answer = Answer(call.id, msgspec.Raw(_encode(None)), failure)
        finally:
            self._turns.release()
        self._writer.write(_frame(answer))
        await self._writer.drain()

    async def _do(self, method: str, arguments: list[Any]) -> Any:
        match method:
            case "open_console":
                node, vm, kind = arguments
                number = next(self._numbers)
                self._consoles[number] = await self._agents.open_console(node, vm, ConsoleKind(kind))
                return number
            case "read_console":
                console = self._consoles[arguments[0]]
                return ConsoleRead(await console.read(), console.reason)
            case "write_console":
                return await self._consoles[arguments[0]].write(arguments[1])
            case "close_console":
                return await self._consoles.pop(arguments[0]).close()
            case _ if method in PLAIN:
                return await getattr(self._agents, method)(*arguments)
        raise ValueError(f"workers ask nothing called {method!r}")


class Relay:
    """The agents, as a worker reaches them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.gone = asyncio.Event()
        """The process that has the links has ended."""
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[msgspec.Raw]] = {}
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
                answer = msgspec.msgpack.decode(await _read(reader), type=Answer)
                waiting = self._waiting.pop(answer.id, None)
                if waiting is None or waiting.done():
                    continue
                if answer.failure is None:
                    waiting.set_result(answer.result)
                else:
                    said = answer.failure
                    waiting.set_exception(ERRORS[said.code](said.detail, field=said.field, hint=said.hint))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.gone.set()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(Unavailable("this server is about to end", hint="try again"))

    async def _call(self, method: str, *arguments: Any) -> msgspec.Raw:
        if self.gone.is_set():
            raise Unavailable("this server is about to end", hint="try again")
        id = next(self._numbers)
        waiting = self._waiting[id] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(_frame(Call(id, method, list(arguments), traces.carry())))
            await self._writer.drain()
            result: msgspec.Raw = await waiting
            return result
        finally:
            self._waiting.pop(id, None)

    async def open_console(self, node: str, vm: str, kind: ConsoleKind) -> Console:
        number = msgspec.msgpack.decode(await self._call("open_console", node, vm, kind), type=int)
        return _RelayedConsole(self, number)

    async def console_log(self, node: str, vm: str, bytes_max: int) -> bytes:
        return msgspec.msgpack.decode(await self._call("console_log", node, vm, bytes_max), type=bytes)

    async def screenshot(self, node: str, vm: str) -> bytes:
        return msgspec.msgpack.decode(await self._call("screenshot", node, vm), type=bytes)

    async def node_metrics(self, node: str, open_metrics: bool) -> bytes:
        return msgspec.msgpack.decode(await self._call("node_metrics", node, open_metrics), type=bytes)

    async def set_log_level(self, node: str, level: str) -> None:
        await self._call("set_log_level", node, level)

    async def connected(self) -> list[str]:
        return msgspec.msgpack.decode(await self._call("connected"), type=list[str])

    async def probe(self, source: str, target: str, seconds: float) -> PathMeasured:
        return msgspec.msgpack.decode(await self._call("probe", source, target, seconds), type=PathMeasured)

    async def foresee(self, vm: str, source: str, target: str) -> MoveForeseen:
        return msgspec.msgpack.decode(await self._call("foresee", vm, source, target), type=MoveForeseen)

    async def take_piece(self, node: str, import_: str, offset: int, data: bytes) -> int:
        return msgspec.msgpack.decode(await self._call("take_piece", node, import_, offset, data), type=int)

    async def read_export(self, node: str, export: str, offset: int, bytes_max: int) -> bytes:
        return msgspec.msgpack.decode(await self._call("read_export", node, export, offset, bytes_max), type=bytes)

    async def read_firmware_state(self, node: str, export: str) -> FirmwareState:
        return msgspec.msgpack.decode(await self._call("read_firmware_state", node, export), type=FirmwareState)

    async def remove_image(self, node: str, name: str, digest: str) -> None:
        await self._call("remove_image", node, name, digest)

    async def copy_image(self, name: str, source: str | None, target: str, actor: str) -> ImageCopy:
        return msgspec.msgpack.decode(await self._call("copy_image", name, source, target, actor), type=ImageCopy)


class _RelayedConsole:
    """A console that another process has open."""

    def __init__(self, relay: Relay, number: int) -> None:
        self.reason = ""
        self._relay, self._number = relay, number

    async def read(self) -> bytes | None:
        found = msgspec.msgpack.decode(await self._relay._call("read_console", self._number), type=ConsoleRead)
        self.reason = found.reason
        return found.data

    async def write(self, data: bytes) -> None:
        await self._relay._call("write_console", self._number, data)

    async def close(self) -> None:
        with contextlib.suppress(NovaError):
            await self._relay._call("close_console", self._number)
