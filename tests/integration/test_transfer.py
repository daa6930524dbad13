"""QEMU's own part of a live migration, without DWCP between: is the guest's memory the same at the other end?"""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent.migration.direct_placement import PlacingPipe, open_placer
from novacron.disk import tiny
from novacron.dwcp.pipes import SocketPipe, StreamSink
from novacron.qemu.command import console_log_path
from tests.support.bare_qemu import differing_pages, move, qemu
from tests.waiting import eventually

MEMORY_MIB = 256
CHURN = b"""#!/bin/busybox sh
(while :; do dd if=/dev/urandom of=/run/churn bs=64k count=64 conv=notrunc 2>/dev/null; done) &
"""
PASSES = 5


@pytest.mark.parametrize("placed", [False, True])
async def test_memory_arrives_as_it_was_when_the_guest_stopped(tmp_path: Path, placed: bool) -> None:
    """QEMU's dirty log must not lose a write: 7.2's does under emulation, so it makes one pass (docs/adr/0009)."""
    images = tmp_path / "busy"
    tiny.build(images, {"work": CHURN})
    async with (
        qemu(tmp_path / "a", images, MEMORY_MIB, incoming=False) as source,
        qemu(tmp_path / "b", images, MEMORY_MIB, incoming=True) as target,
    ):
        log = console_log_path(tmp_path / "a")
        await eventually(lambda: "tiny guest: ready" in log.read_text(errors="replace"), "the guest has booted", 100)

        async def wrap(pipe: SocketPipe) -> StreamSink:
            return PlacingPipe(pipe, await open_placer(*target), lambda: None) if placed else pipe

        await move(source[0], target[0], tmp_path, PASSES, wrap)
        assert not await differing_pages(source, target)
