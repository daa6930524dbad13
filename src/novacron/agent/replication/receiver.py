"""Replicas that this node keeps: rounds come in, become points, and the oldest points are merged."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from novacron.agent.actions import Action, doing
from novacron.agent.images.named_work import NamedWork
from novacron.agent.migration.services import NodeServices
from novacron.agent.replicas.points import Point, ReplicaPoints, check_layer
from novacron.agent.replicas.reservations import Reservations
from novacron.agent.replicas.storage import KeptReplica
from novacron.agent.replication import rounds
from novacron.agent.replication.comparison import Answering, ComparisonPlayer, OpenedDisk
from novacron.agent.vm.directory import UIDS_MAX
from novacron.disk import layers
from novacron.disk.chain import Chain
from novacron.disk.convert import ToolUser
from novacron.disk.errors import Unacceptable
from novacron.disk.files import NewFile
from novacron.disk.stream import DiskPlayer, Head, StreamError, VolumeSink
from novacron.dwcp.backoff import Backoff
from novacron.dwcp.frames import ErrorCode, ProtocolError
from novacron.dwcp.page_codec import PageHash
from novacron.dwcp.receiver import ReceiveFailed, ReceiveOptions
from novacron.model.limits import SHARED_LAYERS_MAX
from novacron.model.replica import ReplicaPhase
from novacron.model.waiting import WaitCode
from novacron.qemu.confine import Account, confined
from novacron.supervise import RESTARTS, guard
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

SPARE_BYTES = 1 << 30
"""What rounds leave free of the node's file system."""
RETRY_S_MIN, RETRY_S_MAX = 1.0, 60.0
GIVEN_UP_S_MIN, GIVEN_UP_S_MAX = 0.2, 5.0
"""How often it is looked whether a VM that went on elsewhere is given up here."""
EXPECTED = (ReceiveFailed, Unacceptable, OSError, TimeoutError)


class ReplicaReceivers:
    """All replicas of this node."""

    def __init__(self, host: NodeServices, send: Callable[[wire.Message], None]) -> None:
        self._host, self._send = host, send
        settings = host.settings
        self._uid = None if settings.uid_base is None else settings.uid_base + UIDS_MAX - 1
        self._unsaid: dict[str, wire.ReplicaKept] = {}
        self._saying = False
        self._work = NamedWork("replica", self._see_to, lambda _is_kept: host.replicas.clear_formers())

    def tell(self, message: wire.Replicas, tasks: asyncio.TaskGroup) -> None:
        """Keep these; what is here of others stays as it is: the server may have forgotten them by mistake."""
        kept = message.kept
        followed = (replica.vm for replica in kept if replica.phase is not ReplicaPhase.DELETING)
        self._host.replicas.tell((*followed, *message.unreadable_vms))
        named = {f"{replica.id}.{hash(replica):x}": replica for replica in kept}
        self._work.tell(named, tasks, message.unreadable)
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
                except Exception:  # the others are said
                    RESTARTS.add("replica-reports")
                    log.exception("defect while a replica was read", replica=replica.id)
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
            except Exception:  # a defect met with what came, or lies here, must not end the work on it
                RESTARTS.add("replica")
                log.exception("defect with a replica", replica=replica.id)
            await asyncio.sleep(backoff.next_s())

    async def _remove(self, replica: wire.ReplicaKept, kept: KeptReplica) -> None:
        async with kept.taking:
            await self._host.replicas.remove(replica.id, replica.vm)
        self._send(wire.ReplicaStands(replica.id, (), 0, gone=True))

    async def _keep(self, replica: wire.ReplicaKept, kept: KeptReplica, backoff: Backoff) -> None:
        """Take rounds in until one fails."""
        if replica.peer:
            await self._adopt(replica, kept)
        await self._report(replica)
        while replica.peer:
            async with kept.taking:  # work on what the server said before may still end
                await self._take(replica, kept)
            backoff.reset()
            await self._report(replica)
            await self._merge(replica, kept)
        await asyncio.Event().wait()  # until the server says who sends

    async def _adopt(self, replica: wire.ReplicaKept, kept: KeptReplica) -> None:
        """Begin with what the VM has left here, if it was here before: then only what differs has to come."""
        backoff = Backoff(GIVEN_UP_S_MIN, GIVEN_UP_S_MAX)
        while (self._host.settings.vms_dir / replica.vm).exists():  # it is given up first
            pause_s = backoff.next_s()
            await asyncio.sleep(pause_s)
        former = self._host.replicas.former(replica.vm)
        if not former.exists():
            return
        disk_bytes = self._image(replica).disk_bytes  # an image that is missing may come yet
        await kept.open()
        async with kept.taking, kept.lock:
            try:
                await asyncio.to_thread(kept.points.adopt, former, disk_bytes, secrets.token_hex(8))
                log.info("what a VM left here is the base of its replica", vm=replica.vm, replica=replica.id)
            except Unacceptable as error:
                log.warning("what a VM left here is of no use", vm=replica.vm, replica=replica.id, error=str(error))
                await asyncio.to_thread(shutil.rmtree, former, True)

    async def _report(self, replica: wire.ReplicaKept) -> None:
        kept = self._host.replicas.find(replica.id, replica.vm)
        await kept.open()
        used_bytes = await asyncio.to_thread(kept.points.used_bytes)
        self._send(wire.ReplicaStands(replica.id, kept.points.stands(), used_bytes))

    async def _take(self, replica: wire.ReplicaKept, kept: KeptReplica) -> None:
        """Take the next round in, whenever it comes. Raises those of EXPECTED."""
        host, image = self._host, self._image(replica)
        await kept.open()
        arrival = _Arrival(image.disk_bytes, kept.points, host.replicas.rooms, time.time)
        name = rounds.session_of(replica.id, replica.peer)
        comparing = asyncio.create_task(self._compare(replica, kept, image))
        try:
            with host.listener.expect(name, replica.peer, self._terms(replica)) as session:
                await session.receive(DiskPlayer(arrival.open))
        finally:
            arrival.end()
            comparing.cancel()
            await asyncio.gather(comparing, return_exceptions=True)

    def _terms(self, replica: wire.ReplicaKept) -> ReceiveOptions:
        settings = self._host.settings
        return ReceiveOptions(replica.page_key, settings.rings_dir, outage_s=settings.outage_s)

    def _image(self, replica: wire.ReplicaKept) -> _Below:
        """Return the disk over which the layers lie. Raises Unacceptable."""
        image = self._host.images.get(replica.image)
        if image is None or image.disk is None or not image.is_(replica.image_digest):
            raise Unacceptable(f"this node does not hold image {replica.image}", WaitCode.IMAGE_MISSING)
        return _Below(image.disk, max(replica.disk_mib << 20, image.info.disk_bytes))

    async def _compare(self, replica: wire.ReplicaKept, kept: KeptReplica, image: _Below) -> None:
        """Answer how the newest disk differs from the sender's, whenever that asks; until cancelled."""
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        name, digest = rounds.comparison_of(replica.id, replica.peer), PageHash(replica.page_key).digest

        def open_disk() -> OpenedDisk:
            if not kept.points.newest_round:
                raise Unacceptable("it has no data of the disk yet")
            chain = Chain(image.path, kept.points.newest_layers())
            return OpenedDisk(chain, kept.points.newest_round, image.disk_bytes)

        while True:
            try:
                with self._host.listener.expect(name, replica.peer, self._terms(replica)) as session:
                    answering = Answering(session, open_disk, digest, asyncio.get_running_loop())
                    with contextlib.closing(answering):
                        await session.receive(ComparisonPlayer(answering))
                backoff.reset()
                continue
            except EXPECTED as error:
                log.warning("a replica could not be compared", replica=replica.id, error=str(error))
            except Exception:  # a defect: nobody waits for this task but to end it
                RESTARTS.add("replica-comparison")
                log.exception("defect in a comparison of a replica", replica=replica.id)
            await asyncio.sleep(backoff.next_s())

    async def _merge(self, replica: wire.ReplicaKept, kept: KeptReplica) -> None:
        image = self._image(replica)
        user = ToolUser(
            lambda command: command if self._uid is None else confined(command, Account(self._uid)), self._uid
        )
        async with kept.lock:
            while (merge := await asyncio.to_thread(kept.points.to_merge, replica.points_kept)) is not None:
                with doing(Action.MERGE_POINTS, vm=replica.vm, replica=replica.id):
                    below = [image.path, *merge.below]
                    await layers.merge(below, merge.lower.path, merge.upper.path, SPARE_BYTES, user)
                    await asyncio.to_thread(kept.points.merged, merge)


