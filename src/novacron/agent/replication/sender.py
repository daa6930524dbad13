"""Replicas of this node's VMs: what guests wrote since the last round goes to the node that keeps the replica.

QEMU records what is written between two rounds under the round's name. A round that failed loses nothing: the record
that it began with is only ended once the receiver has the next point. A receiver that lacks the point below a round
says so, and gets all of the VM's own layers.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron import pki
from novacron.agent.actions import Action, doing
from novacron.agent.fair_turns import FairTurns
from novacron.agent.host.endpoint import parse_endpoint
from novacron.agent.images.named_work import NamedWork
from novacron.agent.migration import disk_mirror
from novacron.agent.migration.services import NodeServices
from novacron.agent.replication import comparison, rounds
from novacron.agent.replication.comparison import Answer
from novacron.agent.replication.rounds import Compared, RoundHead, RoundName
from novacron.agent.vm import clone_disk, firmware_state
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER, NoAccount, VmDirectory
from novacron.agent.vm.firmware_state import BadState
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.agent.vm.quiesce import Quiesce
from novacron.agent.vm.tenant import tenant_of
from novacron.disk import difference, files, overlay
from novacron.disk.chain import BLOCK_BYTES, Chain
from novacron.disk.errors import Unacceptable
from novacron.disk.overlay import OverlayFailed
from novacron.disk.written_extents import CLUSTER_BYTES, written_extents
from novacron.dwcp.backoff import Backoff
from novacron.dwcp.frames import ErrorCode
from novacron.dwcp.page_codec import PageHash
from novacron.dwcp.sender import CONNECTION_LOST, Sender, SendFailed, SendOptions
from novacron.model.replica import RoundKind
from novacron.model.waiting import WaitCode, code_of
from novacron.qemu import block, dirty_bitmaps
from novacron.qemu.block import CopyPlan
from novacron.qemu.dirty_bitmaps import WriteRecord
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

QUIESCED_FROM_S = 300
"""Guests are asked to write out what they have for rounds that are so far apart; for others it would cost too much."""
RETRY_S_MIN, RETRY_S_MAX = 1.0, 60.0
SPARE_BYTES = 1 << 30
"""What copies leave free of the node's file system."""
RECORDS_MAX = 4
"""Of rounds that may be the receiver's newest one."""
AT_ONCE, OF_A_PROJECT = 4, 3
"""Rounds of this node that are copied and sent side by side, and at most of one project."""
OFF = "the VM was off, and only a running QEMU records writes"
NO_RECORD = "writes were not recorded yet: it is the first round since this QEMU started"
RECORD_NOT_WHOLE = "the record of writes is incomplete: the disk has a new layer, or was resized"
EXPECTED = (
    Unacceptable, OverlayFailed, MonitorFailed, MachineFailed, NoAccount, BadState, SendFailed, OSError, TimeoutError,
)  # fmt: skip


class _Layers(NamedTuple):
    """What a round sends: copies in a scratch directory."""

    paths: Sequence[Path]
    """From the lowest up."""
    head: RoundHead


class _SentRound(NamedTuple):
    """A round that has become a point: how it was known what to send, and why more than that was done."""

    kind: RoundKind
    reason: str


class ReplicaSenders:
    """All replicas that this node sends."""

    def __init__(
        self, host: NodeServices, find_vm: Callable[[str], VmContext | None], send: Callable[[wire.Message], None]
    ) -> None:
        self._host, self._find_vm, self._send = host, find_vm, send
        self._scratch = host.settings.replica_scratch_dir
        shutil.rmtree(self._scratch, ignore_errors=True)  # of rounds of an agent before
        self._work = NamedWork("replica-rounds", self._follow, lambda _is_kept: None)
        self._turns = FairTurns(AT_ONCE, OF_A_PROJECT)

    def tell(
        self, sent: tuple[wire.ReplicaSent, ...], tasks: asyncio.TaskGroup, unreadable: Collection[str] = ()
    ) -> None:
        """Send these and no others but those that are unreadable."""
        self._work.tell({f"{replica.id}.{hash(replica):x}": replica for replica in sent}, tasks, unreadable)

    async def _follow(self, replica: wire.ReplicaSent) -> None:
        """Send rounds, until cancelled."""
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        rounds_ = _Rounds(self._host, replica, self._scratch / secrets.token_hex(8))
        while True:
            began = time.monotonic()
            vm = self._find_vm(replica.vm)
            async with self._turns.turn("" if vm is None else vm.name_and_project()[1]):
                report = await self._round(replica, rounds_)
            self._send(report)
            if report.error:
                await asyncio.sleep(backoff.next_s())
            else:
                backoff.reset()
                await asyncio.sleep(max(0.0, replica.rpo_s - (time.monotonic() - began)))

    async def _round(self, replica: wire.ReplicaSent, rounds_: _Rounds) -> wire.ReplicaRound:
        try:
            context = self._find_vm(replica.vm)
            if context is None:
                raise Unacceptable("the VM is no longer on this node", WaitCode.VM_GONE)
            sent = await rounds_.next(context)
            if sent is None:
                return wire.ReplicaRound(replica.id, unchanged=True)
            return wire.ReplicaRound(replica.id, kind=sent.kind, reason=sent.reason)
        except EXPECTED as error:
            log.warning("a round of a replica failed", replica=replica.id, error=str(error))
            return wire.ReplicaRound(replica.id, str(error) or type(error).__name__, code_of(error))
        except Exception as error:  # a defect met with one must not take the agent away
            log.exception("defect in a round of a replica", replica=replica.id)
            why = f"internal error in its agent: {type(error).__name__}; see its log"
            return wire.ReplicaRound(replica.id, why, WaitCode.STEP_FAILED)


