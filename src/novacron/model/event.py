"""Events: the log of what happened to which object."""

from __future__ import annotations

from datetime import datetime

import msgspec

from novacron.model.metadata import Metadata


class Event(msgspec.Struct, frozen=True):
    """Something that happened to an object, and who or what caused it."""

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
    """The project of the object; None: the object belongs to the fleet."""
    count: int = 1
    """Number of events combined here: more than five a minute for one object are merged, if possible with one of the
    same reason."""
    last_at: datetime | None = None
    """When the last of them happened, if there may be more; ``reason`` and ``message`` are of then."""


class Image(Metadata, frozen=True):
    """An image and the nodes that hold it."""

    name: str
    digest: str
    size_bytes: int
    kind: str
    disk_bytes: int
    """Size of the disk in the image; 0: it has none."""
    nodes: tuple[str, ...]
    project: str | None = None
    """The project that owns the image; None: all projects may use it."""
    encryption_key: str = ""
    """Id of the project's key with which nodes hold it encrypted; empty: it is not."""


class ImageCopy(msgspec.Struct, frozen=True):
    """An image copy that has started. Events of the target node report how it ends."""

    id: str
    image: str
    source: str
    target: str
    size_bytes: int
