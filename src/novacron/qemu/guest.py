"""The guest agent: a program in the guest that answers, if it likes (QEMU's docs/interop/qemu-ga-ref).

The guest may lie, flood or hang: every answer has a time limit and a size, and nothing is believed but what it costs
the guest itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.errors import MALFORMED
from novacron.model.guest_command import FilePiece, GuestCommand, NewCommand
from novacron.model.waiting import WaitCode

ANSWER_BYTES_MAX = 1 << 20
COMMAND_ANSWER_BYTES_MAX = 12 << 20
"""What a command has printed, in Base64. Guest agents may send four times as much, which would hold up all others."""
ANSWER_S = 5.0
CONNECT_S = 2.0
FREEZE_S = 20.0
INTERFACES_MAX, ADDRESSES_MAX = 64, 64
ADDRESS_LENGTH_MAX = 64
TEXT_MAX = 100
THINGS_MAX, SETTLE_S = 4096, 1.0
MEMORY_BLOCK_BYTES_MAX = 1 << 40
DELIMITER = b"\xff"


class GuestSilent(Exception):
    """The guest agent did not do what it was asked: it does not answer, refuses, or talks nonsense."""

    code = WaitCode.GUEST_SILENT


class _Address(msgspec.Struct):
    kind: str = msgspec.field(name="ip-address-type")
    address: str = msgspec.field(name="ip-address")


class _Interface(msgspec.Struct):
    name: str
    addresses: list[_Address] = msgspec.field(name="ip-addresses", default_factory=list)


class _CommandStatus(msgspec.Struct):
    exited: bool
    exit_code: int | None = msgspec.field(name="exitcode", default=None)
    signal: int | None = None
    stdout: bytes = msgspec.field(name="out-data", default=b"")
    stderr: bytes = msgspec.field(name="err-data", default=b"")
    stdout_truncated: bool = msgspec.field(name="out-truncated", default=False)
    stderr_truncated: bool = msgspec.field(name="err-truncated", default=False)


class _ReadFile(msgspec.Struct):
    data: bytes = msgspec.field(name="buf-b64")
    end: bool = msgspec.field(name="eof")


class _MemoryBlock(msgspec.Struct):
    online: bool


class _MemoryBlockInfo(msgspec.Struct):
    size: Annotated[int, Meta(ge=1 << 20, le=MEMORY_BLOCK_BYTES_MAX)]


class _AgentReply(msgspec.Struct):
    returned: msgspec.Raw = msgspec.field(name="return", default=msgspec.Raw(b""))
    error: dict[str, Any] | None = None


def plain(text: str) -> str:
    """Return a guest's text without what would play tricks on a terminal, and not long."""
    return "".join(character if character.isprintable() else "?" for character in text[:TEXT_MAX])


