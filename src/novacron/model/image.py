"""Image imports: what is imported, from where, and its progress."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.errors import InvalidInput


class ImageFormat(StrEnum):
    """The format of an image file."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"
    VHD = "vhd"
    VHDX = "vhdx"
    ISO = "iso"
    """A CD or DVD, for drives of VMs."""
    BOOT_FILE = "boot-file"
    """A kernel or initial RAM disk, as it is."""

    @property
    def kept_as_is(self) -> bool:
        """Say whether the file becomes the image without a conversion."""
        return self in (ImageFormat.RAW, ImageFormat.ISO, ImageFormat.BOOT_FILE)


class Source(StrEnum):
    """Where the file comes from."""

    UPLOAD = "upload"
    """The caller uploads it in pieces."""
    URL = "url"
    """The node downloads it over HTTP or HTTPS."""
    PATH = "path"
    """It is in the node's import directory."""


class ImportPhase(StrEnum):
    """How far an import is."""

    RECEIVING = "receiving"
    CONVERTING = "converting"
    DONE = "done"
    FAILED = "failed"


Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z", description="64 hexadecimal digits")]
SizeBytes = Annotated[int, Meta(ge=1, le=limits.IMAGE_FILE_BYTES_MAX)]


class ImportSpec(msgspec.Struct, frozen=True):
    """What the user requested. ``location`` is a URL, or a path below the node's import directory."""

    name: str
    source: Source
    location: str = ""
    size_bytes: int = 0
    """Size of the file, for uploads and images of catalogues."""
    sha256: str | None = None
    """Checksum of the file as received, before conversion."""
    format: ImageFormat | None = None
    """None: detected from the beginning of the file."""
    description: str = ""


class Import(msgspec.Struct, frozen=True):
    """An import as stored and as the API shows it."""

    id: str
    spec: ImportSpec
    node: str
    phase: ImportPhase
    held_bytes: int
    """How many bytes of the file the node has received."""
    error: str
    aborting: bool
    revision: int
    created_at: datetime
    finished_at: datetime | None
    project: str | None = None
    """The project that will own the image; None: all projects may use it."""
    disk_mib: int = 0
    """Size of the disk in the file, once that is known, and it fits the project's quota."""
    trace: str = ""
    """The trace to which all work on this import belongs (W3C Trace Context: traceparent)."""
    reason_code: str = ""
    """``error``, for programs: one of ``WaitCode``."""


def check_url(url: str) -> str:
    """Return the URL, or raise InvalidInput if it is not an HTTP or HTTPS URL, or contains a user or password."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"[\s\x00-\x1f]", url)
        _ = parts.port
    except ValueError:
        good = False
    if not good or len(url) > limits.URL_LENGTH_MAX:
        raise InvalidInput(f"{url[:100]!r} is not a URL of HTTP", field="url", hint="write it like https://host/disk")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(
            "the URL contains a user name or a password", field="url", hint="it would be visible to all users"
        )
    return url


def check_path(path: str) -> str:
    """Return a relative path that does not leave its directory, or raise InvalidInput."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path or len(path) > limits.PATH_LENGTH_MAX:
        raise InvalidInput(
            f"{path[:100]!r} is not a path in the node's import directory",
            field="path",
            hint="name it relative to that directory, see: novacron agent --help",
        )
    return str(PurePosixPath(path))
