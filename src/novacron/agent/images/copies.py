"""Images that go from node to node, over DWCP sessions of their own."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from novacron import pki
from novacron.agent.host.endpoint import parse_endpoint
from novacron.agent.migration import disk_mirror
from novacron.agent.settings import AgentSettings
from novacron.disk.files import NewFile, make_durable
from novacron.disk.images import MANIFEST, ImageUnusable, LocalImage, scan, verify
from novacron.disk.stream import DiskPlayer, Head, StreamError, VolumeSink
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.listener import Listener
from novacron.dwcp.receiver import ReceiveFailed, ReceiveOptions
from novacron.dwcp.sender import Sender, SendFailed, SendOptions
from novacron.model.vm import BOOT_FILE
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

BEGIN_S_MAX = 60.0
SPARE_BYTES = 1 << 30
"""Room that stays free on the target's disk."""
SCRATCH = ".receiving-"
"""Before the name of the node that receives."""


class CopyFailed(Exception):
    """The image did not arrive: says why. Nothing of it is kept."""


def _key(copy: str) -> bytes:
    """Return what both ends need to have in common; nothing of a project's goes over this session."""
    return hashlib.sha256(copy.encode()).digest()


async def give(pool: ConnectionPool, order: wire.CopyWanted, image: LocalImage, settings: AgentSettings) -> None:
    """Send an image to the node that expects it. Raises CopyFailed."""
    options = SendOptions(
        _key(order.copy), settings.rings_dir, outage_s=settings.outage_s, rate_bytes_per_s=order.rate_bytes_per_s
    )
    sender = Sender(parse_endpoint(order.endpoint), pki.node_host(order.peer), order.copy, pool, options)
    named = [(path.name, path) for path in image.files]
    try:
        async with sender:
            await disk_mirror.send_files(named, sender, image.info.digest)
    except (SendFailed, OSError, TimeoutError) as error:
        raise CopyFailed(str(error) or type(error).__name__) from error


async def take(listener: Listener, expected: wire.CopyExpected, settings: AgentSettings) -> None:
    """Receive an image, whole and as its manifest describes it, or nothing. Raises CopyFailed."""
    target = settings.images_dir / expected.image.name
    if target.exists():
        raise CopyFailed(f"image {expected.image.name} already exists")

    def open_(head: Head) -> list[VolumeSink]:
        names = [info.name for info in head.volumes]
        size = sum(info.size_bytes for info in head.volumes)
        if names[0] != MANIFEST or len(set(names)) != len(names) or any("/" in n or n.startswith(".") for n in names):
            raise StreamError("the stream is not an image")
        free = shutil.disk_usage(scratch).free
        if size > free - SPARE_BYTES:
            raise StreamError(f"there is no space for {size} bytes: {free} are free in {settings.images_dir}")
        return [NewFile(scratch / info.name, info.size_bytes) for info in head.volumes]

    terms = ReceiveOptions(_key(expected.copy), settings.rings_dir, outage_s=settings.outage_s)
    try:
        scratch = await asyncio.to_thread(_make_scratch, settings)
    except OSError as error:
        raise CopyFailed(f"images can't be stored in {settings.images_dir}: {error.strerror}") from error
    try:
        with listener.expect(expected.copy, expected.peer, terms) as session:
            await session.receive(DiskPlayer(open_), BEGIN_S_MAX)
        await asyncio.to_thread(_put_in_place, scratch, target, expected.image.digest)
    except (ReceiveFailed, ImageUnusable, OSError, TimeoutError) as error:
        raise CopyFailed(str(error) or type(error).__name__) from error
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, True)


def _make_scratch(settings: AgentSettings) -> Path:
    """Make the directory that an image is received in. Raises OSError."""
    settings.images_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{settings.name}-", dir=settings.images_dir))


def _put_in_place(scratch: Path, target: Path, digest: str) -> None:
    """Let an image that has arrived be seen, durably, if it is the right one. Raises ImageUnusable, OSError."""
    image = verify(scratch, digest)
    for path in (
        image.kernel,
        image.initrd,
        image.disk if image.info.kind == BOOT_FILE and not image.encryption_key else None,
    ):
        if path is not None:
            path.chmod(0o644)  # QEMU opens it again, as another user
    scratch.rename(target)  # only we can enter it
    make_durable(target)


def clean(settings: AgentSettings) -> None:
    """Remove what an earlier agent of this node left half received, and let only us enter images with disks: earlier
    agents let everybody."""
    for scratch in settings.images_dir.glob(f"{SCRATCH}{settings.name}-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    if not settings.images_dir.is_dir():
        return
    for image in scan(settings.images_dir)[0].values():
        directory = image.directory
        try:
            if image.disk is not None and not directory.is_symlink() and directory.stat().st_uid == os.geteuid():
                directory.chmod(0o700)
        except OSError as error:  # the agent begins without that, and the other images are seen to
            log.warning("others may enter an image's directory", image=image.info.name, error=str(error))
