"""Serial consoles: QEMU allows one reader for each, here any number may look on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from novacron.qemu.command import console_path
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

READ_BYTES = 16 * 1024


class _Hub:
    """One VM's console socket, open while somebody looks."""

    def __init__(self, vm: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.vm = vm
        self.channels: set[int] = set()
        self.writer = writer
        self.reader = reader


class Consoles:
    """All consoles of a node, by the channel numbers that the server gives out."""

    def __init__(self, vms_dir: Path, send: Callable[[wire.Message], None]) -> None:
        self._vms_dir = vms_dir
        self._send = send
        self._hubs: dict[str, _Hub] = {}
        self._vm_of: dict[int, str] = {}
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, channel: int, vm: str) -> None:
        """Begin to send a VM's output on ``channel``."""
        async with self._opening:
            hub = self._hubs.get(vm)
            if hub is None:
                try:
                    reader, writer = await asyncio.open_unix_connection(str(console_path(self._vms_dir / vm)))
                except OSError as error:
                    self._send(wire.ConsoleClosed(channel, f"VM {vm} has no console now: {error.strerror}"))
                    return
                hub = self._hubs[vm] = _Hub(vm, reader, writer)
                task = asyncio.create_task(self._pump(hub), name=f"console-{vm}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            hub.channels.add(channel)
            self._vm_of[channel] = vm

    async def write(self, channel: int, data: bytes) -> None:
        hub = self._hubs.get(self._vm_of.get(channel, ""))
        if hub is not None:
            hub.writer.write(data)
            await hub.writer.drain()

    def close(self, channel: int) -> None:
        hub = self._hubs.get(self._vm_of.pop(channel, ""))
        if hub is not None:
            hub.channels.discard(channel)
            if not hub.channels:
                hub.writer.close()

    def close_all(self) -> None:
        """The link is gone, and with it everybody who looked."""
        for channel in list(self._vm_of):
            self.close(channel)

    async def _pump(self, hub: _Hub) -> None:
        try:
            while data := await hub.reader.read(READ_BYTES):
                for channel in hub.channels:
                    self._send(wire.ConsoleOutput(channel, data))
        except OSError as error:
            log.info("a console broke off", vm=hub.vm, error=str(error))
        finally:
            if self._hubs.get(hub.vm) is hub:
                del self._hubs[hub.vm]
            hub.writer.close()
            for channel in list(hub.channels):
                self._vm_of.pop(channel, None)
                self._send(wire.ConsoleClosed(channel, "the VM's console ended"))
