"""Replicas that this node keeps: rounds come in, become points, and the oldest points are merged."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from novacron.agent.actions import Action, doing
from novacron.agent.images.named_work import NamedWork
from novacron.agent.migration.services import NodeServices
from novacron.agent.replicas.points import Point, ReplicaPoints, check_layer
from novacron.agent.replicas.shelf import KeptReplica
from novacron.agent.replication import rounds
from novacron.agent.vm.directory import UIDS_MAX
from novacron.disk import layers
from novacron.disk.convert import ToolUser
from novacron.disk.errors import Unacceptable
from novacron.disk.files import NewFile
from novacron.disk.stream import DiskPlayer, Head, StreamError, VolumeSink
from novacron.dwcp.backoff import Backoff
from novacron.dwcp.frames import ErrorCode, ProtocolError
from novacron.dwcp.receiver import ReceiveFailed, ReceiveOptions
from novacron.model.limits import SHARED_LAYERS_MAX
from novacron.model.replica import ReplicaPhase
from novacron.model.waiting import WaitCode
from novacron.qemu.confine import Account, confined
from novacron.supervise import guard
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

SPARE_BYTES = 1 << 30
"""What rounds leave free of the node's file system."""
RETRY_S_MIN, RETRY_S_MAX = 1.0, 60.0
EXPECTED = (ReceiveFailed, Unacceptable, OSError, TimeoutError)


class KeptReplicas:
    """All replicas of this node."""

    def __init__(self, host: NodeServices, send: Callable[[wire.Message], None]) -> None:
        self._host, self._send = host, send
        settings = host.settings
        self._uid = None if settings.uid_base is None else settings.uid_base + UIDS_MAX - 1
        self._unsaid: dict[str, wire.ReplicaKept] = {}
        self._saying = False
        self._work = NamedWork("replica", self._see_to, lambda _is_kept: None)

    def tell(self, kept: tuple[wire.ReplicaKept, ...], tasks: asyncio.TaskGroup) -> None:
        """Keep these; what is here of others stays as it is: the server may have forgotten them by mistake."""
        self._work.tell({f"{replica.id}.{hash(replica):x}": replica for replica in kept}, tasks)
        self._unsaid = {replica.id: replica for replica in kept if replica.phase is not ReplicaPhase.DELETING}
        if not self._saying:
            self._saying = True
            tasks.create_task(guard("replica-reports", self._report_all))

    async def _report_all(self) -> None:
        """Say what there is of each: the server may not have heard it."""
        try:
            while self._unsaid:
                _, replica = self._unsaid.popitem()
                try:
                    await self._report(replica)
                except EXPECTED as error:
                    log.warning("a replica can't be read now", replica=replica.id, error=str(error))
        finally:
            self._saying = False

    async def _see_to(self, replica: wire.ReplicaKept) -> None:
        kept = self._host.replicas.find(replica.id, replica.vm)
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while True:
            try:
                if replica.phase is ReplicaPhase.DELETING:
                    await self._remove(replica, kept)
                    return
                await self._keep(replica, kept, backoff)
            except EXPECTED as error:
                log.warning("a replica can't be seen to now", replica=replica.id, error=str(error))
            await asyncio.sleep(backoff.next_s())

    async def _remove(self, replica: wire.ReplicaKept, kept: KeptReplica) -> None:
        async with kept.taking:
            await self._host.replicas.remove(replica.id, replica.vm)
        self._send(wire.ReplicaStands(replica.id, (), 0, gone=True))

    async def _keep(self, replica: wire.ReplicaKept, kept: KeptReplica, backoff: Backoff) -> None:
        """Take rounds in until one fails."""
        await self._report(replica)
        while replica.peer:
            async with kept.taking:  # work on what the server said before may still end
                await self._take(replica, kept)
            backoff.reset()
            await self._report(replica)
            await self._merge(replica, kept)
        await asyncio.Event().wait()  # until the server says who sends

    async def _report(self, replica: wire.ReplicaKept) -> None:
        kept = self._host.replicas.find(replica.id, replica.vm)
        await kept.open()
        used_bytes = await asyncio.to_thread(kept.points.used_bytes)
        self._send(wire.ReplicaStands(replica.id, kept.points.stands(), used_bytes))

    async def _take(self, replica: wire.ReplicaKept, kept: KeptReplica) -> None:
        """Take the next round in, whenever it comes. Raises those of EXPECTED."""
        host = self._host
        terms = ReceiveOptions(replica.page_key, host.settings.rings_dir, outage_s=host.settings.outage_s)
        image = host.images.get(replica.image)
        if image is None or image.disk is None or not image.is_(replica.image_digest):
            raise Unacceptable(f"this node does not hold image {replica.image}", WaitCode.IMAGE_MISSING)
        arrival = _Arrival(max(replica.disk_mib << 20, image.info.disk_bytes), kept.points, time.time)
        with host.listener.expect(rounds.session_of(replica.id, replica.peer), replica.peer, terms) as session:
            await session.receive(DiskPlayer(arrival.open))

    async def _merge(self, replica: wire.ReplicaKept, kept: KeptReplica) -> None:
        image = self._host.images.get(replica.image)
        if image is None or image.disk is None or not image.is_(replica.image_digest):
            return
        user = ToolUser(
            lambda command: command if self._uid is None else confined(command, Account(self._uid)), self._uid
        )
        async with kept.lock:
            while (merge := await asyncio.to_thread(kept.points.to_merge, replica.points_kept)) is not None:
                with doing(Action.MERGE_POINTS, vm=replica.vm, replica=replica.id):
                    below = [image.disk, *merge.below]
                    await layers.merge(below, merge.lower.path, merge.upper.path, SPARE_BYTES, user)
                    await asyncio.to_thread(kept.points.merged, merge)


