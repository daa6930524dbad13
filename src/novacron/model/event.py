"""What happened: the log that people read."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Event(msgspec.Struct, frozen=True):
    """One thing that happened to one object, and who or what caused it."""

    id: int
    at: datetime
    kind: str
    object: str
    name: str
    reason: str
    message: str
    actor: str
    revision: int
    project: str | None = None
    """Whose the object is; None: the fleet's."""


class Image(msgspec.Struct, frozen=True):
    """An image, with the nodes that hold it."""

    name: str
    digest: str
    size_bytes: int
    kind: str
    description: str
    disk_bytes: int
    """Size of the disk that a VM of it has; 0 for none."""
    nodes: tuple[str, ...]
    project: str | None = None
    """Whose it is; None: everybody may use it."""


class ImageCopy(msgspec.Struct, frozen=True):
    """A copy of an image that has begun; events of the target node say how it ended."""

    id: str
    image: str
    source: str
    target: str
    size_bytes: int
