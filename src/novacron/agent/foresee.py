"""What a guest is like to move: how much it has, how much it writes, how well that compresses."""

from __future__ import annotations

import asyncio
import random

import msgspec
import zstandard

from novacron.agent.machine import Machine
from novacron.model.forecast import PASSES_MAX, Path, forecast
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.qemu import transfer
from novacron.qemu.memory import PAGE, GuestMemory
from novacron.qemu.monitor import MonitorFailed

SAMPLES = 2048
LEVEL = 3
ZEROS = bytes(PAGE)


class ForeseeFailed(Exception):
    """The guest could not be looked at: says why."""


class Guest(msgspec.Struct, frozen=True):
    """What was measured. Sizes in bytes."""

    memory_bytes: int
    dirty_bytes_per_s: int
    ratio: float
    passes_max: int


def _look(memory: GuestMemory) -> tuple[int, float]:
    """Return how much of the memory has to be sent, and how much smaller it gets."""
    touched = memory.touched()
    chosen = random.sample(touched, min(SAMPLES, len(touched)))
    pages = [memory.read(offset, PAGE) for offset in sorted(chosen)]
    telling = [page for page in pages if page != ZEROS]
    if not telling:
        return 0, 1.0
    # All in one stream, as a session has it: pages are often like others.
    packed = len(zstandard.ZstdCompressor(LEVEL).compress(b"".join(telling)))
    share = len(telling) / len(pages)
    return int(len(touched) * PAGE * share), min(1.0, packed / (len(telling) * PAGE))


async def look(machine: Machine, memory_bytes: int) -> Guest:
    """Measure a running guest, for about a second. Raises ForeseeFailed."""
    if machine.monitor is None or machine.pid is None:
        raise ForeseeFailed("the VM does not run")
    try:
        dirty = await transfer.dirty_rate(machine.monitor)
        trusted = await transfer.logs_every_write(machine.monitor)
        memory = await GuestMemory.of(machine.monitor, machine.pid, memory_bytes)
        size, ratio = await asyncio.to_thread(_look, memory)
    except (MonitorFailed, OSError, TimeoutError) as error:
        raise ForeseeFailed(str(error) or type(error).__name__) from error
    return Guest(size, dirty, round(ratio, 4), PASSES_MAX if trusted else 1)


def foresee(guest: Guest, path: PathMeasured, limit_s: float) -> MoveForeseen:
    """Say how a migration of ``guest`` over ``path`` would go, to a target that knows nothing of it."""
    way = Path(path.best_rate_bytes_per_s, path.rtt_ms / 1e3, guest.ratio)
    found = forecast(guest.memory_bytes, guest.dirty_bytes_per_s, way, limit_s, guest.passes_max)
    return MoveForeseen(guest.memory_bytes, guest.dirty_bytes_per_s, guest.ratio, path, found)
