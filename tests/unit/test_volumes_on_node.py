"""A node's volumes: one that can't be had, or a pool that does not answer, holds up no other."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from novacron.agent.host import volumes
from novacron.agent.host.volumes import NodeVolumes, Pools
from novacron.model.volume import VolumePhase
from novacron.wire import messages as wire


class SomePools:
    """Pools of which one does not answer, and one has a defect."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.answers = threading.Event()

    def path(self, pool: str, id: str) -> Path:
        if pool == "dead":
            self.answers.wait(30)
        if id == "volume-odd":
            raise KeyError("a defect")
        return self._directory / id


def creating(id: str, pool: str) -> wire.VolumeWanted:
    return wire.VolumeWanted(id, pool, 1, VolumePhase.CREATING)


async def test_a_bad_volume_and_a_hanging_pool_delay_no_other_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "make_durable", lambda _: None)
    said: asyncio.Queue[wire.VolumeStands] = asyncio.Queue()
    pools = SomePools(tmp_path)
    seen_to = NodeVolumes(cast(Pools, pools), {}, cast(Any, said.put_nowait))
    running = asyncio.create_task(seen_to.run())
    seen_to.tell((creating("volume-a", "dead"), creating("volume-odd", "local"), creating("volume-b", "local")))
    async with asyncio.timeout(20):
        first, second = await said.get(), await said.get()
        assert (first.id, first.phase) == ("volume-odd", VolumePhase.FAILED)
        assert (second.id, second.phase) == ("volume-b", VolumePhase.READY)
        seen_to.tell((creating("volume-a", "dead"), creating("volume-c", "local")))
        third = await said.get()
        assert (third.id, third.phase) == ("volume-c", VolumePhase.READY), "it is seen to at once"
        pools.answers.set()
        assert (await said.get()).id == "volume-a"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
