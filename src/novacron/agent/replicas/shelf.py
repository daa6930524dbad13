"""All replicas that lie on this node, each with the lock of whoever changes or takes its layers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from novacron.agent.replicas.points import ReplicaPoints


class KeptReplica:
    """One replica. ``lock`` is held by whoever merges layers, removes them, or makes a disk of them."""

    def __init__(self, points: ReplicaPoints) -> None:
        self.points = points
        self.lock = asyncio.Lock()
        self.taking = asyncio.Lock()
        """Held while a round is taken in."""
        self._is_open = False

    async def open(self) -> None:
        """Read what is here, once. Raises Unacceptable, OSError."""
        async with self.lock:
            if not self._is_open:
                await asyncio.to_thread(self.points.open)
                self._is_open = True


class ReplicaShelf:
    """The replicas, by their ids; one that has nothing here is empty."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept: dict[str, KeptReplica] = {}

    def find(self, replica: str, vm: str) -> KeptReplica:
        """Return a replica of a VM."""
        kept = self._kept.get(replica)
        if kept is None:
            kept = self._kept[replica] = KeptReplica(ReplicaPoints(self._directory / replica, vm))
        return kept

    async def remove(self, replica: str, vm: str) -> None:
        """Remove all that is here of a replica. Raises OSError."""
        kept = self.find(replica, vm)
        async with kept.lock:
            await asyncio.to_thread(kept.points.remove)
            self._kept.pop(replica, None)
