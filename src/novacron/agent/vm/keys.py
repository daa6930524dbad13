"""The keys of a VM's encrypted disks: held in memory for as long as the server has this node have the VM."""

from __future__ import annotations

from novacron.disk.images import LocalImage
from novacron.disk.overlay import OverlayFailed
from novacron.model.encryption import DataKey
from novacron.wire import messages as wire


class KeyMissing(OverlayFailed):
    """A disk is encrypted, and its key is not to be had here: says which."""


def disk_key(assignment: wire.Assignment) -> DataKey | None:
    """Return the key of a VM's own disk, None if that is not encrypted. Raises KeyMissing."""
    return _key(assignment, assignment.spec.encryption_key, "its disk")


def volume_key(assignment: wire.Assignment, volume: wire.VolumeAttached) -> DataKey | None:
    """Return the key of one of a VM's volumes, None if that is not encrypted. Raises KeyMissing."""
    return _key(assignment, volume.encryption_key, f"volume {volume.id}")


def image_key(assignment: wire.Assignment, image: LocalImage) -> DataKey | None:
    """Return the key of an image that a VM uses, None if that is not encrypted. Raises KeyMissing."""
    return _key(assignment, image.encryption_key, f"image {image.info.name}")


def check_all(assignment: wire.Assignment) -> None:
    """Raise KeyMissing unless the keys of all of a VM's disks are here."""
    disk_key(assignment)
    for volume in assignment.volumes:
        if not volume.detaching:
            volume_key(assignment, volume)


def _key(assignment: wire.Assignment, id: str, what: str) -> DataKey | None:
    if not id:
        return None
    for key in assignment.keys:
        if key.id == id:
            return key
    raise KeyMissing(
        f"{what} is encrypted with {id}, which was erased, or which the server can't unwrap: see the server's log"
    )
