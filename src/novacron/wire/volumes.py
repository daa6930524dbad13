"""Messages about volumes."""

from __future__ import annotations

import msgspec

from novacron.model.encryption import DataKey
from novacron.model.volume import VolumePhase
from novacron.wire.base import Message


class VolumeWanted(msgspec.Struct, frozen=True):
    """A volume that a node has, is to make, or to delete."""

    id: str
    pool: str
    size_mib: int
    phase: VolumePhase
    image: str | None = None
    """Of which image's disk it begins as a copy."""
    trace: str = ""
    encryption_key: str = ""
    """The key with which it is encrypted; empty: it is not."""
    key: DataKey | None = None
    """That key, for a volume that is to be made; None: the server does not have it."""
    image_digest: str | None = None
    """Which image that is; None: whatever the node has under the name."""


class Volumes(Message, frozen=True):
    """All volumes that this node is to see to."""

    volumes: tuple[VolumeWanted, ...]


class VolumeStands(Message, frozen=True):
    """What a node has done about a volume of its own."""

    id: str
    phase: VolumePhase
    used_bytes: int = 0
    error: str = ""
    code: str = ""
    """``error``, for programs: one of ``WaitCode``."""


class VolumeHandled(Message, frozen=True):
    """What a VM's node did with a volume that is, or was to be, attached to it. ``released``: QEMU does not have it."""

    vm: str
    epoch: int
    id: str
    released: bool
    error: str = ""
    code: str = ""
    """``error``, for programs: one of ``WaitCode``."""
