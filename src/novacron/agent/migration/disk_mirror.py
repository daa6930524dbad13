"""Disks that move with their VM: mirrored by QEMU over NBD into a DWCP session of their own, and out of it again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from novacron.agent.host.clock import finished_in_thread
from novacron.agent.migration import qemu_sockets
from novacron.agent.vm.directory import (
    COMPLETE,
    DISK_LAYER,
    DISKS_COMPLETE,
    INCOMING_DISK_SOCKET,
    OUTGOING_DISK_SOCKETS,
    STATE,
)
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.disk import files, luks
from novacron.disk.images import LocalImage
from novacron.disk.nbd import NbdClient, NbdExport
from novacron.disk.qemu_img import ImgFailed
from novacron.disk.stream import DiskPlayer, DiskRecorder, DiskSplitter, Head, StreamError, VolumeInfo, VolumeSink
from novacron.dwcp.receiver import ReceiveSession
from novacron.dwcp.sender import Sender
from novacron.model.encryption import DataKey
from novacron.model.vm import Firmware, VmSpec
from novacron.qemu import mirror
from novacron.qemu.command import DISK
from novacron.qemu.mirror import MirrorStatus
from novacron.qemu.monitor import MonitorFailed
from novacron.wire.messages import VolumeAttached

T = TypeVar("T", NbdClient, files.KeptFile)

LOOK_S = 0.1
MAKE_S_MAX = 60.0
SMALL_BYTES_MAX = 4 << 20
"""Of what moves beside the disk: firmware variables, and what a TPM remembers."""
DISK_SHARE = 4
"""Once the disk is mirrored, what the guest goes on writing to it may use one part in so many of the rate."""


def session_of(migration: str) -> str:
    """Return the name of the session that carries a migration's disk."""
    return f"{migration}.disk"


class Part(msgspec.Struct, frozen=True):
    """A disk that moves with a running VM: QEMU's node, its description, whether all below it is sent too."""

    node: str
    info: VolumeInfo
    whole: bool


def disks_of(image: LocalImage, size_bytes: int, volumes: Iterable[VolumeAttached]) -> list[VolumeInfo]:
    """Return what a live migration tells of a VM's disks: of its own, the layer over this image, then its volumes."""
    own = [] if image.disk is None else [VolumeInfo(DISK, size_bytes, image.info.digest)]
    return own + [VolumeInfo(volume.id, volume.size_mib << 20) for volume in volumes if volume.moves]


def parts_of(
    machine: VirtualMachine, image: LocalImage, size_bytes: int, volumes: Iterable[VolumeAttached]
) -> list[Part]:
    """Return the disks that move with a VM. What its own disk shares with other VMs stays here, and is sent, too."""
    shares = bool(machine.home.shared())
    return [Part(info.name, info, shares or info.name != DISK) for info in disks_of(image, size_bytes, volumes)]


class _RecordedDisk:
    """One of the disks that share a recorder, in turns."""

    def __init__(self, recorder: DiskRecorder, number: int, turn: threading.Lock, last: list[int]) -> None:
        self._recorder, self._number, self._turn, self._last = recorder, number, turn, last

    def write(self, offset: int, data: bytes | memoryview) -> None:
        with self._turn:
            self._select()
            self._recorder.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        with self._turn:
            self._select()
            self._recorder.zero(offset, length)

    def _select(self) -> None:
        if self._last[0] != self._number:
            self._recorder.select(self._number)
            self._last[0] = self._number