class _HeadFile(NewFile):
    """The last volume of a round: with it the round is there."""

    def __init__(self, path: Path, size_bytes: int, arrived: Callable[[], None]) -> None:
        super().__init__(path, size_bytes)
        self._arrived = arrived

    def flush(self) -> None:
        super().flush()
        self.close()
        self._arrived()


class _Arrival:
    """A round that comes in."""

    def __init__(self, disk_bytes: int, points: ReplicaPoints, clock: Callable[[], float]) -> None:
        """``disk_bytes``: how large the VM's disk is."""
        self._disk_bytes, self._points, self._clock = disk_bytes, points, clock
        self._name = rounds.RoundName("", "")
        self._began_s = 0.0
        self._directory = Path()

    def open(self, head: Head) -> list[VolumeSink]:
        """Return where the volumes of a round go. Raises StreamError, ProtocolError, OSError."""
        self._began_s = self._clock()
        self._name = rounds.name_of(head.volumes, self._disk_bytes)
        if self._name.since and self._name.since != self._points.newest_round:
            raise ProtocolError("the replica does not have the point before", ErrorCode.NOTHING_BELOW)
        if self._name.since and self._points.layer_count >= SHARED_LAYERS_MAX:
            raise StreamError("a VM that was made of the replica has its layers: delete that VM first")
        self._directory = self._points.receiving()
        free = shutil.disk_usage(self._directory).free
        *layers_, last = head.volumes
        needed = sum(volume.size_bytes for volume in head.volumes)
        if needed > free - SPARE_BYTES:
            raise StreamError(f"there is no room for {needed} bytes: {free} are free for replicas")
        files = [NewFile(self._directory / str(place), layer.size_bytes) for place, layer in enumerate(layers_)]
        # Flushed last: the sender is told that all went well only once it is a point.
        return [*files, _HeadFile(self._directory / rounds.HEAD, last.size_bytes, self._add)]

    def _add(self) -> None:
        path = self._directory / rounds.HEAD
        head = rounds.head_of(path.read_bytes())
        path.unlink()
        for layer in self._directory.iterdir():
            check_layer(layer, self._disk_bytes)
        at_s = self._began_s - max(0.0, head.age_s)
        point = Point(self._points.newest + 1, self._name.round, at_s, head.changed_bytes, head.quiesced, head.state)
        self._points.add(point, whole=not self._name.since)
