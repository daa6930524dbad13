"""What a guest is like to move: how much it has in memory and on disks, how much it writes, how that compresses."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import zstandard

from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.disk.blocks import data_ranges
from novacron.disk.files import open_plain
from novacron.model import forecast
from novacron.model.forecast import PASSES_MAX
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.qemu import transfer
from novacron.qemu.memory import PAGE, GuestMemory
from novacron.qemu.monitor import MonitorFailed

SAMPLES = 2048
LEVEL = 3
ZEROS = bytes(PAGE)


class EstimateFailed(Exception):
    """The guest could not be looked at: says why."""


class GuestLoad(msgspec.Struct, frozen=True):
    """What was measured. Sizes in bytes."""

    memory_bytes: int
    dirty_bytes_per_s: int
    ratio: float
    passes_max: int
    disk_bytes: int = 0
    disk_ratio: float = 1.0


def _look(memory: GuestMemory) -> tuple[int, float]:
    """Return how much of the memory has to be sent, and how much smaller it gets."""
    touched = memory.touched()
    chosen = random.sample(touched, min(SAMPLES, len(touched)))
    share, ratio = _weigh(memory.read(offset, PAGE) for offset in sorted(chosen))
    return int(len(touched) * PAGE * share), ratio


def _look_at_disks(paths: Iterable[Path]) -> tuple[int, float]:
    """Return how many bytes of the files have to be sent, and how much smaller they get. Raises OSError."""
    total, pages = 0, []
    for path in paths:
        with open_plain(path) as file:
            ranges = list(data_ranges(file.fileno(), os.fstat(file.fileno()).st_size))
            size = sum(end - start for start, end in ranges)
            pages_in = range(0, size, PAGE)
            places = sorted(random.sample(pages_in, min(SAMPLES, len(pages_in))))
            passed = 0
            for start, end in ranges:
                while places and places[0] < passed + end - start:
                    pages.append(os.pread(file.fileno(), PAGE, start + places.pop(0) - passed))
                passed += end - start
        total += size
    share, ratio = _weigh(pages)
    return int(total * share), ratio


def _weigh(pages: Iterable[bytes]) -> tuple[float, float]:
    """Return which share of pages is more than zeros, and how much smaller those get, in one stream as a session has
    it: pages are often like others."""
    sample = list(pages)
    telling = [page for page in sample if page != ZEROS[: len(page)]]
    if not telling:
        return 0.0, 1.0
    text = b"".join(telling)
    return len(telling) / len(sample), min(1.0, len(zstandard.ZstdCompressor(LEVEL).compress(text)) / len(text))


async def look(machine: VirtualMachine, memory_bytes: int, disks: Sequence[Path] = ()) -> GuestLoad:
    """Measure a running guest, for about a second, and the files that would move with it. Raises EstimateFailed."""
    if machine.monitor is None or machine.pid is None:
        raise EstimateFailed("the VM is not running")
    try:
        dirty = await transfer.dirty_rate(machine.monitor, memory_bytes)
        trusted = await transfer.logs_every_write(machine.monitor)
        memory = await GuestMemory.of(machine.monitor, machine.pid, memory_bytes)
        size, ratio = await asyncio.to_thread(_look, memory)
        disk_size, disk_ratio = await asyncio.to_thread(_look_at_disks, disks)
    except (MonitorFailed, OSError, TimeoutError) as error:
        raise EstimateFailed(str(error) or type(error).__name__) from error
    return GuestLoad(size, dirty, round(ratio, 4), PASSES_MAX if trusted else 1, disk_size, round(disk_ratio, 4))


def of_move(guest: GuestLoad, path: PathMeasured, limit_s: float) -> MoveForeseen:
    """Say how a migration of ``guest`` over ``path`` would go, to a target that knows nothing of it."""
    disk = guest.disk_bytes * guest.disk_ratio  # goes before the memory
    way = forecast.Path(path.best_rate_bytes_per_s, path.rtt_ms / 1e3, guest.ratio, disk)
    expected = forecast.forecast(guest.memory_bytes, guest.dirty_bytes_per_s, way, limit_s, guest.passes_max)
    return MoveForeseen(
        guest.memory_bytes, guest.dirty_bytes_per_s, guest.ratio, path, expected, guest.disk_bytes, guest.disk_ratio
    )  # fmt: skip
