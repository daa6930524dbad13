"""The images that a VM uses beside its own: ISOs in its drives, its kernel and initial RAM disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from novacron.agent.vm import keys
from novacron.disk import luks
from novacron.disk.images import LocalImage
from novacron.model.vm import VmFields, VmSpec
from novacron.qemu.command import QemuCd
from novacron.wire import messages as wire

DECRYPT_S_MAX = 120.0


class Opens(Protocol):
    """Lets QEMU inherit files."""

    def hand(self, descriptor: int) -> int:
        """Let it inherit one that is open; return its number."""

    def read(self, path: Path) -> int:
        """Let it inherit one, open to be read."""


class MediaMissing(Exception):
    """This node does not have what a VM uses: says what."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


def find(images: Mapping[str, LocalImage], spec: VmSpec) -> dict[str, LocalImage]:
    """Return the images that a VM uses beside its own, by name. Raises MediaMissing if one is not here."""
    inserted = {}
    for name, kind in spec.media.items():
        image = images.get(name)
        if image is None:
            raise MediaMissing(name, f"waits for {kind} {name} from another node")
        if image.info.kind != kind or image.disk is None or not image.is_(spec.media_digests.get(name)):
            why = f"its node holds a different {kind} named {name}: novacron image delete {name} --node NODE"
            raise MediaMissing(name, why)
        inserted[name] = image
    return inserted


def path(media: Mapping[str, LocalImage], name: str | None) -> Path | None:
    """Return the file of one of them. Raises OSError if it is not there."""
    return None if name is None else _on_this_node(media, name).disk


async def boot_file(
    media: Mapping[str, LocalImage], name: str | None, assignment: wire.Assignment, opener: Opens
) -> int | None:
    """Return a kernel or an initial RAM disk, open for QEMU, which can't decrypt it: that of an encrypted image is in
    memory. Raises OSError, KeyMissing, ImgFailed."""
    if name is None:
        return None
    image = _on_this_node(media, name)
    assert image.disk is not None
    key = keys.image_key(assignment, image)
    if key is None:
        return opener.read(image.disk)
    memory = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        await luks.decrypt(image.disk, Path(f"/proc/{os.getpid()}/fd/{memory}"), key, DECRYPT_S_MAX)
        return opener.hand(os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC))
    finally:
        os.close(memory)


def _on_this_node(media: Mapping[str, LocalImage], name: str) -> LocalImage:
    if name not in media:
        raise FileNotFoundError(f"{name} is not on this node")
    return media[name]


def drive(spec: VmFields, number: int, media: Mapping[str, LocalImage], open_: Callable[[Path], int]) -> QemuCd:
    """Return a drive with what is to be in it, open. Raises OSError."""
    name = spec.cdroms[number].iso
    file = path(media, name)
    if name is None or file is None:
        return QemuCd(number)
    return QemuCd(number, medium_node(number, media[name]), open_(file), media[name].encryption_key)


def medium_node(number: int, image: LocalImage) -> str:
    """Return the name of the node of QEMU's block layer for an ISO in a drive: it tells which ISO it is."""
    return f"cd{number}-{image.info.digest[:20]}"
