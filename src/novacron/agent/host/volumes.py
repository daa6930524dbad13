"""Volumes of this node: files in its pools, made, grown and deleted as the server says.

A volume is a raw file without a header: nothing that a guest writes to it can mean anything to this host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from novacron.agent.actions import Action, doing
from novacron.agent.settings import AgentSettings
from novacron.disk import files, luks
from novacron.disk.blocks import data_ranges
from novacron.disk.files import make_durable
from novacron.disk.images import LocalImage
from novacron.disk.qemu_img import ImgFailed
from novacron.model import limits
from novacron.model.volume import Pool, PoolKind, VolumePhase
from novacron.model.waiting import WaitCode, code_of
from novacron.supervise import Rarely
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

LOOK_S = 10.0
COPY_BYTES = 1 << 20
CREATE_S_MAX = 2 * 3600.0
MARK = ".novacron-pool"
"""In the directory of a shared pool: without it, what should be mounted there is not."""
ID = ".novacron-local"
"""In the directory of a local pool: what tells it from others, however it is mounted."""
FREE_STEP_BYTES = 64 << 20
"""What is said of a pool's free space is a multiple of this: not every write is worth telling."""


BEGIN = (VolumePhase.CREATING, VolumePhase.DELETING)


class PoolAway(OSError):
    """The pool is not there: says why."""

    code = WaitCode.POOL_AWAY


class ImageAway(FileNotFoundError):
    """The image of which a volume is to be a copy is not here."""

    code = WaitCode.IMAGE_MISSING


