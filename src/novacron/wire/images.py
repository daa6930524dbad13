"""Messages about images: copies between nodes, imports, exports."""

from __future__ import annotations

import msgspec

from novacron.model.encryption import DataKey, KeyId
from novacron.model.export import ExportPhase
from novacron.model.image import ImportPhase as ImportPhase
from novacron.model.image import ImportSpec
from novacron.model.node import ImageInfo
from novacron.wire.base import Message, Reply, Request, over_key, ready_key, settled_keys


class ImageMissing(Message, frozen=True):
    """A VM is to run here, of an image that this node does not hold."""

    name: str


class ImageIdle(Message, frozen=True):
    """An image came here for a VM, and no VM here has been made of it for long."""

    name: str
    digest: str


class CopyExpected(Request, frozen=True):
    """Another node will send this image."""

    copy: str
    peer: str
    image: ImageInfo
    on_demand: bool
    """A VM needs it: it need not stay when no VM does."""

    @property
    def reply_key(self) -> str:
        return ready_key(self.copy)


class CopyReady(Reply, frozen=True):
    """This node expects the copy of an image."""

    copy: str

    @property
    def replies_to(self) -> tuple[str, ...]:
        return (ready_key(self.copy),)


class CopyWanted(Request, frozen=True):
    """Send this image to another node, which waits at ``endpoint``."""

    copy: str
    peer: str
    endpoint: str
    image: ImageInfo
    rate_bytes_per_s: int | None = None
    """Use no more of the link than so much."""

    @property
    def reply_key(self) -> str:
        return over_key(self.copy)


class Copied(Reply, frozen=True):
    """The image is here, or it is known why it will not come."""

    copy: str

    @property
    def replies_to(self) -> tuple[str, ...]:
        return settled_keys(self.copy, self.error)


class ImportWanted(msgspec.Struct, frozen=True):
    """An image that is to come to this node."""

    id: str
    spec: ImportSpec
    trace: str = ""
    disk_bytes: int = 0
    """How large a disk the image may have: nothing is made of a larger one before this is raised."""
    encryption_key: KeyId = ""
    """The key with which it is encrypted; empty: it is not."""
    key: DataKey | None = None
    """That key; None: the server does not have it."""


class Imports(Message, frozen=True):
    """All imports that this node is to work on; others are over."""

    imports: tuple[ImportWanted, ...]
    unreadable: tuple[str, ...] = ()
    """Ids of more, of which the server can't read how they are to be: what was said of them last holds, and their files
    stay."""


class ImportStands(Message, frozen=True):
    """How far an import is on this node."""

    id: str
    phase: ImportPhase
    held_bytes: int
    error: str = ""
    code: str = ""
    """``error``, for programs: one of ``WaitCode``."""
    disk_bytes: int = 0
    """Size of the disk in the file, once that is known."""


class ExportWanted(msgspec.Struct, frozen=True):
    """An export that is to be made, or kept."""

    id: str
    vm: str
    phase: ExportPhase
    trace: str = ""


class Exports(Message, frozen=True):
    """All exports that this node is to make, or to keep; others go."""

    exports: tuple[ExportWanted, ...]
    unreadable: tuple[str, ...] = ()
    """Ids of more, of which the server can't read how they are to be: what was said of them last holds, and their files
    stay."""


class ExportStands(Message, frozen=True):
    """How far an export is on this node."""

    id: str
    phase: ExportPhase
    size_bytes: int = 0
    disk_bytes: int = 0
    sha256: str = ""
    error: str = ""
    code: str = ""
    """``error``, for programs: one of ``WaitCode``."""