class _Below(NamedTuple):
    """The image's disk, and how large the VM's is."""

    path: Path
    disk_bytes: int


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

    def __init__(self, disk_bytes: int, points: ReplicaPoints, rooms: Reservations, clock: Callable[[], float]) -> None:
        """``disk_bytes``: how large the VM's disk is."""
        self._disk_bytes, self._points, self._rooms, self._clock = disk_bytes, points, rooms, clock
        self._name = rounds.RoundName("", "")
        self._began_s = 0.0
        self._directory = Path()

    def open(self, head: Head) -> list[VolumeSink]:
        """Return where the volumes of a round go. Raises StreamError, ProtocolError, OSError."""
        self._began_s = self._clock()
        self._name = rounds.name_of(head.volumes, self._disk_bytes)
        if self._name.since and self._name.since != self._points.newest_round:
            raise ProtocolError("the replica does not have the previous point", ErrorCode.NOTHING_BELOW)
        if self._name.since and self._points.layer_count >= SHARED_LAYERS_MAX:
            raise StreamError("a VM created from the replica shares its layers: delete that VM first")
        self._directory = self._points.receiving()
        *layers_, last = head.volumes
        needed = sum(volume.size_bytes for volume in head.volumes)
        free = self._rooms.reserve(self._directory, needed, SPARE_BYTES)
        if free is not None:
            raise StreamError(f"there is no space for {needed} bytes: {free} are free for replicas")
        files = [NewFile(self._directory / str(place), layer.size_bytes) for place, layer in enumerate(layers_)]
        # Flushed last: the sender is told that all went well only once it is a point.
        return [*files, _HeadFile(self._directory / rounds.HEAD, last.size_bytes, self._add)]

    def end(self) -> None:
        """It has come, or will not."""
        self._rooms.release(self._directory)

    def _add(self) -> None:
        path = self._directory / rounds.HEAD
        head = rounds.head_of(path.read_bytes())
        path.unlink()
        for layer in self._directory.iterdir():
            check_layer(layer, self._disk_bytes)
        at_s = self._began_s - max(0.0, head.age_s)
        point = Point(self._points.newest + 1, self._name.round, at_s, head.changed_bytes, head.quiesced, head.state)
        self._points.add(point, whole=not self._name.since)
