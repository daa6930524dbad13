"""A disk that moves with its VM: mirrored by QEMU over NBD into a DWCP session of its own, and out of it again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from novacron.agent.home import COMPLETE, DISK_LAYER, INCOMING_DISK_SOCKET, OUTGOING_DISK_SOCKET, STATE
from novacron.agent.machine import Machine
from novacron.disk import files
from novacron.disk.images import Image
from novacron.disk.nbd import Client, Export
from novacron.disk.stream import Head, Player, Recorder, Splitter, StreamError, Volume, VolumeInfo
from novacron.dwcp.receiver import Incoming
from novacron.dwcp.sender import Sender
from novacron.model.vm import Firmware, VmSpec
from novacron.qemu import mirror
from novacron.qemu.command import DISK
from novacron.qemu.mirror import MirrorStatus
from novacron.qemu.monitor import MonitorFailed

LOOK_S = 0.1
SMALL_BYTES_MAX = 4 << 20
"""Of what moves beside the disk: firmware variables, and what a TPM remembers."""
DISK_SHARE = 4
"""Once the disk is mirrored, what the guest goes on writing to it may use one part in so many of the rate."""


def session_of(migration: str) -> str:
    """Return the name of the session that carries a migration's disk."""
    return f"{migration}.disk"


def layer_info(image: Image, size_bytes: int) -> VolumeInfo:
    """Return what a live migration tells of a VM's disk, of this size: the layer over this image."""
    return VolumeInfo(DISK, size_bytes, image.info.digest)


