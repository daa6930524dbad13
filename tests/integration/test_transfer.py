"""QEMU's own part of a live migration, without any of ours between: is the guest's memory the same at the other end?"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from novacron.disk import tiny
from novacron.model.node import AcceleratorKind
from novacron.qemu import transfer
from novacron.qemu.command import QemuConfig, QemuNic, command, console_log_path, monitor_path
from novacron.qemu.memory import GuestMemory
from novacron.qemu.monitor import Monitor
from tests.waiting import eventually

MEMORY_MIB = 256
CHURN = b"""#!/bin/busybox sh
(while :; do dd if=/dev/urandom of=/run/churn bs=64k count=64 conv=notrunc 2>/dev/null; done) &
"""
PASSES = 5
MIB = 1 << 20


@contextlib.asynccontextmanager
async def qemu(directory: Path, images: Path, *, incoming: bool) -> AsyncIterator[tuple[Monitor, int]]:
    """A bare QEMU with a guest that writes without pause."""
    directory.mkdir()
    kernel, initrd = images / "vmlinuz", images / "initrd.img"
    cmdline = "console=ttyS0 quiet panic=-1 random.trust_cpu=on"
    nic = QemuNic("52:54:00:00:00:01", None)
    config = QemuConfig(
        "busy", directory, 1, MEMORY_MIB, "pc", AcceleratorKind.TCG, kernel, initrd, cmdline, (nic,)
    )  # fmt: skip
    process = subprocess.Popen(command(config, incoming=incoming))  # noqa: ASYNC220
    monitor = await Monitor.connect(monitor_path(directory), lambda *_: None, lambda: process.poll() is None)
    try:
        yield monitor, process.pid
    finally:
        await monitor.close()
        process.kill()
        process.wait()


def carry(server: socket.socket, target: Path) -> None:
    """Carry the stream to where the target listens."""
    with server, server.accept()[0] as source, socket.socket(socket.AF_UNIX) as sink:
        sink.connect(str(target))
        while data := source.recv(MIB):
            sink.sendall(data)


async def test_memory_arrives_as_it_was_when_the_guest_stopped(tmp_path: Path) -> None:
    """QEMU's dirty log must not lose a write: 7.2's does under emulation with more than one pass (docs/adr/0009)."""
    images = tmp_path / "busy"
    tiny.build(images, {"work": CHURN})
    async with (
        qemu(tmp_path / "a", images, incoming=False) as (source, source_pid),
        qemu(tmp_path / "b", images, incoming=True) as (target, target_pid),
    ):
        log = console_log_path(tmp_path / "a")
        await eventually(lambda: "tiny guest: ready" in log.read_text(errors="replace"), "the guest has booted", 100)
        await transfer.receive(target, tmp_path / "in.sock")
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "out.sock"))
        server.listen(1)
        await transfer.send(source, tmp_path / "out.sock")
        assert await source.status() == "running", "it stood still only while the log began"
        carrying = asyncio.create_task(asyncio.to_thread(carry, server, tmp_path / "in.sock"))

        async def completed() -> bool:
            status = await transfer.status(source)
            assert status.status in ("active", "completed"), status
            if status.status == "active" and status.passes >= PASSES:
                await transfer.switch(source)
            return status.status == "completed"

        async def arrived() -> bool:
            return await target.status() != "inmigrate"

        await eventually(completed, "the memory is sent", 100)
        await carrying
        await eventually(arrived, "the memory is there", 100)
        size = MEMORY_MIB * MIB
        sent = await GuestMemory.of(source, source_pid, size)
        got = await GuestMemory.of(target, target_pid, size)
        wrong = [at for at in range(0, size, MIB) if sent.read(at, MIB) != got.read(at, MIB)]
        assert not wrong, f"{len(wrong)} MiB of {MEMORY_MIB} differ"
