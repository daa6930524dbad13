"""TCP connections into guests, for users who have no route to them: SSH, for the most part.

A guest is reached inside its network's namespace, from the address of the network's own DHCP server, and only at the
address that the control plane gave it: what a guest says of itself, or a user of a bridge, leads nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable

from novacron.agent.host.networks import GuestPlace
from novacron.flow_credit import SendCredit, Taken
from novacron.net import namespace
from novacron.net.overlay import SERVICE
from novacron.net.tap import NetworkFailed
from novacron.wire import messages as wire

READ_BYTES = 16 * 1024
CONNECT_S = 5.0


class _Forward:
    """One connection to a guest's port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.credit, self.taken = SendCredit(), Taken()
        self.closed = False


class PortForwards:
    """All connections of a node to its guests' ports, by the channel numbers that the server gives out. ``place_of``
    says where a VM that runs here is reached."""

    def __init__(
        self, place_of: Callable[[str], GuestPlace | None], send: Callable[[wire.Message], Awaitable[None]]
    ) -> None:
        self._place_of = place_of
        self._send = send
        self._forwards: dict[int, _Forward] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, channel: int, vm: str, port: int) -> None:
        """Connect to a port of a guest, and begin to send what comes from it on ``channel``."""
        try:
            forward = _Forward(*await asyncio.open_connection(sock=await self._connect(vm, port)))
        except (OSError, TimeoutError, NetworkFailed) as error:
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error) or "no answer"
            await self._send(wire.ConsoleClosed(channel, f"port {port} of the VM can't be reached: {why}"))
            return
        self._forwards[channel] = forward
        task = asyncio.create_task(self._pump(channel, forward), name=f"port-{vm}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, vm: str, port: int) -> socket.socket:
        """Raises OSError, TimeoutError, NetworkFailed."""
        place = self._place_of(vm)
        if place is None:
            raise NetworkFailed("it is not running, or has no address in a network of kind overlay")
        connection = namespace.within(place.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, SERVICE.encode())
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.bind((place.source, 0))
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(connection, (place.address, port))
        except BaseException:
            connection.close()
            raise
        return connection

    async def write(self, channel: int, data: bytes) -> None:
        """Send bytes to the guest, and wait until it takes them; none: that is the end of them."""
        forward = self._forwards.get(channel)
        if forward is None or forward.writer.transport.is_closing():
            return
        with contextlib.suppress(OSError):  # its end is said when all that came of it is
            if data:
                forward.writer.write(data)
                await forward.writer.drain()
            else:
                forward.writer.write_eof()
        if due_bytes := forward.taken.add(data):
            await self._send(wire.ConsoleTaken(channel, due_bytes))

    def take(self, channel: int, size_bytes: int) -> None:
        """The viewer has taken so much of what came."""
        forward = self._forwards.get(channel)
        if forward is not None:
            forward.credit.give_back(size_bytes)

    def close(self, channel: int) -> None:
        forward = self._forwards.pop(channel, None)
        if forward is not None:
            self._end(forward)

    def _end(self, forward: _Forward) -> None:
        forward.closed = True
        forward.credit.end()
        # What the guest does not take would keep the socket open.
        forward.writer.transport.abort()

    def close_all(self) -> None:
        """The link is gone, and with it all viewers."""
        for channel in list(self._forwards):
            self.close(channel)

    async def _pump(self, channel: int, forward: _Forward) -> None:
        reason = wire.CLOSED
        try:
            while data := await forward.reader.read(READ_BYTES):
                await forward.credit.wait()
                if forward.closed:
                    break
                forward.credit.spend(data)
                await self._send(wire.ConsoleOutput(channel, data))
        except OSError as error:
            reason = f"the connection to the VM was lost: {error.strerror or error}"
        finally:
            if self._forwards.get(channel) is forward:
                del self._forwards[channel]
            self._end(forward)
            await self._send(wire.ConsoleClosed(channel, reason))
