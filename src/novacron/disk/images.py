"""Images that a host holds: a directory each, described by ``manifest.json``."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import shutil
import tempfile
from pathlib import Path

import msgspec

from novacron.disk import luks
from novacron.disk.files import make_durable
from novacron.model.encryption import KeyId
from novacron.model.errors import MALFORMED, InvalidInput
from novacron.model.names import NAME_PATTERN
from novacron.model.node import ImageInfo
from novacron.model.vm import BLANK_IMAGE, BOOT_FILE, ISO

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 64 * 1024
IMAGES_MAX = 1000
BLANK_DISK = "disk.raw"
DISK_ALIGNMENT = 4096


class ImageFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    sha256: str
    size_bytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an image is. ``kind`` is ``kernel``: a kernel and an initial RAM disk, booted directly; or ``disk``: its VMs
    boot from their disk. ``iso`` and ``boot-file``: ``disk`` is what VMs have in a CD-ROM drive, or boot as
    their kernel or initial RAM disk.

    ``disk`` is what the disk of each of its VMs begins with: raw, a multiple of 4096 bytes, and never written to.
    """

    kind: str
    kernel: ImageFile | None = None
    initrd: ImageFile | None = None
    cmdline: str = ""
    description: str = ""
    disk: ImageFile | None = None
    origin: str = ""
    """The import by which it came."""
    encryption_key: KeyId = ""
    """With which ``disk`` is encrypted (LUKS); what is described is the encrypted file. Empty: it is not."""

    @property
    def files(self) -> tuple[ImageFile, ...]:
        return tuple(file for file in (self.kernel, self.initrd, self.disk) if file is not None)


class LocalImage(msgspec.Struct, frozen=True):
    """An image on this host."""

    info: ImageInfo
    directory: Path
    kernel: Path | None
    initrd: Path | None
    cmdline: str
    disk: Path | None = None
    encryption_key: str = ""
    """Id of the key with which the disk is encrypted; empty: it is not."""

    def is_(self, digest: str | None) -> bool:
        """Say whether it is the image that is meant; None: any under its name."""
        return digest in (None, self.info.digest)

    def without_disk(self) -> LocalImage:
        """Return the image as a VM without a disk of its own has it."""
        return msgspec.structs.replace(self, disk=None)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that it consists of, the manifest first."""
        parts = (self.kernel, self.initrd, self.disk)
        return (self.directory / MANIFEST, *(path for path in parts if path is not None))


class ImageUnusable(Exception):
    """A directory does not hold the image that was expected: says why."""


def verify(directory: Path, digest: str) -> LocalImage:
    """See that a directory holds all of the image with this digest, and nothing else; return it.

    Raises ImageUnusable, OSError.
    """
    try:
        image = _load(directory)
    except InvalidInput as error:
        raise ImageUnusable(str(error)) from error
    if image.info.digest != digest:
        raise ImageUnusable(f"it is a different image from {digest[:12]}")
    manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    for file in manifest.files:
        if describe(directory / file.path) != file:
            raise ImageUnusable(f"{file.path} is not the file that the manifest describes")
    extra = {path.name for path in directory.iterdir()} - {path.name for path in image.files}
    if extra:
        raise ImageUnusable(f"it has files that the manifest does not name: {', '.join(sorted(extra))}")
    return image


def _load(directory: Path) -> LocalImage:
    raw = (directory / MANIFEST).read_bytes()[:MANIFEST_BYTES_MAX]
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except MALFORMED as error:
        raise InvalidInput(f"{directory / MANIFEST} is not an image manifest: {error}", field="image") from None
    required = {
        "kernel": (manifest.kernel, manifest.initrd),
        "disk": (manifest.disk,),
        ISO: (manifest.disk,),
        BOOT_FILE: (manifest.disk,),
    }.get(manifest.kind)
    if required is None or None in required:
        raise InvalidInput(f"{directory / MANIFEST} lacks files that an image of its kind needs", field=manifest.kind)
    header_bytes = luks.HEADER_BYTES if manifest.encryption_key else 0
    disk_bytes = 0 if manifest.disk is None else manifest.disk.size_bytes - header_bytes
    if manifest.disk is not None and (disk_bytes % DISK_ALIGNMENT or disk_bytes < 1):
        raise InvalidInput(f"{manifest.disk.path} is not a multiple of {DISK_ALIGNMENT} bytes", field="disk")
    paths = {file.path: _path_of(file, directory) for file in manifest.files}
    size = sum(file.size_bytes for file in manifest.files)
    digest = hashlib.sha256(raw).hexdigest()
    info = ImageInfo(directory.name, digest, size, manifest.kind, manifest.description, disk_bytes)
    places = [None if file is None else paths[file.path] for file in (manifest.kernel, manifest.initrd, manifest.disk)]
    return LocalImage(info, directory, places[0], places[1], manifest.cmdline, places[2], manifest.encryption_key)


def _path_of(file: ImageFile, directory: Path) -> Path:
    """Return where a file of an image is. Raises InvalidInput if it is elsewhere or not as the manifest says."""
    if "/" in file.path or file.path.startswith("."):
        raise InvalidInput(f"{directory / MANIFEST} names a file outside the image", field=file.path)
    path = directory / file.path
    if not file.path.isprintable():
        raise InvalidInput(f"{directory / MANIFEST} names an invalid file", field="image")
    if path.is_symlink() or path.stat().st_size != file.size_bytes:
        raise InvalidInput(f"{path} is not the file that its manifest describes", field="image")
    return path


def scan(root: Path) -> tuple[dict[str, LocalImage], list[str]]:
    """Return the usable images under ``root`` by name, and the errors of the others."""
    images: dict[str, LocalImage] = {}
    errors: list[str] = []
    if not root.is_dir():  # no image has come yet
        return images, []
    for directory in sorted(root.iterdir())[:IMAGES_MAX]:
        if not (directory / MANIFEST).is_file() or not re.fullmatch(NAME_PATTERN, directory.name):
            continue
        try:
            images[directory.name] = _load(directory)
        except (InvalidInput, OSError) as error:
            errors.append(f"image {directory.name}: {error}")
    return images, errors


def have_blank(root: Path) -> None:
    """See that the image with an empty disk is under ``root``; it is the same on every node. Raises OSError."""
    if (root / BLANK_IMAGE).exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{BLANK_IMAGE}-", dir=root))
    try:
        (scratch / BLANK_DISK).write_bytes(bytes(DISK_ALIGNMENT))
        manifest = Manifest("disk", description="an empty disk", disk=describe(scratch / BLANK_DISK))
        (scratch / MANIFEST).write_bytes(msgspec.json.encode(manifest))
        with contextlib.suppress(FileExistsError):  # another agent of this host has made it meanwhile
            make_durable(scratch)
            _rename_new(scratch, root / BLANK_IMAGE)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rename_new(scratch: Path, target: Path) -> None:
    """Rename a directory. Raises FileExistsError if there is one of that name."""
    try:
        scratch.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(target) from error
        raise


def describe(path: Path) -> ImageFile:
    """Return the manifest entry of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ImageFile(path.name, digest, path.stat().st_size)
