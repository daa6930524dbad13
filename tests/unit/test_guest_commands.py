"""Programs in guests are started once, their ends are remembered, and what guests answer is believed within limits."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from novacron.agent.vm.guest_commands import STARTED_MAX, GuestCommands, read_file, write_file
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.model import limits
from novacron.model.errors import InvalidInput
from novacron.model.guest_command import NewCommand
from novacron.qemu.guest import GuestAgent, GuestSilent

Answer = Callable[[str, dict[str, Any]], object]
LISTING = NewCommand(("/bin/ls", "/"))


async def serve(path: Path, answer: Answer) -> asyncio.Server:
    """A guest agent whose answers are those of a function."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).lstrip(b"\xff"):
            if not line.strip():
                continue
            question = json.loads(line)
            arguments = question.get("arguments", {})
            if question["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n")
            else:
                writer.write(json.dumps({"return": answer(question["execute"], arguments)}).encode() + b"\n")
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(talk, path)


def machine(path: Path, id: str = "vm-1", *, listens: bool = True) -> VirtualMachine:
    return cast("VirtualMachine", SimpleNamespace(id=id, guest=GuestAgent(path), guest_listens=listens))


class Guest:
    """Starts programs, says once how each ended, and keeps one file."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.said: set[int] = set()
        self.file = b""
        self.at = 0

    def __call__(self, command: str, arguments: dict[str, Any]) -> object:
        match command:
            case "guest-exec":
                self.started.append([arguments["path"], *arguments["arg"]])
                return {"pid": len(self.started)}
            case "guest-exec-status":
                assert arguments["pid"] not in self.said, "a guest agent says only once how a program ended"
                self.said.add(arguments["pid"])
                return {"exited": True, "exitcode": 3, "out-data": base64.b64encode(b"out").decode()}
            case "guest-file-open":
                self.at = 0
                self.file = b"" if arguments["mode"].startswith("w") else self.file
                return 7
            case "guest-file-seek":
                self.at = arguments["offset"]
                return {"position": self.at, "eof": False}
            case "guest-file-read":
                piece = self.file[self.at : self.at + arguments["count"]]
                end = self.at + len(piece) >= len(self.file)
                return {"count": len(piece), "buf-b64": base64.b64encode(piece).decode(), "eof": end}
            case "guest-file-write":
                data = base64.b64decode(arguments["buf-b64"])[:1000]  # a guest may take less than it is given
                self.file = self.file[: self.at] + data
                self.at += len(data)
                return {"count": len(data), "eof": False}
        return {}


async def test_a_program_that_is_asked_for_twice_is_started_once(tmp_path: Path) -> None:
    guest = Guest()
    async with await serve(tmp_path / "ga", guest):
        commands, vm = GuestCommands(), machine(tmp_path / "ga")
        both = await asyncio.gather(commands.start(vm, "ann 1", LISTING), commands.start(vm, "ann 1", LISTING))
        assert list(both) == [1, 1] and guest.started == [["/bin/ls", "/"]]
        assert await commands.start(vm, "ben 1", LISTING) == 2
        assert await commands.start(machine(tmp_path / "ga", "vm-2"), "ann 1", LISTING) == 3


async def test_how_a_program_ended_is_told_as_often_as_it_is_asked(tmp_path: Path) -> None:
    async with await serve(tmp_path / "ga", Guest()):
        commands, vm = GuestCommands(), machine(tmp_path / "ga")
        pid = await commands.start(vm, "ann 1", LISTING)
        first = await commands.wait(vm, pid, 1.0)
        assert (first.running, first.exit_code, first.stdout) == (False, 3, b"out")
        assert await commands.wait(vm, pid, 0.0) == first


async def test_two_who_wait_for_a_program_both_hear_how_it_ended(tmp_path: Path) -> None:
    """The first of them may be a request whose client is gone."""
    answers: Iterator[object] = iter([{"exited": True, "exitcode": 3}, "it was told already"])
    async with await serve(tmp_path / "ga", lambda _command, _arguments: next(answers)):
        commands, vm = GuestCommands(), machine(tmp_path / "ga")
        first, second = await asyncio.gather(commands.wait(vm, 5, 1.0), commands.wait(vm, 5, 1.0))
        assert first == second and first.exit_code == 3


async def test_a_program_that_could_not_be_started_is_tried_again_with_the_same_key(tmp_path: Path) -> None:
    answers: Iterator[object] = iter(["nonsense", {"pid": 9}])
    async with await serve(tmp_path / "ga", lambda _command, _arguments: next(answers)):
        commands, vm = GuestCommands(), machine(tmp_path / "ga")
        with pytest.raises(InvalidInput, match="nonsense"):
            await commands.start(vm, "ann 1", LISTING)
        assert await commands.start(vm, "ann 1", LISTING) == 9


async def test_who_waits_hears_of_a_program_that_goes_on(tmp_path: Path) -> None:
    async with await serve(tmp_path / "ga", lambda _command, _arguments: {"exited": False}):
        status = await GuestCommands().wait(machine(tmp_path / "ga"), 5, 0.1)
        assert status.running and status.exit_code is None


async def test_only_so_many_programs_are_remembered(tmp_path: Path) -> None:
    guest = Guest()
    async with await serve(tmp_path / "ga", guest):
        commands, vm = GuestCommands(), machine(tmp_path / "ga")
        for number in range(STARTED_MAX + 1):
            await commands.start(vm, f"ann {number}", LISTING)
        assert await commands.start(vm, "ann 1", LISTING) == 2
        assert await commands.start(vm, "ann 0", LISTING) == STARTED_MAX + 2


async def test_output_is_kept_up_to_a_limit_and_it_is_said(tmp_path: Path) -> None:
    printed = base64.b64encode(b"x" * (limits.GUEST_OUTPUT_BYTES_MAX + 1)).decode()
    async with await serve(tmp_path / "ga", lambda _command, _arguments: {"exited": True, "out-data": printed}):
        status = await GuestAgent(tmp_path / "ga").command(5)
        assert len(status.stdout) == limits.GUEST_OUTPUT_BYTES_MAX and status.truncated


async def test_a_file_goes_in_and_comes_out_piece_by_piece(tmp_path: Path) -> None:
    guest, content = Guest(), bytes(range(256)) * 20
    async with await serve(tmp_path / "ga", guest):
        vm = machine(tmp_path / "ga")
        assert await write_file(vm, "/x", 0, content[:3000]) == 3000
        assert await write_file(vm, "/x", 3000, content[3000:]) == len(content)
        assert guest.file == content
        pieces, end = b"", False
        while not end:
            piece = await read_file(vm, "/x", len(pieces), 2048)
            pieces, end = pieces + piece.data, piece.end
        assert pieces == content
        await write_file(vm, "/x", 0, b"")
        assert guest.file == b""


@pytest.mark.parametrize("count", [0, -1, 10_000])
async def test_a_guest_that_writes_nothing_or_too_much_is_not_asked_for_ever(tmp_path: Path, count: int) -> None:
    answers: dict[str, object] = {"guest-file-open": 7, "guest-file-write": {"count": count}}
    async with await serve(tmp_path / "ga", lambda command, _arguments: answers.get(command, {})):
        with pytest.raises(GuestSilent, match="wrote"):
            await GuestAgent(tmp_path / "ga").write_file("/x", 0, b"1234")


async def test_a_vm_without_a_guest_agent_says_so(tmp_path: Path) -> None:
    vm = machine(tmp_path / "none", listens=False)
    with refused():
        await GuestCommands().start(vm, "ann 1", LISTING)
    with refused():
        await GuestCommands().wait(vm, 5, 0.0)
    with refused():
        await read_file(vm, "/x", 0, 1)
    with refused():
        await write_file(vm, "/x", 0, b"1")


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(InvalidInput, match="qemu-guest-agent") as refusal:
        yield
    assert refusal.value.field == "vm"