class Leaving:
    """Disks at the source of a live migration. ``sender`` is an open session, which is not closed here."""

    def __init__(self, machine: VirtualMachine, sender: Sender, parts: Sequence[Part]) -> None:
        self.sender = sender
        self.status = MirrorStatus(False, 0, 0)
        self.sent: asyncio.Task[None]
        """Ends when the peer has all of it."""
        self._machine = machine
        self._parts = parts
        self._exports: list[NbdExport] = []
        self._rate: int | None = None

    async def __aenter__(self) -> Leaving:
        """Begin to mirror. Raises MonitorFailed, OSError."""
        monitor = self._machine.monitor
        assert monitor is not None
        layers = (self._machine.directory / DISK_LAYER, *self._machine.home.shared())
        self._recorder = DiskRecorder([part.info for part in self._parts], files.allocated(layers))
        self.sent = asyncio.create_task(self.sender.send(self._recorder, DiskSplitter()))
        turn, last = threading.Lock(), [0]
        try:
            for number, part in enumerate(self._parts):
                name = OUTGOING_DISK_SOCKETS[number]
                listening = await qemu_sockets.listen(self._machine.home, name)
                recorded = _RecordedDisk(self._recorder, number, turn, last)
                self._exports.append(NbdExport(listening, part.info.size_bytes, recorded))
                await mirror.start(monitor, number, Path(name), part.node, whole=part.whole)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Clean up completely, after success, failure and cancellation."""
        undoing = asyncio.create_task(self._undo())
        cancelled = False
        while not undoing.done():
            try:
                await asyncio.wait({undoing})
            except asyncio.CancelledError:
                cancelled = True
        undoing.result()
        if cancelled:
            raise asyncio.CancelledError

    async def _undo(self) -> None:
        self._recorder.abort()
        for export in self._exports:
            await asyncio.to_thread(export.close)
        await qemu_sockets.remove(self._machine.home, OUTGOING_DISK_SOCKETS)
        self.sent.cancel()
        await asyncio.gather(self.sent, return_exceptions=True)
        if self._machine.monitor is not None and self._machine.pid is not None:
            with contextlib.suppress(MonitorFailed, TimeoutError):
                await mirror.clear(self._machine.monitor)

    def limit(self, rate_bytes_per_s: int | None) -> int | None:
        """Share what the migration may use of the link: take this disk's part, return the memory's."""
        self._rate = rate_bytes_per_s
        if rate_bytes_per_s is None or not self.status.ready:
            self.sender.limit(rate_bytes_per_s)
            return rate_bytes_per_s
        self.sender.limit(rate_bytes_per_s // DISK_SHARE)
        return rate_bytes_per_s - rate_bytes_per_s // DISK_SHARE

    async def look(self) -> None:
        """See how it stands. Raises MonitorFailed, SendFailed when it goes no further."""
        assert self._machine.monitor is not None
        if self.sent.done():
            self.sent.result()
        self.status = await mirror.status(self._machine.monitor, len(self._parts))
        if self.status.error:
            why = next((export.error for export in self._exports if export.error is not None), self.status.error)
            raise MonitorFailed(f"the disk can't be mirrored: {why}")

    async def ready(self, report: Callable[[], Awaitable[None]]) -> None:
        """Return when all but what the guest writes just now has been handed on. Raises MonitorFailed, SendFailed."""
        while True:
            await self.look()
            await report()
            if self.status.ready:
                return
            await asyncio.wait({self.sent}, timeout=LOOK_S)

    async def finish(self) -> None:
        """The guest stands still: hand the rest on. Raises MonitorFailed, TimeoutError, OSError."""
        assert self._machine.monitor is not None
        await mirror.finish(self._machine.monitor, len(self._parts))
        await mirror.clear(self._machine.monitor)
        await asyncio.to_thread(self._recorder.end)


class Coming(msgspec.Struct, frozen=True):
    """The disks of a VM that is to come here while it runs: ``paths`` are where its volumes are, by their ids, those
    apart that only QEMU can write to, because they are encrypted."""

    session: ReceiveSession
    image: LocalImage
    infos: Sequence[VolumeInfo]
    paths: Mapping[str, Path]

    def by_qemu(self) -> list[str]:
        """Return the names of the disks that QEMU writes to."""
        return [info.name for info in self.infos if info.name not in self.paths]


def check_space(head: Head, directory: Path) -> None:
    """Raise StreamError, before any data arrives, when there is no room for it."""
    stats = os.statvfs(directory)
    free = stats.f_bavail * stats.f_frsize
    if head.needed_bytes > free:
        raise StreamError(
            f"no space for the VM: its disk takes {head.needed_bytes >> 20} MiB, {free >> 20} MiB are free there"
        )


async def make_room(paths: Mapping[str, Path], infos: Iterable[VolumeInfo], keys: Mapping[str, DataKey]) -> None:
    """Have empty files for volumes that come, in place of what a move that failed has left; ``keys`` are those of
    encrypted ones, by the volumes' ids. Raises OSError."""
    sizes = {info.name: info.size_bytes for info in infos}
    for id, path in paths.items():
        await asyncio.to_thread(path.unlink, missing_ok=True)
        if id not in keys:
            await asyncio.to_thread(_make_empty, path, sizes[id])
            continue
        try:
            await luks.create_volume(path, sizes[id], keys[id], MAKE_S_MAX)
        except ImgFailed as error:
            raise OSError(f"volume {id} can't be created on the target: {error}") from error


