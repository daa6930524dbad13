"""Pages that are placed in a real QEMU's memory, of a guest that stands still: every page is the same at both ends."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from novacron.agent.migration.direct_placement import PlacingPipe, open_placer
from novacron.dwcp.pipes import SocketPipe, StreamSink
from novacron.model.guest_hardware import GuestHardware
from novacron.model.node import AcceleratorKind
from novacron.qemu import hotplug
from novacron.qemu.confine import Cgroup
from novacron.qemu.memory import PAGE, blocks
from novacron.qemu.monitor import Monitor
from novacron.qemu.process_memory import PageRun, ProcessMemory, address_of
from tests.chance import fixed_seed
from tests.support.bare_qemu import MIB, differing_pages, move, qemu
from tests.waiting import eventually

PLUGGED_MIB = 128
PAGES, PAGES_BEFORE = 3000, 300
"""Pages that the guest wrote, and that the target's QEMU did before anything came."""
GIVEN_BYTES_MAX = 2 * MIB
"""What QEMU may be given: its devices, and memory of theirs."""
NOBODY, REFUSED = 65_534, 77
WRITE = ProcessMemory.write


class CountingSink:
    """Counts what QEMU is given."""

    def __init__(self, pipe: StreamSink) -> None:
        self.bytes = 0
        self._pipe = pipe

    def write(self, data: bytes) -> None:
        self.bytes += len(data)
        self._pipe.write(data)

    def finish(self) -> None:
        self._pipe.finish()

    def abort(self) -> None:
        self._pipe.abort()


class Pair(NamedTuple):
    """Two QEMUs: the source and the target of a guest, each its monitor and the process's id."""

    source: tuple[Monitor, int]
    target: tuple[Monitor, int]
    directory: Path

    async def move(self) -> int:
        """Move the guest, its pages placed; return how many bytes QEMU was given."""
        given: list[CountingSink] = []

        async def wrap(pipe: SocketPipe) -> StreamSink:
            given.append(CountingSink(pipe))
            return PlacingPipe(given[0], await open_placer(*self.target), lambda: None)

        await move(self.source[0], self.target[0], self.directory, wrap=wrap)
        return given[0].bytes


@contextlib.asynccontextmanager
async def pair(directory: Path, images: Path, memory_mib: int) -> AsyncIterator[Pair]:
    """Two QEMUs with memory plugged in: one with a guest that was never started, one that waits for it."""
    async with (
        qemu(directory / "a", images / "tiny", memory_mib, incoming=False, paused=True) as source,
        qemu(directory / "b", images / "tiny", memory_mib, incoming=True) as target,
    ):
        for monitor, _ in (source, target):
            await hotplug.replay(monitor, GuestHardware(1, memory_mib, 0, (PLUGGED_MIB,), False))
        yield Pair(source, target, directory)


async def scribble(of: tuple[Monitor, int], pages: int, randomness: random.Random) -> None:
    """Write random pages at random places of a guest's memory, also at its blocks' ends, as the guest might."""
    monitor, pid = of
    memory = ProcessMemory(pid)
    for block in await blocks(monitor):
        last = block.size // PAGE - 1
        for number in {0, last, *(randomness.randint(0, last) for _ in range(pages))}:
            data = randomness.randbytes(PAGE)
            memory.write([PageRun(block.address + number * PAGE, 1, address_of(data), 0)])


async def test_every_page_is_placed_past_qemu_also_of_memory_that_was_plugged_in(tmp_path: Path, images: Path) -> None:
    randomness = random.Random(fixed_seed())
    async with pair(tmp_path, images, 256) as guests:
        assert [(block.name, block.size) for block in await blocks(guests.source[0])] == [
            (b"pc.ram", 256 * MIB), (b"memory1", PLUGGED_MIB * MIB),
        ]  # fmt: skip
        await scribble(guests.source, PAGES, randomness)
        await scribble(guests.target, PAGES_BEFORE, randomness)
        given_bytes = await guests.move()
        assert not await differing_pages(guests.source, guests.target)
    assert given_bytes < GIVEN_BYTES_MAX


@pytest.mark.slow
async def test_memory_on_both_sides_of_the_hole_below_4_gib_is_placed(tmp_path: Path, images: Path) -> None:
    """The guest sees it at two places; in the stream and in QEMU it is one block."""
    async with pair(tmp_path, images, 5120) as guests:
        await scribble(guests.source, PAGES, random.Random(fixed_seed()))
        assert await guests.move() < GIVEN_BYTES_MAX
        assert not await differing_pages(guests.source, guests.target)


async def test_a_page_that_is_not_placed_is_found(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The tests above can fail: they compare every page."""
    left_out: list[PageRun] = []

    def write(self: ProcessMemory, runs: Sequence[PageRun]) -> None:
        if not left_out:
            left_out.extend(run for run in runs if run.stride)
            runs = [run for run in runs if run not in left_out[:1]]
        WRITE(self, runs)

    async with pair(tmp_path, images, 128) as guests:
        await scribble(guests.source, 10, random.Random(fixed_seed()))
        monkeypatch.setattr(ProcessMemory, "write", write)
        await guests.move()
        (first, *_) = await blocks(guests.target[0])
        at = left_out[0].address - first.address
        assert await differing_pages(guests.source, guests.target) == [(b"pc.ram", at)]


async def test_what_is_placed_is_charged_to_the_vm_and_not_to_its_agent(tmp_path: Path, images: Path) -> None:
    cgroup = Cgroup(f"test-{os.getpid()}")
    async with qemu(tmp_path / "a", images / "tiny", 128, incoming=True) as (monitor, pid):
        try:
            cgroup.place(pid, 1, 128, AcceleratorKind.TCG)
            before = cgroup.charged_bytes()
        except OSError as error:
            pytest.skip(f"this host counts no memory: {error}")
        (block, *_) = await blocks(monitor)
        page = b"p" * PAGE
        ProcessMemory(pid).write([PageRun(block.address, block.size // PAGE, address_of(page), 0)])
        charged = cgroup.charged_bytes() - before

    def removed() -> bool:
        with contextlib.suppress(OSError):  # its process has not quite ended
            cgroup.remove()
            return True
        return False

    await eventually(removed, "its cgroup is removed", 20)
    assert charged >= block.size - MIB


async def test_a_qemu_that_has_ended_is_written_to_no_more(tmp_path: Path, images: Path) -> None:
    async with qemu(tmp_path / "a", images / "tiny", 128, incoming=True) as (monitor, pid):
        memory = ProcessMemory(pid)
        (block, *_) = await blocks(monitor)
    with pytest.raises(ProcessLookupError):
        memory.write([PageRun(block.address, 1, address_of(bytes(PAGE)), 0)])


def nobody_may_write(pid: int, address: int) -> bool:
    """Say whether another user may write to a process's memory, in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            os.setuid(NOBODY)
            ProcessMemory(pid).check_writable(address)
        except PermissionError:
            os._exit(REFUSED)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) != REFUSED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_an_agent_without_privileges_finds_out_before_the_first_page(tmp_path: Path, images: Path) -> None:
    async with qemu(tmp_path / "a", images / "tiny", 128, incoming=True) as (monitor, pid):
        (block, *_) = await blocks(monitor)
        ProcessMemory(pid).check_writable(block.address)
        assert not nobody_may_write(pid, block.address)
