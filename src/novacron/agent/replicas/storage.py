"""All replicas that lie on this node, each with the lock of whoever changes or takes its layers."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from novacron.agent.replicas.points import ReplicaPoints
from novacron.agent.replicas.reservations import Reservations
from novacron.disk.files import make_durable

FORMER = "former-"
"""How the directories begin, by their VMs' ids, with the layers that VMs left here that go on elsewhere."""
UNFINISHED = ".begun"


class KeptReplica:
    """One replica. ``lock`` is held by whoever merges layers, removes them, or makes a disk of them."""

    def __init__(self, points: ReplicaPoints) -> None:
        self.points = points
        self.lock = asyncio.Lock()
        self.taking = asyncio.Lock()
        """Held while a round is taken in."""
        self.is_open = False

    async def open(self) -> None:
        """Read what is here, once. Raises Unacceptable, OSError."""
        async with self.lock:
            if not self.is_open:
                await asyncio.to_thread(self.points.open)
                self.is_open = True


class ReplicaStorage:
    """The replicas, by their ids; one that has nothing here is empty."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept: dict[str, KeptReplica] = {}
        self.rooms = Reservations()
        self._told: frozenset[str] | None = None
        """The VMs of the replicas that are to be here; None: the server has not said yet."""

    def tell(self, vms: Iterable[str]) -> None:
        """The server says of which VMs replicas are here."""
        self._told = frozenset(vms)

    def forget(self) -> None:
        """The link is gone: what the server would say now is not known."""
        self._told = None

    def former(self, vm: str) -> Path:
        """Return where what a VM left here of its disk is, if it is there."""
        return self._directory / f"{FORMER}{vm}"

    def keep_former(self, vm: str, layers: Sequence[Path]) -> bool:
        """A VM goes on elsewhere: keep the layers of its disk, from the lowest up, if a replica of it is to come here,
        which then brings only what differs. Its QEMU has ended. Called in a thread; raises OSError."""
        if (self._told is not None and vm not in self._told) or not layers:
            return False
        former = self.former(vm)
        begun = former.with_suffix(UNFINISHED)
        for old in (begun, former):
            shutil.rmtree(old, ignore_errors=True)
        begun.mkdir(parents=True, mode=0o700)
        for place, path in enumerate(layers):
            os.link(path, begun / str(place))
        begun.rename(former)
        make_durable(former)
        return True

    def clear_formers(self) -> None:
        """Remove what VMs left here of which no replica is to be here. Called in a thread."""
        instructed = self._told
        if instructed is None:
            return
        for path in self._directory.glob(f"{FORMER}*"):
            if path.name.removeprefix(FORMER) not in instructed:
                shutil.rmtree(path, ignore_errors=True)

    async def newest_layers(self, vm: str) -> Sequence[Path]:
        """Return the layers of the newest disk that is here of a VM, from the lowest up."""
        for kept in list(self._kept.values()):
            if kept.points.vm == vm and kept.is_open:
                return await asyncio.to_thread(kept.points.newest_layers)
        return ()

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
            await asyncio.to_thread(shutil.rmtree, self.former(vm), True)
            self._kept.pop(replica, None)