def _make_empty(path: Path, size_bytes: int) -> None:
    files.NewFile(path, size_bytes).close()


async def take(machine: VirtualMachine, coming: Coming) -> None:
    """Write what a session brings to the disks of a VM that does not run yet. Raises ReceiveFailed."""
    pid = machine.pid
    if pid is None:
        raise OSError("QEMU has ended")

    def open_(head: Head) -> list[VolumeSink]:
        if head.volumes != tuple(coming.infos):
            raise StreamError(f"the source has different disks, or its disk is not based on {coming.image.info.name}")
        check_space(head, machine.directory)
        opened: list[VolumeSink] = []
        for info in head.volumes:
            if info.name in coming.paths:
                opened.append(keep(files.KeptFile(coming.paths[info.name])))
            else:
                opened.append(keep(NbdClient(machine.home.connect(INCOMING_DISK_SOCKET, pid), info.name)))
        return opened

    def keep(volume: T) -> T:
        closing.callback(volume.close)
        return volume

    with contextlib.ExitStack() as closing:
        await coming.session.receive(DiskPlayer(open_))


async def offer(machine: VirtualMachine, coming: Coming) -> None:
    """Let disks of a VM that does not run yet be written to. Raises MonitorFailed."""
    assert machine.monitor is not None
    if coming.by_qemu():
        await asyncio.to_thread((machine.directory / INCOMING_DISK_SOCKET).unlink, missing_ok=True)
        await mirror.serve(machine.monitor, Path(INCOMING_DISK_SOCKET), coming.by_qemu())


async def withdraw(machine: VirtualMachine, coming: Coming) -> None:
    """All has been written: only the VM itself writes to its disks from now on. Raises MonitorFailed, OSError."""
    assert machine.monitor is not None
    if coming.by_qemu():
        await mirror.close(machine.monitor)
    await asyncio.to_thread(_complete, machine.directory)


def _complete(directory: Path) -> None:
    (directory / INCOMING_DISK_SOCKET).unlink(missing_ok=True)
    (directory / DISKS_COMPLETE).touch()
    files.make_durable(directory)


def are_whole(machine: VirtualMachine) -> bool:
    """Say whether ``withdraw`` was done, perhaps by an earlier agent."""
    return (machine.directory / DISKS_COMPLETE).exists()


def keeps_files(spec: VmSpec, image: LocalImage, volumes: Iterable[VolumeAttached]) -> bool:
    """Say whether a VM that does not run has anything that has to move with it."""
    beside = image.disk is not None or spec.firmware is not Firmware.BIOS or spec.tpm
    return beside or any(volume.moves for volume in volumes)


async def send_state(directory: Path, sender: Sender, image: LocalImage, volumes: Mapping[str, Path]) -> None:
    """Send what a VM that does not run consists of; returns when the peer has it. Raises SendFailed, OSError."""
    await asyncio.to_thread((directory / COMPLETE).write_text, "complete\n")
    named = [(name, path) for name, place in STATE.items() if files.is_plain(path := directory / place)]
    named += volumes.items()
    await send_files(named, sender, image.info.digest)


