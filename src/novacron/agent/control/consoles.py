"""Consoles and ports of guests as the server opens, writes to and closes them: each in a task of its own, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from novacron.agent.vm.console import Consoles
from novacron.agent.vm.port_forward import PortForwards
from novacron.byte_budget import ByteBudget
from novacron.model import limits
from novacron.supervise import FewTasks, until_one_ends
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

AT_ONCE_MAX = limits.CONSOLE_CHANNELS_PER_NODE_MAX + 16
"""More than the server opens: those that are being closed count, too."""
INPUTS_MAX, INPUT_BYTES_MAX = 256, 1024 * 1024
"""Pieces of input of one console that wait until it is open, or takes them, and their bytes."""


class Inputs:
    """Input of one console that waits."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(INPUTS_MAX)
        self._budget = ByteBudget(INPUT_BYTES_MAX)

    def put(self, data: bytes) -> bool:
        """Let input wait and return True; if there is no room for it, return False."""
        if self._queue.full() or not self._budget.take(len(data)):
            return False
        self._queue.put_nowait(data)
        return True

    async def get(self) -> bytes:
        data = await self._queue.get()
        self._budget.give_back(len(data))
        return data


class ConsoleRequests:
    """Hands requests on to ``Consoles`` and ``PortForwards``; none of its methods wait."""

    def __init__(self, consoles: Consoles, ports: PortForwards, send: Callable[[wire.Message], None]) -> None:
        self._consoles, self._ports = consoles, ports
        self._send = send
        self._tasks = FewTasks("console", AT_ONCE_MAX)
        self._inputs: dict[int, Inputs] = {}
        self._closed: dict[int, asyncio.Event] = {}

    def open(self, request: wire.ConsoleOpen) -> None:
        """Begin to open a console."""
        channel, inputs, closed = request.channel, Inputs(), asyncio.Event()
        if not self._tasks.start(self._serve(request, inputs, closed)):
            self._send(wire.ConsoleClosed(channel, "the node has too many consoles open"))
            return
        self._inputs[channel], self._closed[channel] = inputs, closed

    def write(self, channel: int, data: bytes) -> None:
        """Let a console have input."""
        inputs = self._inputs.get(channel)
        if inputs is None:
            return
        if not inputs.put(data):
            self._send(wire.ConsoleClosed(channel, "the console does not accept input"))
            self.close(channel)

    def take(self, channel: int, size_bytes: int) -> None:
        """The viewer of a port has taken so much of what came of it."""
        self._ports.take(channel, size_bytes)

    def close(self, channel: int) -> None:
        """Close a console, also one that is still being opened."""
        closed = self._closed.get(channel)
        if closed is not None:
            closed.set()

    def close_all(self) -> None:
        """The link is gone, and with it all viewers."""
        for closed in self._closed.values():
            closed.set()
        self._consoles.close_all()
        self._ports.close_all()

    async def end(self) -> None:
        await self._tasks.end()

    async def _serve(self, request: wire.ConsoleOpen, inputs: Inputs, closed: asyncio.Event) -> None:
        channel = request.channel
        try:
            await until_one_ends(_until(closed), self._carry(request, inputs))
        except Exception as error:  # a defect: the viewer must not wait in vain
            log.exception("defect with a console", vm=request.vm)
            self._send(wire.ConsoleClosed(channel, f"internal error in its agent: {type(error).__name__}"))
        finally:
            (self._ports if request.port else self._consoles).close(channel)
            if self._inputs.get(channel) is inputs:
                del self._inputs[channel], self._closed[channel]

    async def _carry(self, request: wire.ConsoleOpen, inputs: Inputs) -> None:
        if request.port:
            await self._ports.open(request.channel, request.vm, request.port)
        else:
            await self._consoles.open(request.channel, request.vm, request.kind)
        streams = self._ports if request.port else self._consoles
        while True:
            await streams.write(request.channel, await inputs.get())


async def _until(event: asyncio.Event) -> None:
    await event.wait()
