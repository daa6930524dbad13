"""Whether a guest's pages are placed: where that is not possible QEMU loads them, and the log says so once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from novacron.agent.migration import direct_placement
from novacron.agent.migration.direct_placement import DirectPlacement, PlacingPipe
from novacron.dwcp.pipes import SocketPipe, StreamSink
from novacron.qemu import memory
from novacron.qemu.memory import MemoryBlock
from novacron.qemu.monitor import MonitorFailed
from novacron.qemu.placement import Placer, Unplaceable
from novacron.qemu.process_memory import ProcessMemory
from tests.unit.test_stream import stream, word


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    a, b = socket.socketpair()
    with a, b:
        yield a


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the log is warned of."""
    said: list[str] = []
    monkeypatch.setattr(direct_placement.log, "warning", lambda text, **_: said.append(text))
    return said


class Place:
    """A machine whose QEMU is another process, or can't be written to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: OSError | None = None) -> None:
        self.opened = 0
        self._error = error
        monkeypatch.setattr(direct_placement, "open_placer", self._open)

    async def _open(self, _monitor: object, pid: int) -> Placer:
        self.opened += 1
        if self._error is not None:
            raise self._error
        return Placer([], ProcessMemory(pid))

    async def sink(self, placement: DirectPlacement, connection: socket.socket, peer: str = "host-a") -> StreamSink:
        machine = SimpleNamespace(id="vm", pid=os.getpid(), monitor=object())
        return await placement.sink(cast(Any, machine), connection, peer)


async def test_pages_are_placed_where_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, connection: socket.socket, warnings: list[str]
) -> None:
    place = Place(monkeypatch)
    assert isinstance(await place.sink(DirectPlacement(enabled=True), connection), PlacingPipe)
    assert isinstance(await place.sink(DirectPlacement(enabled=False), connection), SocketPipe)
    assert place.opened == 1 and not warnings


async def test_where_memory_cannot_be_written_qemu_loads_it_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, connection: socket.socket, warnings: list[str]
) -> None:
    place, placement = Place(monkeypatch, PermissionError("no")), DirectPlacement(enabled=True)
    for _ in range(3):
        assert isinstance(await place.sink(placement, connection), SocketPipe)
    assert place.opened == 3, "another VM's QEMU may allow it"
    assert len(warnings) == 1 and "loaded by QEMU itself" in warnings[0]


async def test_after_a_stream_that_was_not_understood_qemu_loads_what_that_node_sends(
    monkeypatch: pytest.MonkeyPatch, connection: socket.socket
) -> None:
    """So the next attempt to move the VM may do better; other nodes have nothing to do with it."""
    place, placement = Place(monkeypatch), DirectPlacement(enabled=True)
    sink = await place.sink(placement, connection)
    with pytest.raises(Unplaceable):
        sink.write(stream([word(0, 0x100)]))
    assert isinstance(await place.sink(placement, connection), SocketPipe)
    assert isinstance(await place.sink(placement, connection, "host-c"), PlacingPipe)


class Answers:
    """A monitor with the answers of a QEMU of one version."""

    def __init__(self, heading: str, more: str, size_of_page: str = "4 KiB") -> None:
        self._heading, self._more, self._size_of_page = heading, more, size_of_page

    async def execute(self, name: str, arguments: dict[str, str] | None = None) -> object:
        if name == "query-memory-devices":
            return [
                {"type": "dimm", "data": {"addr": 0x100000000, "size": 1 << 27}},
                {"type": "virtio-mem", "data": {"memaddr": 0x200000000}},
            ]
        assert arguments is not None
        match arguments["command-line"]:
            case "info ramblock":
                line = "%24s %8s  0x%016x 0x%016x 0x%016x"
                lines = [
                    line % (name, self._size_of_page, 0, used, used) + self._more
                    for name, used in (("pc.ram", 1 << 28), ("0000:00:02.0/vga.vram", 1 << 24), ("memory1", 1 << 27))
                ]
                return "\r\n".join([self._heading, *lines, ""])
            case "gpa2hva 0":
                return "Host virtual address for 0x0 (pc.ram) is 0x7f5d0be00000\r\n"
            case "gpa2hva 4294967296":
                return "Host virtual address for 0x100000000 (memory1) is 0x7f5ccaa00000\r\n"
        raise AssertionError(arguments)


HEADING = "              Block Name    PSize              Offset               Used              Total"


@pytest.mark.parametrize(
    ("heading", "more"), [(HEADING, ""), (HEADING + "                HVA  RO", " 0x00007f5d0be00000  rw")]
)
async def test_qemu_says_where_it_has_the_guests_memory(heading: str, more: str) -> None:
    """In the words of 7.2, and of 8.0 and later."""
    assert await memory.blocks(cast(Any, Answers(heading, more))) == [
        MemoryBlock(b"pc.ram", 0x7F5D0BE00000, 1 << 28), MemoryBlock(b"memory1", 0x7F5CCAA00000, 1 << 27),
    ]  # fmt: skip


async def test_memory_in_larger_pages_is_left_to_qemu() -> None:
    with pytest.raises(MonitorFailed, match=r"how long the block pc\.ram"):
        await memory.blocks(cast(Any, Answers(HEADING, "", "2 MiB")))
