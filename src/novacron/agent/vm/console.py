"""Consoles: serial lines, of which QEMU allows one reader and here any number may look on, and displays."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from weakref import WeakValueDictionary

from novacron.model.console import ConsoleLine
from novacron.qemu.command import console_path, display_path
from novacron.qemu.confine import check_peer
from novacron.qemu.peripherals import serial_path
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

READ_BYTES = 16 * 1024
CONNECT_S = 5.0
INPUT_BYTES_MAX = 256 * 1024
"""What may wait for a guest to take it: nobody else is to wait for that."""


def _socket_path(directory: Path, kind: ConsoleLine) -> Path:
    number = kind.serial
    if number is None:
        return display_path(directory)
    return serial_path(directory, number) if number else console_path(directory)


class _Hub:
    """One socket of QEMU's, open while somebody looks."""

    def __init__(self, key: tuple[str, ConsoleLine, int], socket: socket.socket) -> None:
        self.key = key
        self.channels: set[int] = set()
        self._socket = socket

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_unix_connection(sock=self._socket)


class Consoles:
    """All consoles of a node, by the channel numbers that the server gives out. ``pid_of`` says which process a VM's
    QEMU is."""

    def __init__(
        self, vms_dir: Path, pid_of: Callable[[str], int | None], send: Callable[[wire.Message], Awaitable[None]]
    ) -> None:
        self._vms_dir = vms_dir
        self._pid_of = pid_of
        self._send = send
        self._hubs: dict[tuple[str, ConsoleLine, int], _Hub] = {}
        self._hub_of: dict[int, _Hub] = {}
        self._opening: WeakValueDictionary[tuple[str, ConsoleLine, int], asyncio.Lock] = WeakValueDictionary()
        """Held while a hub is opened: that takes up to ``CONNECT_S``, for which other consoles do not wait."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, channel: int, vm: str, kind: ConsoleLine) -> None:
        """Begin to send a VM's output on ``channel``. Each has the display's to itself."""
        key = (vm, kind, channel if kind is ConsoleLine.DISPLAY else 0)
        lock = self._opening.setdefault(key, asyncio.Lock())
        async with lock:
            hub = self._hubs.get(key)
            if hub is None:
                try:
                    hub = _Hub(key, await asyncio.to_thread(self._connect, vm, kind))
                    await hub.open()
                except OSError as error:
                    why = f"VM {vm} has no {kind} console now: {error.strerror or error}"
                    await self._send(wire.ConsoleClosed(channel, why))
                    return
                self._hubs[key] = hub
                task = asyncio.create_task(self._pump(hub), name=f"console-{vm}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            hub.channels.add(channel)
            self._hub_of[channel] = hub

    def _connect(self, vm: str, kind: ConsoleLine) -> socket.socket:
        pid = self._pid_of(vm)
        if pid is None:
            raise OSError("it is not running")
        path = _socket_path(self._vms_dir / vm, kind)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(CONNECT_S)
            connection.connect(str(path))
            if kind is ConsoleLine.DISPLAY:  # QEMU made that socket
                check_peer(connection, pid)
            connection.setblocking(False)
        except BaseException:
            connection.close()
            raise
        return connection

    async def write(self, channel: int, data: bytes) -> None:
        hub = self._hub_of.get(channel)
        if hub is None or hub.writer.transport.is_closing():  # its end is said when all that came of it is
            return
        if hub.writer.transport.get_write_buffer_size() > INPUT_BYTES_MAX:
            self.close(channel)
            await self._send(wire.ConsoleClosed(channel, "the guest takes no input"))
            return
        hub.writer.write(data)

    def close(self, channel: int) -> None:
        hub = self._hub_of.pop(channel, None)
        if hub is not None:
            hub.channels.discard(channel)
            if not hub.channels:
                self._forget(hub)

    def _forget(self, hub: _Hub) -> None:
        """Close a hub: later viewers of its VM get a new one."""
        if self._hubs.get(hub.key) is hub:
            del self._hubs[hub.key]
        hub.writer.close()

    def close_all(self) -> None:
        """The link is gone, and with it all viewers."""
        for channel in list(self._hub_of):
            self.close(channel)

    async def _pump(self, hub: _Hub) -> None:
        try:
            while data := await hub.reader.read(READ_BYTES):
                for channel in list(hub.channels):
                    await self._send(wire.ConsoleOutput(channel, data))
        except OSError as error:
            log.info("a console connection was lost", vm=hub.key[0], error=str(error))
        finally:
            self._forget(hub)
            for channel in list(hub.channels):
                self._hub_of.pop(channel, None)
                await self._send(wire.ConsoleClosed(channel, "the VM's console ended"))