class _Rounds:
    """The rounds of one replica to one node."""

    def __init__(self, host: NodeServices, replica: wire.ReplicaSent, scratch: Path) -> None:
        self._host, self._replica, self._scratch = host, replica, scratch
        self._confirmed = ""
        """The round that the receiver surely has as its newest; empty: not known, so that one is sent."""
        self._at_rest: tuple[int, ...] = ()
        """What tells the disk of a VM that was off at the last round from any later one."""

    async def next(self, context: VmContext) -> _SentRound | None:
        """Send the next round; return what it was, or None: there was nothing to send. Raises those of EXPECTED."""
        await context.wait_until_known()
        image = context.image()
        if image.disk is None or image.encryption_key or context.spec().encryption_key:
            raise Unacceptable("the VM has no disk of its own to replicate, or the disk or its image is encrypted")
        if context.volumes():
            raise Unacceptable("volumes are not replicated yet: detach them, or back them up")
        at_rest = await asyncio.to_thread(_at_rest, context)
        if at_rest and at_rest == self._at_rest and self._replica.has_points:
            return None
        plan = _Plan(self._replica.id)
        if self._confirmed and self._replica.has_points and await plan.is_unchanged(context, self._confirmed):
            return None
        replica = self._replica
        self._confirmed = ""
        try:
            with doing(Action.REPLICATE, vm=replica.vm, replica=replica.id, target=replica.peer):
                await self._reach()
                copied = await self._copy(context, plan)
                if not plan.since:
                    copied = await self._reduced(context, plan, copied)
                await self._send(context, plan, copied)
        except SendFailed as error:
            await plan.give_up(context, lacks_below=error.code is ErrorCode.NOTHING_BELOW)
            raise
        except BaseException:
            await plan.give_up(context)
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, self._scratch, True)
        await plan.keep(context)
        self._confirmed = plan.round
        self._at_rest = at_rest if at_rest == await asyncio.to_thread(_at_rest, context) else ()
        return _SentRound(plan.kind, plan.reason)

    async def _reduced(self, context: VmContext, plan: _Plan, copied: _Layers) -> _Layers:
        """Leave of a copy of all layers only what the receiver does not have, if it has anything of the disk."""
        try:
            with doing(Action.COMPARE, vm=self._replica.vm, replica=self._replica.id, target=self._replica.peer):
                reduced, lacks = await self._difference(context, plan, copied)
        except (Unacceptable, OSError, SendFailed) as error:
            # Layers that are not as QEMU makes them for a guest, a disk that can't be read, an answer that makes no
            # sense: that may be so again each time. What a link does is tried again.
            if not _is_of_comparison(error):
                raise
            reduced, lacks = None, f"the comparison failed: {error}"
        if reduced is None:
            plan.kind, plan.reason = RoundKind.WHOLE, f"{plan.reason}; the whole disk was sent: {lacks}"
            return copied
        plan.kind = RoundKind.COMPARED
        head = msgspec.structs.replace(copied.head, changed_bytes=reduced.stat().st_size)
        return _Layers([reduced], head)

    async def _difference(self, context: VmContext, plan: _Plan, copied: _Layers) -> tuple[Path | None, str]:
        """Return a layer with what the receiver does not have; or None, and why. Raises Unacceptable, SendFailed,
        OSError."""
        image, digests = context.image(), self._scratch / comparison.VOLUME
        assert image.disk is not None
        digest = PageHash(tenant_of(context.assigned()).key).digest
        chain = await asyncio.to_thread(Chain, image.disk, copied.paths)
        with chain:
            await asyncio.to_thread(comparison.describe, chain, digest, digests)
            reply = await self._ask(context, digests, comparison.key_check(digest))
            if not reply.since:
                return None, reply.lacks
            if reply.disk_bytes > chain.size_bytes:
                return None, f"the replica's disk has {reply.disk_bytes} bytes, and the VM's only {chain.size_bytes}"
            reduced = self._scratch / "difference.qcow2"
            differ = comparison.unpack(reply.differ, -(-chain.size_bytes // BLOCK_BYTES))
            await asyncio.to_thread(difference.write, reduced, chain.size_bytes, differ, chain.read)
        plan.since = reply.since
        return reduced, ""

    async def _ask(self, context: VmContext, digests: Path, check: str) -> Compared:
        """Ask the receiver how its newest disk differs from the one of which these are the digests."""
        answer = Answer()
        sender = self._session(context, rounds.comparison_of(self._replica.id, self._host.identity.name))
        async with sender:
            sender.on_back = answer.take
            await disk_mirror.send_files([(comparison.VOLUME, digests)], sender, check)
        return answer.result()

    async def _reach(self) -> None:
        """See that the peer is there, before anything is copied for it. Raises SendFailed."""
        connections, peer = self._host.connections, pki.node_host(self._replica.peer)
        endpoint = parse_endpoint(self._replica.endpoint)
        try:
            connections.give(endpoint, peer, await connections.take(endpoint, peer))
        except CONNECTION_LOST as error:
            where = self._replica.endpoint
            raise SendFailed(f"can't reach its node at {where}: {error or type(error).__name__}") from error

    async def _copy(self, context: VmContext, plan: _Plan) -> _Layers:
        """Copy what a round has to bring, as it is at one moment."""
        await asyncio.to_thread(shutil.rmtree, self._scratch, True)
        home = VmDirectory(self._scratch, None)
        is_quiesced = self._replica.rpo_s >= QUIESCED_FROM_S and context.guest.known is not None
        quiesce = Quiesce(context.machine, wanted=is_quiesced)
        plan.moment_s = time.monotonic()
        await self._check_room(context, plan)
        await clone_disk.copy(context.machine, home, context.lock, None, quiesce.around, plan.decide)
        layer = home.path / DISK_LAYER
        if not layer.exists():  # it has never run
            await overlay.create_blank(layer, context.disk_bytes(context.image()), None)
        if plan.since:
            await asyncio.to_thread(_check_copied, layer, plan.dirty_bytes)
        below = [] if plan.since else home.shared()
        state = await asyncio.to_thread(firmware_state.pack, home.path)
        head = RoundHead(0.0, sum(path.stat().st_size for path in (*below, layer)), quiesce.done, state)
        return _Layers([*below, layer], head)

    async def _check_room(self, context: VmContext, plan: _Plan) -> None:
        """Raise Unacceptable unless there is room for the copy of what may have to be sent."""
        layer = context.machine.directory / DISK_LAYER
        needed = await plan.most_bytes(context, await asyncio.to_thread(files.allocated, [layer]))
        free = (await asyncio.to_thread(shutil.disk_usage, self._host.settings.state_dir)).free
        if needed + SPARE_BYTES > free:
            raise Unacceptable(
                f"no space for a copy of the writes: {needed >> 20} MiB, {free >> 20} MiB are free",
                WaitCode.NO_SPACE,
            )

    async def _send(self, context: VmContext, plan: _Plan, layers: _Layers) -> None:
        age_s = time.monotonic() - plan.moment_s
        head = self._scratch / rounds.HEAD
        content = msgspec.msgpack.encode(msgspec.structs.replace(layers.head, age_s=age_s))
        await asyncio.to_thread(head.write_bytes, content)
        sender = self._session(context, rounds.session_of(self._replica.id, self._host.identity.name))
        named = [*((f"layer-{place}", path) for place, path in enumerate(layers.paths)), (rounds.HEAD, head)]
        async with sender:
            plan.offered = True
            await disk_mirror.send_files(named, sender, rounds.below(RoundName(plan.round, plan.since)))

    def _session(self, context: VmContext, name: str) -> Sender:
        host, replica = self._host, self._replica
        options = SendOptions(
            tenant_of(context.assigned()).key, host.settings.rings_dir, outage_s=host.settings.outage_s
        )
        return Sender(parse_endpoint(replica.endpoint), pki.node_host(replica.peer), name, host.connections, options)


class _Plan:
    """What one round copies: what QEMU recorded since the round that the receiver has, or all of the VM's layers."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self.round = secrets.token_hex(8)
        self.since = ""
        """The round below; empty: none."""
        self.dirty_bytes = 0
        """What is to be copied at least, if it lies over another round."""
        self.moment_s = 0.0
        """A moment before that of which the round is."""
        self.offered = False
        """The receiver may have got it."""
        self.kind, self.reason = RoundKind.RECORDED, OFF

    async def is_unchanged(self, context: VmContext, round: str) -> bool:
        """Say whether the guest has written nothing since a round. Raises MonitorFailed."""
        monitor = _monitor(context)
        if monitor is None:
            return False
        records = await self._records(monitor)
        if len(records) != 1 or records[0].since != round or records[0].dirty_bytes:
            return False
        return _is_whole(records[0], await block.top(monitor))

    async def decide(self, monitor: Monitor, node: str) -> CopyPlan:
        """Choose what is copied; it is recorded from that moment on. Raises MonitorFailed."""
        usable = [record for record in await self._records(monitor) if _is_whole(record, node)]
        # The newest one. If the receiver has no such point, it says so, and the one before is tried.
        record = min(usable, key=lambda record: record.dirty_bytes, default=None)
        self.since, self.dirty_bytes = ("", 0) if record is None else (record.since, record.dirty_bytes)
        self.reason = ""
        if record is None:
            self.reason = RECORD_NOT_WHOLE if await self._records(monitor) else NO_RECORD
        self.moment_s = time.monotonic()
        return CopyPlan("" if record is None else record.name, dirty_bitmaps.name_of(self._replica, self.round))

    async def most_bytes(self, context: VmContext, layer_bytes: int) -> int:
        """Return how much a round copies at most, of a layer that takes so much. Raises MonitorFailed."""
        monitor = _monitor(context)
        records = [] if monitor is None else await self._records(monitor)
        whole_bytes = 2 * layer_bytes  # that, and what of it differs
        return min((record.dirty_bytes for record in records if record.works), default=whole_bytes)

    async def keep(self, context: VmContext) -> None:
        """The receiver has the round as a point: only what is written after it counts from now on."""
        monitor = _monitor(context)
        with contextlib.suppress(MonitorFailed):  # then the next round sends more than it must
            if monitor is not None:
                records = await self._records(monitor)
                await dirty_bitmaps.end(monitor, [record for record in records if record.since != self.round])

    async def give_up(self, context: VmContext, *, lacks_below: bool = False) -> None:
        """The round did not become a point, as far as is known; if that was lost on its way back, the receiver says
        so next time."""
        monitor = _monitor(context)
        if monitor is None:
            return
        useless = {self.round, self.since} if lacks_below else set() if self.offered else {self.round}
        with contextlib.suppress(MonitorFailed):
            records = sorted(await self._records(monitor), key=lambda record: record.dirty_bytes)
            ended = [record for record in records if record.since in useless]
            left = [record for record in records if record not in ended]
            await dirty_bitmaps.end(monitor, [*ended, *left[RECORDS_MAX - 1 : -1]])

    async def _records(self, monitor: Monitor) -> list[WriteRecord]:
        return [record for record in await dirty_bitmaps.records(monitor) if record.repository == self._replica]


def _is_of_comparison(error: Exception) -> bool:
    """Say whether a comparison failed by itself, so that a whole round may still go well."""
    if isinstance(error, SendFailed):
        return error.code is ErrorCode.LOCAL_FAILURE
    return not isinstance(error, (ConnectionError, TimeoutError))


def _monitor(context: VmContext) -> Monitor | None:
    machine = context.machine
    return machine.monitor if machine.pid is not None else None


def _is_whole(record: WriteRecord, node: str) -> bool:
    return record.node == node and record.works


def _check_copied(layer: Path, dirty_bytes: int) -> None:
    """See that a copy has all that was written, zeros too. Raises Unacceptable, OSError."""
    disk_bytes = overlay.size_bytes(layer)
    with layer.open("rb") as file:
        copied = sum(length for _, length in written_extents(file, disk_bytes, disk_bytes // CLUSTER_BYTES + 1))
    if copied < dirty_bytes - (-disk_bytes % CLUSTER_BYTES):
        raise Unacceptable("the copy of the disk is incomplete: it lacks recent writes", WaitCode.STEP_FAILED)


def _at_rest(context: VmContext) -> tuple[int, ...]:
    """Return what changes when the disk of a VM that is off does; empty: it is not off, or has no disk yet."""
    if context.machine.pid is not None:
        return ()
    try:
        status = (context.machine.directory / DISK_LAYER).stat()
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
