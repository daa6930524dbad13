"""Catalogues of images: lists of what may be imported by its name, in two formats.

A plain one is a JSON document of NovaCron's, signed with minisign(1). The other is what simplestreams servers have
(``streams/v1/index.json``), as those of Incus, LXD and Ubuntu do. Both come from outside: all that they may say is
where an image is, and what its digest and size are.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Annotated
from urllib.parse import urljoin

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta

from novacron.model import limits
from novacron.model.errors import InvalidInput
from novacron.model.image import ImageFormat, Sha256, SizeBytes, check_url
from novacron.model.names import Name
from novacron.model.vm import check_name

FORMAT = "novacron-catalogue-1"
IMAGES_MAX = 2000
ALIASES_MAX = 16
ARCHITECTURES = ("amd64", "x86_64")
DISKS = frozenset({"disk-kvm.img", "disk1.img", "disk.img", "disk.qcow2", "qcow2"})
"""Kinds of files of simplestreams that are disks."""
PREHASHED, DIRECT = b"ED", b"Ed"
MALFORMED = (msgspec.MsgspecError, UnicodeError, binascii.Error)


class CatalogueImage(msgspec.Struct, frozen=True):
    """An image that can be imported by its name."""

    name: Name
    url: str
    sha256: Sha256
    """Of the file at the URL."""
    size_bytes: SizeBytes
    description: Annotated[str, Meta(max_length=limits.IMAGE_FILE_DESCRIPTION_LENGTH_MAX)] = ""
    format: ImageFormat | None = None
    """None: detected from the beginning of the file."""
    aliases: Annotated[tuple[str, ...], Meta(max_length=ALIASES_MAX)] = ()
    """Other names that mean it."""
    catalogue: str = ""
    """Where it is listed."""
    signed: bool = False
    """The list has a signature by a key of the server's settings."""


class Catalogue(msgspec.Struct, frozen=True):
    """A plain catalogue."""

    format: str
    images: Annotated[tuple[CatalogueImage, ...], Meta(max_length=IMAGES_MAX)]


class _Item(msgspec.Struct):
    ftype: str = ""
    path: str = ""
    sha256: str = ""
    size: int = 0


class _Version(msgspec.Struct):
    items: dict[str, _Item] = {}


class _Product(msgspec.Struct):
    arch: str = ""
    os: str = ""
    release_title: str = ""
    variant: str = ""
    aliases: str = ""
    versions: dict[str, _Version] = {}


class _Products(msgspec.Struct):
    products: dict[str, _Product] = {}


class _IndexEntry(msgspec.Struct):
    path: str
    datatype: str = ""


class _Index(msgspec.Struct):
    index: dict[str, _IndexEntry] = {}


def parse(data: bytes, catalogue: str, *, signed: bool) -> list[CatalogueImage]:
    """Return the images of a plain catalogue. Raises InvalidInput."""
    try:
        parsed = msgspec.json.decode(data, type=Catalogue)
    except MALFORMED as error:
        raise InvalidInput(f"it can't be read: {error}") from error
    if parsed.format != FORMAT:
        raise InvalidInput(f"its format is {parsed.format[:50]!r}, not {FORMAT!r}")
    names: set[str] = set()
    for image in parsed.images:
        check_name(image.name)
        check_url(image.url)
        if image.name in names:
            raise InvalidInput(f"it lists {image.name} twice")
        names.add(image.name)
    return [msgspec.structs.replace(image, catalogue=catalogue, signed=signed) for image in parsed.images]


def product_lists(index: bytes) -> list[str]:
    """Return the paths of the lists of images in a simplestreams index. Raises InvalidInput."""
    try:
        entries = msgspec.json.decode(index, type=_Index).index.values()
    except MALFORMED as error:
        raise InvalidInput(f"streams/v1/index.json can't be read: {error}") from error
    return [entry.path for entry in entries if entry.datatype == "image-downloads"]


def beneath(base: str, path: str) -> str:
    """Return the URL of a path beneath another. Raises InvalidInput when it leads elsewhere."""
    base = base.rstrip("/") + "/"
    url = urljoin(base, path)
    if not url.startswith(base) or ".." in path.split("/"):
        raise InvalidInput(f"{path[:100]!r} leads away from {base}")
    return check_url(url)


