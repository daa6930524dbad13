"""Consoles of a node: who looks at a VM when another one has just gone gets one that works."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from novacron.agent.vm.console import Consoles
from novacron.model.console import ConsoleLine
from novacron.qemu.command import console_path
from novacron.wire import messages as wire


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data.upper())
    writer.close()


async def test_a_console_opened_just_when_another_is_closed_takes_input() -> None:
    said: asyncio.Queue[wire.Message] = asyncio.Queue()
    with tempfile.TemporaryDirectory() as directory:
        vm = Path(directory) / "vm-a"
        vm.mkdir()
        consoles = Consoles(Path(directory), lambda _: 1, said.put)
        async with await asyncio.start_unix_server(_echo, console_path(vm)):
            await consoles.open(1, "vm-a", ConsoleLine.SERIAL)
            consoles.close(1)  # its connection is not closed before the loop turns
            await consoles.open(2, "vm-a", ConsoleLine.SERIAL)
            await consoles.write(2, b"hello")
            assert await asyncio.wait_for(said.get(), 20) == wire.ConsoleOutput(2, b"HELLO")
            consoles.close_all()
            await consoles.write(2, b"nobody")


async def test_input_for_a_console_whose_guest_has_gone_is_dropped() -> None:
    said: asyncio.Queue[wire.Message] = asyncio.Queue()
    gone = asyncio.Event()

    async def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        gone.set()

    async def slowly(message: wire.Message) -> None:
        await consoles.write(2, b"still there?")  # while the first viewer is told, the second one types
        await said.put(message)

    with tempfile.TemporaryDirectory() as directory:
        vm = Path(directory) / "vm-a"
        vm.mkdir()
        consoles = Consoles(Path(directory), lambda _: 1, slowly)
        async with await asyncio.start_unix_server(end, console_path(vm)):
            await consoles.open(1, "vm-a", ConsoleLine.SERIAL)
            await consoles.open(2, "vm-a", ConsoleLine.SERIAL)
            ended = [await asyncio.wait_for(said.get(), 20) for _ in range(2)]
            assert sorted(item.channel for item in ended if isinstance(item, wire.ConsoleClosed)) == [1, 2]
