"""The target's way of writing a guest's memory past QEMU, where this host allows it. docs/adr/0073."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.dwcp.pipes import SocketPipe, StreamSink
from novacron.qemu import memory
from novacron.qemu.memory import MemoryBlock
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.qemu.placement import PlacedBlock, Placer, Unplaceable
from novacron.qemu.process_memory import ProcessMemory
from novacron.telemetry import logs

log = logs.get(__name__)


class DirectPlacement:
    """Decides for each guest that comes whether its pages are placed, and remembers where that can't be done."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._told = False
        """The log has it that this host does not allow it."""
        self._unknown: set[str] = set()
        """Nodes whose streams were not understood: one name for each node at most."""

    async def sink(self, machine: VirtualMachine, connection: socket.socket, peer: str) -> StreamSink:
        """Return where the stream of a guest from ``peer`` goes, whose QEMU waits at the connection's other end."""
        pipe = SocketPipe(connection)
        if not self._enabled or peer in self._unknown:
            return pipe
        try:
            assert machine.monitor is not None and machine.pid is not None
            placer = await open_placer(machine.monitor, machine.pid)
        except (MonitorFailed, OSError) as error:
            if not self._told:
                self._told = True
                log.warning(
                    "QEMU's memory can't be written from outside: guests that come are loaded by QEMU itself, which"
                    " takes longer", vm=machine.id, error=str(error),
                )  # fmt: skip
            return pipe
        return PlacingPipe(pipe, placer, lambda: self._unknown.add(peer))


async def open_placer(monitor: Monitor, pid: int) -> Placer:
    """Return what places pages in the memory of a QEMU that waits for them, process ``pid``.

    Raises MonitorFailed; OSError where that is not possible.
    """
    process = ProcessMemory(pid)
    blocks = await memory.blocks(monitor)  # it answers, so the process is still this QEMU
    return await asyncio.to_thread(_placer, pid, process, blocks)


def _placer(pid: int, process: ProcessMemory, blocks: list[MemoryBlock]) -> Placer:
    placed = []
    for block in blocks:
        memory.check_private(pid, block)
        process.check_writable(block.address)
        placed.append(PlacedBlock(block, memory.touched(pid, block)))
    return Placer(placed, process)


class PlacingPipe:
    """A stream into QEMU whose pages are written into its memory, and the rest to its socket."""

    def __init__(self, pipe: StreamSink, placer: Placer, on_unknown: Callable[[], None]) -> None:
        self._pipe, self._placer, self._on_unknown = pipe, placer, on_unknown
        self._given_bytes = 0

    def write(self, data: bytes) -> None:
        try:
            rest = self._placer.take(data)
        except Unplaceable:
            self._on_unknown()
            raise
        if rest:
            self._pipe.write(rest)
            self._given_bytes += len(rest)

    def finish(self) -> None:
        self._placer.finish()
        self._pipe.finish()
        log.info("a guest's memory was placed", pages=self._placer.pages, given_to_qemu_bytes=self._given_bytes)

    def abort(self) -> None:
        self._pipe.abort()
