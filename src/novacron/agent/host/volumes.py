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
from novacron.agent.settings import Settings
from novacron.disk.blocks import data_ranges
from novacron.disk.files import make_durable
from novacron.disk.images import Image
from novacron.model import limits
from novacron.model.volume import Pool, PoolKind, VolumePhase
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

LOOK_S = 10.0
COPY_BYTES = 1 << 20
MARK = ".novacron-pool"
"""In the directory of a shared pool: without it, what should be mounted there is not."""
ID = ".novacron-local"
"""In the directory of a local pool: what tells it from others, however it is mounted."""
FREE_STEP_BYTES = 64 << 20
"""What is said of a pool's free space is a multiple of this: not every write is worth telling."""


BEGIN = (VolumePhase.CREATING, VolumePhase.DELETING)


class PoolAway(OSError):
    """The pool is not there: says why."""


class Pools:
    """The directories of this node's pools."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        settings.volumes_dir.mkdir(parents=True, exist_ok=True, mode=0o711)

    def _directory(self, name: str) -> Path:
        if name == limits.LOCAL_POOL:
            return self._settings.volumes_dir
        if name in self._settings.shared_pools:
            path = self._settings.shared_pools[name]
            if not (path / MARK).exists():
                raise PoolAway(f"shared pool {name} is away: {path} has no {MARK}; is it mounted?")
            return path
        if name in self._settings.pools:
            return self._settings.pools[name]
        raise PoolAway(f"this node has no pool {name}")

    def directories(self) -> dict[str, Path]:
        """Return where each pool is that is there."""
        found = {}
        for name in (limits.LOCAL_POOL, *self._settings.pools, *self._settings.shared_pools):
            with contextlib.suppress(PoolAway):
                found[name] = self._directory(name)
        return found

    def path(self, pool: str, id: str) -> Path:
        """Return where a volume is. Raises PoolAway."""
        return self._directory(pool) / f"{id}.raw"

    def open(self, volume: wire.VolumeAttached) -> int:
        """Return a volume, open: QEMU needs no right to open it. Raises OSError."""
        flags = os.O_RDONLY if volume.read_only else os.O_RDWR
        return os.open(self.path(volume.pool, volume.id), flags | os.O_NOFOLLOW | os.O_CLOEXEC)

    def look(self) -> tuple[tuple[Pool, ...], list[str]]:
        """Return the pools that are there, and what is wrong with others."""
        found, wrong = [], []
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
            found.append(Pool(name, kind, stats.f_blocks * stats.f_frsize, free, id))
        return tuple(found), wrong


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


class Volumes:
    """All volumes of this node."""

    def __init__(self, pools: Pools, images: Mapping[str, Image], send: Callable[[wire.Message], None]) -> None:
        self._pools = pools
        self._images = images
        self._send = send
        self._wanted: tuple[wire.VolumeWanted, ...] = ()
        self._said: dict[str, wire.VolumeStands] = {}
        self._told = asyncio.Event()

    def tell(self, wanted: tuple[wire.VolumeWanted, ...]) -> None:
        self._wanted = wanted
        self._said = {}  # whoever tells this may not have heard it
        self._told.set()

    async def run(self) -> None:
        """See to them until cancelled."""
        while True:
            self._told.clear()
            for one in self._wanted:
                stands = await self._see_to(one)
                if self._said.get(one.id) != stands:
                    self._said[one.id] = stands
                    self._send(stands)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), LOOK_S)

    async def _see_to(self, one: wire.VolumeWanted) -> wire.VolumeStands:
        """Let a volume be as it should be, and say how it is."""
        begins = one.phase in BEGIN and one.id not in self._said
        about = {"trace": one.trace, "volume": one.id, "phase": one.phase}
        try:
            with doing(Action.VOLUME, **about) if begins else contextlib.nullcontext():
                return await asyncio.to_thread(self._settle, one)
        except OSError as error:
            log.warning("a volume is not as it should be", volume=one.id, error=str(error))
            phase = VolumePhase.FAILED if one.phase is VolumePhase.CREATING else one.phase
            return wire.VolumeStands(one.id, phase, error=str(error) or type(error).__name__)

    def _disk_of(self, image: str | None) -> Path | None:
        """Return the disk of an image. Raises FileNotFoundError."""
        if image is None:
            return None
        found = self._images.get(image)
        if found is None or found.disk is None:
            raise FileNotFoundError(f"this node does not hold image {image}, or that has no disk")
        return found.disk

    def _settle(self, one: wire.VolumeWanted) -> wire.VolumeStands:
        """Let a volume be as it should be, and say how it is. Raises OSError."""
        path = self._pools.path(one.pool, one.id)
        if one.phase is VolumePhase.DELETING:
            path.unlink(missing_ok=True)
            make_durable(path.parent)
            return wire.VolumeStands(one.id, VolumePhase.DELETED)
        if not path.exists():
            if one.phase is not VolumePhase.CREATING:
                return wire.VolumeStands(one.id, one.phase, error=f"{path} is gone")
            _create(path, one.size_mib << 20, self._disk_of(one.image))
            log.info("a volume is made", volume=one.id, path=str(path))
        found = path.stat()
        if found.st_size < one.size_mib << 20:
            os.truncate(path, one.size_mib << 20)
        return wire.VolumeStands(one.id, VolumePhase.READY, found.st_blocks * 512)


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
                    raise OSError(f"the pool took only a part of {source}")