class Leaving:
    """A disk at the source of a live migration. ``sender`` is an open session, which is not closed here."""

    def __init__(self, machine: Machine, sender: Sender, image: Image, size_bytes: int) -> None:
        self.sender = sender
        self.status = MirrorStatus(False, 0, 0)
        self.sent: asyncio.Task[None]
        """Ends when the peer has all of it."""
        self._machine = machine
        self._info = layer_info(image, size_bytes)
        self._rate: int | None = None

    async def __aenter__(self) -> Leaving:
        """Begin to mirror. Raises MonitorFailed, OSError."""
        assert self._machine.monitor is not None
        self._recorder = Recorder([self._info])
        listening = self._machine.home.listen(OUTGOING_DISK_SOCKET)
        self._export = Export(listening, self._info.size_bytes, self._recorder)
        self.sent = asyncio.create_task(self.sender.send(self._recorder, Splitter()))
        try:
            whole = bool(self._machine.home.shared())  # what is shared with other VMs stays here
            await mirror.start(self._machine.monitor, Path(OUTGOING_DISK_SOCKET), whole=whole)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave nothing behind, whatever has become of it, and whoever loses patience meanwhile."""
        (self._machine.directory / OUTGOING_DISK_SOCKET).unlink(missing_ok=True)
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
        await asyncio.to_thread(self._export.close)
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
        self.status = await mirror.status(self._machine.monitor)
        if self.status.error:
            raise MonitorFailed(f"the disk can't be mirrored: {self._export.error or self.status.error}")

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
        await mirror.finish(self._machine.monitor)
        await mirror.clear(self._machine.monitor)
        await asyncio.to_thread(self._recorder.end)


async def take(machine: Machine, session: Incoming, image: Image, size_bytes: int) -> None:
    """Write what a session brings to the disk of a VM that does not run yet. Raises ReceiveFailed."""
    expected, pid = layer_info(image, size_bytes), machine.pid
    if pid is None:
        raise OSError("QEMU has ended")

    def open_(head: Head) -> list[Volume]:
        if head.volumes != (expected,):
            raise StreamError(f"the source's disk lies over another image than this node's {image.info.name}")
        clients.append(Client(machine.home.connect(INCOMING_DISK_SOCKET, pid), mirror.EXPORT))
        return [clients[0]]

    clients: list[Client] = []
    try:
        await session.receive(Player(open_))
    finally:
        for client in clients:
            await asyncio.to_thread(client.close)


async def offer(machine: Machine) -> None:
    """Let the disk of a VM that does not run yet be written to. Raises MonitorFailed."""
    assert machine.monitor is not None
    (machine.directory / INCOMING_DISK_SOCKET).unlink(missing_ok=True)
    await mirror.serve(machine.monitor, Path(INCOMING_DISK_SOCKET))


async def withdraw(machine: Machine) -> None:
    """All has been written: only the VM itself writes to its disk from now on. Raises MonitorFailed."""
    assert machine.monitor is not None
    await mirror.close(machine.monitor)
    (machine.directory / INCOMING_DISK_SOCKET).unlink(missing_ok=True)


async def is_whole(machine: Machine) -> bool:
    """Say whether ``withdraw`` was done, perhaps by an earlier agent. Raises MonitorFailed."""
    assert machine.monitor is not None
    return not await mirror.is_served(machine.monitor)


def keeps_files(spec: VmSpec, image: Image) -> bool:
    """Say whether a VM that does not run has anything that has to move with it."""
    return image.disk is not None or spec.firmware is not Firmware.BIOS or spec.tpm


async def send_state(directory: Path, sender: Sender, image: Image) -> None:
    """Send what a VM that does not run consists of; returns when the peer has it. Raises SendFailed, OSError."""
    (directory / COMPLETE).write_text("complete\n")
    named = [(name, path) for name, place in STATE.items() if files.is_plain(path := directory / place)]
    await send_files(named, sender, image.info.digest)


async def send_files(named: list[tuple[str, Path]], sender: Sender, below: str = "") -> None:
    """Send files over an open session; returns when the peer has them all. Raises SendFailed, OSError."""
    infos = [VolumeInfo(name, path.stat().st_size, below) for name, path in named]
    recorder = Recorder(infos)

    def tell() -> None:
        for number, (info, (_, path)) in enumerate(zip(infos, named, strict=True)):
            recorder.select(number)
            files.tell(path, info.size_bytes, recorder)
        recorder.end()

    telling = asyncio.create_task(asyncio.to_thread(tell))
    sending = asyncio.create_task(sender.send(recorder, Splitter()))
    try:
        await asyncio.wait({telling, sending}, return_when=asyncio.FIRST_EXCEPTION)
        if sending.done():
            sending.result()  # why nobody took what was told
        await telling
        await sending
    finally:
        recorder.abort()
        sending.cancel()
        await asyncio.gather(telling, sending, return_exceptions=True)


async def receive_state(session: Incoming, directory: Path, image: Image, bytes_max: int) -> None:
    """Receive what a VM consists of into ``directory``, whole or not at all; its disk may have ``bytes_max``.

    Raises ReceiveFailed, OSError.
    """

    def open_(head: Head) -> list[Volume]:
        names = [info.name for info in head.volumes]
        if len(set(names)) != len(names) or not set(names) <= STATE.keys():
            raise StreamError("what comes is not what a VM consists of")
        for info in head.volumes:
            if info.below != image.info.digest:
                raise StreamError(f"the source's disk lies over another image than this node's {image.info.name}")
            is_layer = info.name == DISK_LAYER or info.name.startswith("shared-")
            if info.size_bytes > (bytes_max if is_layer else SMALL_BYTES_MAX):
                raise StreamError(f"{info.name} has {info.size_bytes} bytes, more than it can have")
        return [files.NewFile(scratch / info.name, info.size_bytes) for info in head.volumes]

    scratch = directory / ".receiving"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        await session.receive(Player(open_))
        for received in sorted(scratch.iterdir(), key=lambda path: path.name == COMPLETE):
            place = directory / STATE[received.name]
            place.parent.mkdir(mode=0o700, exist_ok=True)
            received.rename(place)
        await asyncio.to_thread(files.make_durable, directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def has_arrived(directory: Path) -> bool:
    """Say whether ``receive_state`` was done, perhaps by an earlier agent."""
    return (directory / COMPLETE).exists()
