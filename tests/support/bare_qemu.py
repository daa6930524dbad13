"""QEMUs without an agent, and memory that goes from one to the other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from novacron.dwcp.pipes import SocketPipe, StreamSink
from novacron.model.node import AcceleratorKind
from novacron.qemu import transfer
from novacron.qemu.command import QemuConfig, command, monitor_path
from novacron.qemu.memory import GuestMemory, blocks
from novacron.qemu.monitor import Monitor
from novacron.qemu.nics import QemuNic
from tests.waiting import eventually

MIB = 1 << 20
Wrap = Callable[[SocketPipe], Awaitable[StreamSink]]


async def as_it_is(pipe: SocketPipe) -> StreamSink:
    """Give QEMU the whole stream."""
    return pipe


@contextlib.asynccontextmanager
async def qemu(
    directory: Path, images: Path, memory_mib: int, *, incoming: bool, paused: bool = False
) -> AsyncIterator[tuple[Monitor, int]]:
    """A QEMU with the guest of these images; memory can be plugged into it. ``paused``: the guest does not boot."""
    directory.mkdir()
    kernel, initrd = images / "vmlinuz", images / "initrd.img"
    cmdline = "console=ttyS0 quiet panic=-1 random.trust_cpu=on"
    config = QemuConfig(
        "busy", directory, 1, memory_mib, "pc", AcceleratorKind.TCG, kernel, initrd, cmdline,
        (QemuNic("52:54:00:00:00:01", None),), memory_max_mib=2 * memory_mib,
    )  # fmt: skip
    process = subprocess.Popen(command(config, incoming=incoming, paused=paused))  # noqa: ASYNC220
    monitor = await Monitor.connect(monitor_path(directory), lambda *_: None, lambda: process.poll() is None)
    try:
        yield monitor, process.pid
    finally:
        await monitor.close()
        process.kill()
        process.wait()


def carry(server: socket.socket, sink: StreamSink) -> None:
    """Carry the stream from where the source connects."""
    with server, server.accept()[0] as source:
        while data := source.recv(MIB):
            sink.write(data)
        sink.finish()


async def move(source: Monitor, target: Monitor, directory: Path, passes: int = 1, wrap: Wrap = as_it_is) -> None:
    """Move a guest's memory, in at least so many passes over it; both guests stand still then.

    A QEMU whose dirty log can't be trusted makes one pass, whatever is asked for (``transfer.send``).
    """
    await transfer.receive(target, directory / "in.sock")
    with socket.socket(socket.AF_UNIX) as incoming:
        incoming.connect(str(directory / "in.sock"))
        sink = await wrap(SocketPipe(incoming))
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(directory / "out.sock"))
        server.listen(1)
        before = await source.status()
        await transfer.send(source, directory / "out.sock")
        assert await source.status() == before, "it stood still only while the log began"
        carrying = asyncio.create_task(asyncio.to_thread(carry, server, sink))

        async def may_end() -> bool:
            status = await transfer.status(source)
            assert status.status in ("active", "completed"), status
            return status.passes >= passes or status.status == "completed"

        async def sent() -> bool:
            return (await transfer.status(source)).status == "completed"

        async def arrived() -> bool:
            return await target.status() != "inmigrate"

        await eventually(may_end, "it passes over the memory", 100)
        await transfer.switch(source)
        await carrying  # QEMU may not answer before it has sent all
        await eventually(sent, "the memory is sent")
        made = (await transfer.status(source)).passes
        assert made >= passes or not await transfer.logs_every_write(source), f"it made {made} passes of {passes}"
        await eventually(arrived, "the memory is there")


async def differing_pages(source: tuple[Monitor, int], target: tuple[Monitor, int]) -> list[tuple[bytes, int]]:
    """Return block and offset of every page of the guest's memory that is not the same in both."""
    differing = []
    for a, b in zip(await blocks(source[0]), await blocks(target[0]), strict=True):
        assert (a.name, a.size) == (b.name, b.size)
        sent, got = GuestMemory(source[1], a.address, a.size), GuestMemory(target[1], b.address, b.size)
        offsets = sorted({*sent.touched(), *got.touched()})
        assert offsets, "somebody wrote to it"
        differing += [(a.name, at) for at in offsets if sent.read(at, 4096) != got.read(at, 4096)]
    return differing