class Pools:
    """The directories of this node's pools."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        settings.volumes_dir.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _directory(self, name: str) -> Path:
        if name == limits.LOCAL_POOL:
            return self._settings.volumes_dir
        if name in self._settings.shared_pools:
            path = self._settings.shared_pools[name]
            if not (path / MARK).exists():
                raise PoolAway(f"shared pool {name} is not available: {path} has no {MARK}; check that it is mounted")
            return path
        if name in self._settings.pools:
            return self._settings.pools[name]
        raise PoolAway(f"this node has no pool {name}")

    def directories(self) -> dict[str, Path]:
        """Return where each pool is that is there."""
        directories = {}
        for name in (limits.LOCAL_POOL, *self._settings.pools, *self._settings.shared_pools):
            with contextlib.suppress(PoolAway):
                directories[name] = self._directory(name)
        return directories

    def path(self, pool: str, id: str) -> Path:
        """Return where a volume is. Raises PoolAway."""
        return self._directory(pool) / f"{id}.raw"

    def open(self, volume: wire.VolumeAttached) -> int:
        """Return a volume, open: QEMU needs no right to open it. Raises OSError."""
        flags = os.O_RDONLY if volume.read_only else os.O_RDWR
        return os.open(self.path(volume.pool, volume.id), flags | os.O_NOFOLLOW | os.O_CLOEXEC)

    def look(self) -> tuple[tuple[Pool, ...], list[str]]:
        """Return the usable pools, and the errors of the others."""
        pools, wrong = [], []
        for name in (limits.LOCAL_POOL, *self._settings.pools, *self._settings.shared_pools):
            kind = PoolKind.SHARED if name in self._settings.shared_pools else PoolKind.LOCAL
            try:
                directory = self._directory(name)
                stats = os.statvfs(directory)
                id = "" if kind is PoolKind.SHARED else _id_of(directory)
            except OSError as error:
                wrong.append(str(error))
                continue
            free = stats.f_bavail * stats.f_frsize // FREE_STEP_BYTES * FREE_STEP_BYTES
            pools.append(Pool(name, kind, stats.f_blocks * stats.f_frsize, free, id))
        return tuple(pools), wrong


def _id_of(directory: Path) -> str:
    """Return what tells this directory from others; it is made when it is first asked for. Raises OSError."""
    path = directory / ID
    with contextlib.suppress(FileExistsError):
        scratch = directory / f"{ID}.{secrets.token_hex(8)}"
        if not path.exists():
            scratch.write_text(secrets.token_hex(16))
            try:
                os.link(scratch, path)  # another agent may be making it, too
            finally:
                scratch.unlink()
    return path.read_text().strip()


class NodeVolumes:
    """All volumes of this node."""

    def __init__(self, pools: Pools, images: Mapping[str, LocalImage], send: Callable[[wire.Message], None]) -> None:
        self._pools = pools
        self._images = images
        self._send = send
        self._log_now = Rarely()
        self._desired: tuple[wire.VolumeWanted, ...] = ()
        self._reported: dict[str, wire.VolumeStands] = {}
        self._look_now = asyncio.Event()
        self._busy: dict[str, asyncio.Task[None]] = {}
        """Pools of which the volumes are being seen to."""
        self._again: set[str] = set()
        """Pools to look at once more when they are no longer busy."""

    def tell(self, desired: tuple[wire.VolumeWanted, ...]) -> None:
        """Take how all volumes of this node are to be."""
        self._desired = desired
        self._reported = {}  # the sender of this order may have missed the report
        self._look_now.set()

    async def run(self) -> None:
        """See to the volumes until cancelled. A pool that does not answer holds up no other."""
        try:
            while True:
                self._look_now.clear()
                for pool in {volume.pool for volume in self._desired}:
                    self._begin(pool)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._look_now.wait(), LOOK_S)
        finally:
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    def _begin(self, pool: str) -> None:
        """Begin to see to a pool's volumes, or do so once more after those that are being seen to."""
        if pool in self._busy:
            self._again.add(pool)
            return
        volumes = [volume for volume in self._desired if volume.pool == pool]
        task = self._busy[pool] = asyncio.create_task(self._see_to_all(volumes), name=f"volumes of pool {pool}")
        task.add_done_callback(lambda _: self._end(pool))

    def _end(self, pool: str) -> None:
        del self._busy[pool]
        if pool in self._again:
            self._again.discard(pool)
            self._look_now.set()

    async def _see_to_all(self, volumes: list[wire.VolumeWanted]) -> None:
        for volume in volumes:
            report = await self._see_to(volume)
            if self._reported.get(volume.id) != report:
                self._reported[volume.id] = report
                self._send(report)

    async def _see_to(self, volume: wire.VolumeWanted) -> wire.VolumeStands:
        """Let a volume be as it should be, and return how it is."""
        begins = volume.phase in BEGIN and volume.id not in self._reported
        about = {"trace": volume.trace, "volume": volume.id, "phase": volume.phase}
        try:
            with doing(Action.VOLUME, **about) if begins else contextlib.nullcontext():
                await self._have_encrypted(volume)
                return await asyncio.to_thread(self._settle, volume)
        except (ImgFailed, OSError) as error:
            log.warning("a volume can't be set up", volume=volume.id, error=str(error))
            why, code = str(error) or type(error).__name__, code_of(error)
        except Exception as error:  # a defect met with one volume must not keep the others from being seen to
            why, code = f"internal error in its agent: {type(error).__name__}; see its log", WaitCode.STEP_FAILED
            if self._log_now.due(volume.id):
                log.exception("defect with a volume", volume=volume.id)
        phase = VolumePhase.FAILED if volume.phase is VolumePhase.CREATING else volume.phase
        return wire.VolumeStands(volume.id, phase, error=why, code=code)

    def _image_of(self, image: str | None, digest: str | None) -> LocalImage | None:
        """Return an image that has a disk. Raises ImageAway."""
        if image is None:
            return None
        held = self._images.get(image)
        if held is None or held.disk is None or not held.is_(digest):
            raise ImageAway(f"this node does not hold image {image}, or the image has no disk")
        return held

    def _plain_disk_of(self, volume: wire.VolumeWanted) -> Path | None:
        """Return the disk as a copy of which a volume that is not encrypted begins. Raises ImageAway, OSError."""
        image = self._image_of(volume.image, volume.image_digest)
        if image is not None and image.encryption_key:
            raise OSError(f"image {volume.image} is encrypted: a volume made from it must be encrypted too")
        return None if image is None else image.disk

    async def _have_encrypted(self, volume: wire.VolumeWanted) -> None:
        """Make the file of an encrypted volume that is to be made. Raises ImgFailed, OSError."""
        if not volume.encryption_key or volume.phase is not VolumePhase.CREATING:
            return
        path, is_there = await asyncio.to_thread(self._look_for, volume)
        if is_there:
            return
        if volume.key is None:
            raise OSError(f"the server can't unwrap its key {volume.encryption_key}; see the server's log")
        scratch, image = path.with_suffix(".new"), self._image_of(volume.image, volume.image_digest)
        if image is not None and image.encryption_key not in ("", volume.encryption_key):
            raise OSError(
                f"image {volume.image} is encrypted with a different key from the volume's: {image.encryption_key}"
            )
        await asyncio.to_thread(scratch.unlink, missing_ok=True)
        await luks.create_volume(scratch, volume.size_mib << 20, volume.key, CREATE_S_MAX)
        if image is not None and image.disk is not None:
            await luks.fill_volume(
                scratch, image.disk, volume.key, CREATE_S_MAX, source_is_encrypted=bool(image.encryption_key)
            )
        await files.sync(scratch)
        await asyncio.to_thread(scratch.rename, path)
        await asyncio.to_thread(make_durable, path.parent)
        log.info("an encrypted volume is made", volume=volume.id, path=str(path))

    def _look_for(self, volume: wire.VolumeWanted) -> tuple[Path, bool]:
        """Return where a volume is, and whether it is there. Raises PoolAway, OSError."""
        path = self._pools.path(volume.pool, volume.id)
        return path, path.exists()

    def _settle(self, volume: wire.VolumeWanted) -> wire.VolumeStands:
        """Let a volume be as it should be, and return how it is. Raises OSError."""
        path = self._pools.path(volume.pool, volume.id)
        if volume.phase is VolumePhase.DELETING:
            path.unlink(missing_ok=True)
            make_durable(path.parent)
            return wire.VolumeStands(volume.id, VolumePhase.DELETED)
        if not path.exists():
            if volume.phase is not VolumePhase.CREATING:
                return wire.VolumeStands(volume.id, volume.phase, error=f"{path} is gone", code=WaitCode.FILE_LOST)
            _create(path, volume.size_mib << 20, self._plain_disk_of(volume))
            log.info("a volume is made", volume=volume.id, path=str(path))
        status = path.stat()
        size_bytes = luks.file_bytes(volume.size_mib << 20, volume.encryption_key)
        if status.st_size < size_bytes:
            os.truncate(path, size_bytes)
        return wire.VolumeStands(volume.id, VolumePhase.READY, status.st_blocks * 512)


def _create(path: Path, size_bytes: int, begins_as: Path | None) -> None:
    """Make a volume, empty or a copy of a disk, whole or not at all. Raises OSError."""
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
        if begins_as is not None:
            _copy(begins_as, descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    scratch.rename(path)
    make_durable(path.parent)


def _copy(source: Path, target: int) -> None:
    """Copy what of a file is no hole. Raises OSError."""
    with source.open("rb") as file:
        for start, end in data_ranges(file.fileno(), os.fstat(file.fileno()).st_size):
            for at in range(start, end, COPY_BYTES):
                data = os.pread(file.fileno(), min(COPY_BYTES, end - at), at)
                if os.pwrite(target, data, at) != len(data):
                    raise OSError(f"the pool stored only a part of {source}")