def parse_products(data: bytes, base: str) -> list[CatalogueImage]:
    """Return the newest disk of each product of a simplestreams list that fits this platform. Raises InvalidInput."""
    try:
        products = msgspec.json.decode(data, type=_Products).products
    except MALFORMED as error:
        raise InvalidInput(f"its list of images can't be read: {error}") from error
    images: dict[str, CatalogueImage] = {}
    for product in products.values():
        for image in _newest(product, base):
            images.setdefault(image.name, image)
        if len(images) > IMAGES_MAX:
            raise InvalidInput(f"it lists more than {IMAGES_MAX} images")
    return list(images.values())


def _newest(product: _Product, base: str) -> Iterator[CatalogueImage]:
    """Yield the newest disk of a product, unless it has none that can be imported."""
    names = [name for alias in product.aliases.split(",")[:ALIASES_MAX] if (name := _name(product.os, alias))]
    if product.arch not in ARCHITECTURES or not names:
        return
    for version in sorted(product.versions, reverse=True):
        disks = [item for item in product.versions[version].items.values() if item.ftype in DISKS]
        for disk in disks:
            text = f"{product.os} {product.release_title} {product.variant}, {version}"
            fields = {
                "name": names[0], "url": beneath(base, disk.path), "sha256": disk.sha256, "size_bytes": disk.size,
                "description": " ".join(text.split())[:limits.IMAGE_FILE_DESCRIPTION_LENGTH_MAX],
                "aliases": names[1:], "catalogue": base,
            }  # fmt: skip
            try:
                yield msgspec.convert(fields, CatalogueImage)
            except msgspec.ValidationError:  # no digest, or too large: it can't be imported
                continue
            return


def _name(system: str, alias: str) -> str | None:
    """Return an alias such as ``debian/12/cloud`` as an image's name, None when it can't be one."""
    text = re.sub(r"[/._ ]+", "-", alias.strip().lower())
    system = re.sub(r"[^a-z0-9]+", "-", system.lower())
    name = text if text == system or text.startswith(f"{system}-") else f"{system}-{text}"
    try:
        return check_name(name)
    except InvalidInput:
        return None


def verify(data: bytes, signature: bytes, keys: Iterable[str]) -> None:
    """Check a signature of minisign(1). Raises InvalidInput when it is by none of these keys, or of something else."""
    try:
        lines = signature.decode().splitlines()
        signed, whole = base64.b64decode(lines[1], validate=True), base64.b64decode(lines[3], validate=True)
        comment = lines[2].removeprefix("trusted comment: ").encode()
    except (*MALFORMED, IndexError) as error:
        raise InvalidInput("its signature is none of minisign's") from error
    algorithm, key_id, proof = signed[:2], signed[2:10], signed[10:]
    key = next((key for key in map(public_key, keys) if key[0] == key_id), None)
    if key is None:
        raise InvalidInput("it is signed by no key of this server's settings", hint="--catalogue-key")
    if algorithm not in (PREHASHED, DIRECT):
        raise InvalidInput("its signature is of a kind that is not known")
    try:
        key[1].verify(proof, hashlib.blake2b(data).digest() if algorithm == PREHASHED else data)
        key[1].verify(whole, proof + comment)
    except InvalidSignature:
        raise InvalidInput("its signature is wrong: it was changed after it was signed") from None


def public_key(text: str) -> tuple[bytes, Ed25519PublicKey]:
    """Return a public key of minisign's, and its id. Raises InvalidInput."""
    try:
        raw = base64.b64decode(text, validate=True)
        if len(raw) != 42 or raw[:2] != DIRECT:
            raise InvalidInput(f"{text[:60]!r} is no public key of minisign's", hint="it begins with RW")
        return raw[2:10], Ed25519PublicKey.from_public_bytes(raw[10:])
    except (ValueError, UnicodeError) as error:
        raise InvalidInput(f"{text[:60]!r} is no public key of minisign's", hint="it begins with RW") from error