class GuestAgent:
    """Asks one guest's agent, over QEMU's socket for it; one question at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()

    async def addresses(self) -> tuple[str, ...]:
        """Return the guest's IP addresses, as it tells them, without its own loopback. Raises GuestSilent."""
        raw = await self._ask("guest-network-get-interfaces")
        try:
            interfaces = msgspec.json.decode(raw, type=list[_Interface])
        except MALFORMED as error:
            raise GuestSilent(f"the guest agent talks nonsense: {error}") from None
        texts = []
        for interface in interfaces[:INTERFACES_MAX]:
            for address in interface.addresses[:ADDRESSES_MAX]:
                with contextlib.suppress(ValueError):
                    # Without its scope, which may be any text (RFC 4007).
                    parsed = ipaddress.ip_address(address.address[:ADDRESS_LENGTH_MAX].partition("%")[0])
                    if not parsed.is_loopback and not parsed.is_link_local:
                        texts.append(str(parsed))
        return tuple(dict.fromkeys(texts))[:ADDRESSES_MAX]

    async def name(self) -> str:
        """Return the guest's host name, as it tells it. Raises GuestSilent."""
        raw = await self._ask("guest-get-host-name")
        try:
            return plain(str(msgspec.json.decode(raw, type=dict[str, Any])["host-name"]))
        except (*MALFORMED, KeyError):
            raise GuestSilent("the guest agent talks nonsense") from None

    async def shut_down(self, mode: str = "powerdown") -> None:
        """Let the guest power off, or ``reboot``. It does not say whether it will. Raises GuestSilent."""
        await self._ask("guest-shutdown", {"mode": mode}, answers=False)

    async def set_time(self, now_ns: int) -> None:
        """Let the guest set its clock, to so many ns since 1970, after it stood still. Raises GuestSilent."""
        await self._ask("guest-set-time", {"time": now_ns})

    async def time_ns(self) -> int:
        """Return the guest's clock, in ns since 1970, as it tells. Raises GuestSilent."""
        raw = await self._ask("guest-get-time")
        try:
            return msgspec.json.decode(raw, type=int)
        except MALFORMED:
            raise GuestSilent("the guest agent talks nonsense when asked guest-get-time") from None

    async def memory_mib(self) -> int:
        """Return how much memory the guest's kernel uses, as it tells. Raises GuestSilent."""
        about, raw = await self._ask("guest-get-memory-block-info"), await self._ask("guest-get-memory-blocks")
        try:
            block_bytes = msgspec.json.decode(about, type=_MemoryBlockInfo).size
            units = msgspec.json.decode(raw, type=list[_MemoryBlock])[:THINGS_MAX]
        except MALFORMED:
            raise GuestSilent("the guest agent talks nonsense") from None
        return sum(unit.online for unit in units) * block_bytes >> 20

    async def use_all(self) -> int:
        """Let the guest use all of its processors and memory; return how many processors its kernel knows and uses.

        Its kernel may not have seen yet what was plugged in: ask again while it uses less than it was given. Raises
        GuestSilent.
        """
        await asyncio.sleep(SETTLE_S)  # until its kernel has seen them
        vcpus = 0
        for kind, key in (("vcpus", "logical-id"), ("memory-blocks", "phys-index")):
            raw = await self._ask(f"guest-get-{kind}")
            try:
                units = msgspec.json.decode(raw, type=list[dict[str, Any]])[:THINGS_MAX]
                offline = [{key: int(unit[key]), "online": True} for unit in units if not unit["online"]]
            except (*MALFORMED, KeyError, TypeError):
                raise GuestSilent("the guest agent talks nonsense") from None
            if kind == "vcpus":
                vcpus = len(units) - len(offline)
            if offline:
                name = "mem-blks" if kind == "memory-blocks" else kind
                await self._ask(f"guest-set-{kind}", {name: offline})
        return vcpus

    async def start(self, command: NewCommand) -> int:
        """Start a program and return its process id. Raises GuestSilent."""
        arguments: dict[str, Any] = {
            "path": command.arguments[0], "arg": command.arguments[1:], "capture-output": True
        }  # fmt: skip
        if command.environment:
            arguments["env"] = command.environment
        if command.input:
            arguments["input-data"] = base64.b64encode(command.input).decode()
        raw = await self._ask("guest-exec", arguments)
        try:
            return msgspec.json.decode(raw, type=dict[str, int])["pid"]
        except (*MALFORMED, KeyError):
            raise GuestSilent("the guest agent talks nonsense when asked guest-exec") from None

    async def command(self, pid: int) -> GuestCommand:
        """Return how a program is that ``start`` started. Its guest agent forgets it once it has said that it ended.

        Raises GuestSilent.
        """
        raw = await self._ask("guest-exec-status", {"pid": pid}, answer_bytes_max=COMMAND_ANSWER_BYTES_MAX)
        try:
            status = msgspec.json.decode(raw, type=_CommandStatus)
        except MALFORMED:
            raise GuestSilent("the guest agent talks nonsense when asked guest-exec-status") from None
        if not status.exited:
            return GuestCommand(pid, running=True)
        most = limits.GUEST_OUTPUT_BYTES_MAX
        truncated = status.stdout_truncated or status.stderr_truncated
        return GuestCommand(
            pid, False, status.exit_code, status.signal, status.stdout[:most], status.stderr[:most],
            truncated or max(len(status.stdout), len(status.stderr)) > most,
        )  # fmt: skip

    async def read_file(self, path: str, offset: int, bytes_max: int) -> FilePiece:
        """Return a piece of a file. Raises GuestSilent."""
        async with self._opened(path, "rb", offset) as handle:
            raw = await self._ask("guest-file-read", {"handle": handle, "count": bytes_max})
        try:
            piece = msgspec.json.decode(raw, type=_ReadFile)
        except MALFORMED:
            raise GuestSilent("the guest agent talks nonsense when asked guest-file-read") from None
        return FilePiece(piece.data[:bytes_max], piece.end or not piece.data)

    async def write_file(self, path: str, offset: int, data: bytes) -> int:
        """Write a piece of a file, the first one anew, and return how long it is then. Raises GuestSilent."""
        async with self._opened(path, "r+b" if offset else "wb", offset) as handle:
            written = 0
            while written < len(data):
                piece = base64.b64encode(data[written:]).decode()
                raw = await self._ask("guest-file-write", {"handle": handle, "buf-b64": piece})
                count = self._count_of(raw)
                if not 0 < count <= len(data) - written:
                    raise GuestSilent(f"the guest agent wrote {count} bytes of {len(data) - written}")
                written += count
            await self._ask("guest-file-flush", {"handle": handle})
        return offset + written

    @contextlib.asynccontextmanager
    async def _opened(self, path: str, mode: str, offset: int) -> AsyncIterator[int]:
        raw = await self._ask("guest-file-open", {"path": path, "mode": mode})
        handle = self._count(raw)
        try:
            if offset:
                await self._ask("guest-file-seek", {"handle": handle, "offset": offset, "whence": "set"})
            yield handle
        finally:
            with contextlib.suppress(GuestSilent):
                await self._ask("guest-file-close", {"handle": handle})

    def _count_of(self, raw: msgspec.Raw) -> int:
        try:
            return int(msgspec.json.decode(raw, type=dict[str, Any])["count"])
        except (*MALFORMED, KeyError, TypeError):
            raise GuestSilent("the guest agent talks nonsense when asked guest-file-write") from None

    async def freeze(self) -> int:
        """Let the guest write out and stop writing to its file systems; return how many. Raises GuestSilent."""
        return self._count(await self._ask("guest-fsfreeze-freeze", wait_s=FREEZE_S))

    async def thaw(self) -> int:
        """Let the guest write again; return to how many file systems. Raises GuestSilent."""
        return self._count(await self._ask("guest-fsfreeze-thaw", wait_s=FREEZE_S))

    def _count(self, raw: msgspec.Raw) -> int:
        try:
            return msgspec.json.decode(raw, type=int)
        except MALFORMED:
            raise GuestSilent("the guest agent talks nonsense") from None

    async def _ask(
        self, command: str, arguments: dict[str, Any] | None = None, *, wait_s: float = ANSWER_S, answers: bool = True,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> msgspec.Raw:  # fmt: skip
        async with self._lock:
            try:
                async with asyncio.timeout(wait_s + CONNECT_S):
                    return await self._converse(command, arguments, answers, answer_bytes_max)
            except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                raise GuestSilent(f"the guest agent does not answer {command}: {error or 'too slow'}") from error
            except ValueError:  # what readline raises
                raise GuestSilent(
                    f"the guest agent's answer to {command} is longer than {answer_bytes_max >> 20} MiB"
                ) from None

    async def _converse(
        self, command: str, arguments: dict[str, Any] | None, answers: bool, answer_bytes_max: int
    ) -> msgspec.Raw:
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=answer_bytes_max)
        try:
            mark = secrets.randbits(48)
            sync = {"execute": "guest-sync-delimited", "arguments": {"id": mark}}
            writer.write(DELIMITER + msgspec.json.encode(sync) + b"\n")
            await writer.drain()
            while True:  # what it said to others before; the time limit is our caller's
                await reader.readuntil(DELIMITER)
                if self._mark(await reader.readline()) == mark:
                    break
            question: dict[str, Any] = {"execute": command}
            if arguments is not None:
                question["arguments"] = arguments
            writer.write(msgspec.json.encode(question) + b"\n")
            await writer.drain()
            if not answers:
                with contextlib.suppress(TimeoutError):  # an error would come at once
                    async with asyncio.timeout(0.5):
                        return self._answer(await reader.readline(), command)
                return msgspec.Raw(b"")
            return self._answer(await reader.readline(), command)
        finally:
            writer.close()

    def _mark(self, line: bytes) -> int | None:
        with contextlib.suppress(*MALFORMED):
            return msgspec.json.decode(msgspec.json.decode(line, type=_AgentReply).returned, type=int)
        return None

    def _answer(self, line: bytes, command: str) -> msgspec.Raw:
        try:
            answer = msgspec.json.decode(line, type=_AgentReply)
        except MALFORMED:
            raise GuestSilent(f"the guest agent talks nonsense when asked {command}") from None
        if answer.error is not None:
            raise GuestSilent(f"the guest agent refuses {command}: {plain(str(answer.error.get('desc', '')))}")
        return msgspec.Raw(bytes(answer.returned))
