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


class Image(msgspec.Struct, frozen=True):
    """An image, with the nodes that hold it."""

    name: str
    digest: str
    size_bytes: int
    kind: str
    description: str
    nodes: tuple[str, ...]
