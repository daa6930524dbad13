"""The images that a VM uses beside its own: ISOs in its drives, its kernel and initial RAM disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from novacron.disk.images import LocalImage
from novacron.model.vm import VmFields, VmSpec
from novacron.qemu.command import QemuCd


class MediaMissing(Exception):
    """This node does not have what a VM uses: says what."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


def find(images: Mapping[str, LocalImage], spec: VmSpec) -> dict[str, LocalImage]:
    """Return the images that a VM uses beside its own, by name. Raises MediaMissing if one is not here."""
    found = {}
    for name, kind in spec.media.items():
        image = images.get(name)
        if image is None:
            raise MediaMissing(name, f"waits for {kind} {name} from another node")
        if image.info.kind != kind or image.disk is None or not image.is_(spec.media_digests.get(name)):
            why = f"its node holds something else as {kind} {name}: novacron image delete {name} --node NODE"
            raise MediaMissing(name, why)
        found[name] = image
    return found


def path(media: Mapping[str, LocalImage], name: str | None) -> Path | None:
    """Return the file of one of them. Raises OSError if it is not there."""
    if name is None:
        return None
    if name not in media:
        raise FileNotFoundError(f"{name} is not here")
    return media[name].disk


def drive(spec: VmFields, number: int, media: Mapping[str, LocalImage], open_: Callable[[Path], int]) -> QemuCd:
    """Return a drive with what is to be in it, open. Raises OSError."""
    name = spec.cdroms[number].iso
    file = path(media, name)
    if name is None or file is None:
        return QemuCd(number)
    return QemuCd(number, medium_node(number, media[name]), open_(file))


def medium_node(number: int, image: LocalImage) -> str:
    """Return the name of the node of QEMU's block layer for an ISO in a drive: it tells which ISO it is."""
    return f"cd{number}-{image.info.digest[:20]}"