async def send_files(named: list[tuple[str, Path]], sender: Sender, below: str = "") -> None:
    """Send files over an open session; returns when the peer has them all. Raises SendFailed, OSError."""
    infos = [VolumeInfo(name, path.stat().st_size, below) for name, path in named]
    recorder = DiskRecorder(infos, files.allocated(path for name, path in named if name in STATE))

    def tell() -> None:
        for number, (info, (_, path)) in enumerate(zip(infos, named, strict=True)):
            recorder.select(number)
            files.tell(path, info.size_bytes, recorder)
        recorder.end()

    telling = asyncio.create_task(asyncio.to_thread(tell))
    sending = asyncio.create_task(sender.send(recorder, DiskSplitter()))
    try:
        await asyncio.wait({telling, sending}, return_when=asyncio.FIRST_EXCEPTION)
        if sending.done():
            sending.result()  # raises why the disk was not taken
        await telling
        await sending
    finally:
        recorder.abort()
        sending.cancel()
        await asyncio.gather(telling, sending, return_exceptions=True)


async def receive_state(
    session: ReceiveSession, directory: Path, image: LocalImage, bytes_max: int, volumes: Mapping[str, tuple[Path, int]]
) -> None:
    """Receive what a VM consists of into ``directory``, whole or not at all; its disk may have ``bytes_max``.
    ``volumes`` are where those are to be, and their sizes.

    Raises ReceiveFailed, OSError.
    """

    def open_(head: Head) -> list[VolumeSink]:
        _check_state(head, image, bytes_max, {id: size for id, (_, size) in volumes.items()})
        check_space(head, directory)
        return [files.NewFile(parts.get(info.name, scratch / info.name), info.size_bytes) for info in head.volumes]

    parts = {id: path.with_suffix(".part") for id, (path, _) in volumes.items()}
    scratch = directory / ".receiving"

    def put_in_place() -> None:
        for id, part in parts.items():
            part.rename(volumes[id][0])
            files.make_durable(part.parent)
        for received in sorted(scratch.iterdir(), key=lambda path: path.name == COMPLETE):
            place = directory / STATE[received.name]
            place.parent.mkdir(mode=0o700, exist_ok=True)
            received.rename(place)
        files.make_durable(directory)

    def clear() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        for part in parts.values():
            part.unlink(missing_ok=True)

    await asyncio.to_thread(clear)
    await asyncio.to_thread(scratch.mkdir, parents=True)
    try:
        await session.receive(DiskPlayer(open_))
        await finished_in_thread(asyncio.ensure_future(asyncio.to_thread(put_in_place)))
    finally:
        await asyncio.to_thread(clear)


def _check_state(head: Head, image: LocalImage, bytes_max: int, volume_sizes: Mapping[str, int]) -> None:
    """Raise StreamError unless a stream brings these volumes and the files of a VM of this image, none too large."""
    names = [info.name for info in head.volumes]
    if len(set(names)) != len(names) or not volume_sizes.keys() <= set(names) <= STATE.keys() | volume_sizes.keys():
        raise StreamError("the files in the stream don't belong to this VM")
    for info in head.volumes:
        if info.name in volume_sizes:
            if info.size_bytes != volume_sizes[info.name]:
                raise StreamError(f"volume {info.name} has {info.size_bytes} bytes, not {volume_sizes[info.name]}")
        else:
            _check_file(info, image, bytes_max)


def _check_file(info: VolumeInfo, image: LocalImage, bytes_max: int) -> None:
    """Raise StreamError unless a file of a VM's own lies over this image, and is not too large."""
    if info.below != image.info.digest:
        raise StreamError(f"the source's disk is based on a different image from this node's {image.info.name}")
    is_layer = info.name == DISK_LAYER or info.name.startswith("shared-")
    if info.size_bytes > (bytes_max if is_layer else SMALL_BYTES_MAX):
        raise StreamError(f"{info.name} is too large: it has {info.size_bytes} bytes")


def has_arrived(directory: Path) -> bool:
    """Say whether ``receive_state`` was done, perhaps by an earlier agent."""
    return (directory / COMPLETE).exists()
