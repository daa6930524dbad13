"""The manifest of an OVF package (DMTF DSP0243): a checksum of each of its files.

Names in it are compared with those of the files however both are written: ``./disk.vmdk``, ``my%20disk.vmdk``, ``ü`` as
one character or two. What it can't check must not pass as checked: a disk that it does not name is refused, and so is
a package that lacks a piece of a disk that it names.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

from novacron.client.errors import ArchiveError

SUFFIX = ".mf"
ALGORITHMS = {"SHA1": "sha1", "SHA256": "sha256", "SHA512": "sha512"}
"""DSP0243 1.0 wrote SHA-1, 1.1 SHA-256; 2.1 allows SHA-512."""
LINE = re.compile(r"\s*(SHA-?\d+)\s*\((.{1,1024})\)\s*=\s*([0-9a-fA-F]+)\s*")
PIECE = re.compile(r"\.([0-9]{9})\Z")
"""How the name of a disk's piece ends: ``disk.vmdk.000000000`` is the first."""


class Checksum(NamedTuple):
    algorithm: str
    """As hashlib calls it."""
    hexadecimal: str


def plain(name: str) -> str:
    """Return a file's name in the one form in which names are compared: NFC, and without a leading ``./``."""
    return re.sub(r"\A(\./+)+", "", unicodedata.normalize("NFC", name))


def spellings(name: str) -> tuple[str, ...]:
    """Return the plain names that a file may have: descriptors and manifests name it by a URL, or should."""
    return tuple(dict.fromkeys((plain(name), plain(unquote(name)))))


class PackageManifest:
    """What a manifest says of each file; ``folder``: in which it lies in its archive, empty for none."""

    def __init__(self, stated: Iterable[tuple[str, Checksum]], folder: str = "") -> None:
        self._by_name: dict[str, Checksum] = {}
        self._by_url: dict[str, Checksum] = {}
        inside = f"{plain(folder)}/" if folder else ""
        for written, checksum in stated:
            name = plain(written).removeprefix(inside)
            earlier = self._by_name.get(name, checksum)
            if earlier.algorithm == checksum.algorithm and earlier != checksum:
                raise ArchiveError(f"the package's manifest has two checksums of {written[:80]!r}")
            self._by_name[name] = max(earlier, checksum, key=lambda one: len(one.hexadecimal))
            self._by_url[plain(unquote(name))] = self._by_name[name]

    def of(self, name: str) -> Checksum | None:
        """Return the checksum of a file, None if it is not named."""
        written_so = (self._by_name[spelling] for spelling in spellings(name) if spelling in self._by_name)
        return next(written_so, None) or self._by_url.get(plain(name))

    def pieces_of(self, name: str) -> int:
        """Return how many pieces a disk has at least, by the highest number of one that is named; 0 for none."""
        numbers = (
            int(piece[1]) + 1
            for named in self._by_url.keys() | self._by_name.keys()
            if (piece := PIECE.search(named)) and named.removesuffix(piece[0]) in spellings(name)
        )
        return max(numbers, default=0)

    def check_descriptor(self, name: str, text: bytes) -> None:
        """Raise ArchiveError when a descriptor is not the one that the manifest means. DSP0243 2.1 wants no checksum of
        the descriptor, so it may name none."""
        checksum = self.of(name)
        others = sorted(other for other in self._by_name if other.lower().endswith(".ovf"))
        if checksum is None and others:
            raise ArchiveError(
                f"the package's manifest is that of {others[0][:80]!r}, not of {name!r}: give the descriptor that name,"
                " or remove the manifest if you trust the package without it"
            )
        if checksum is not None and hashlib.new(checksum.algorithm, text).hexdigest() != checksum.hexadecimal:
            raise ArchiveError(f"{name} is damaged: its checksum is not the one in the package's manifest")


def parse(text: bytes, folder: str = "") -> PackageManifest:
    """Return a manifest. Raises ArchiveError for lines and algorithms that are not known, and for two checksums of a
    file that differ."""
    stated = []
    for line in text.decode("utf-8-sig", "surrogateescape").splitlines():
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if match is None or (algorithm := match[1].replace("-", "").upper()) not in ALGORITHMS:
            raise ArchiveError(f"the package's manifest has a line that can't be checked: {line[:80]!r}")
        stated.append((match[2], Checksum(ALGORITHMS[algorithm], match[3].lower())))
    return PackageManifest(stated, folder)


def name_beside(descriptor: str, names: Iterable[str]) -> str | None:
    """Return which of the names in a descriptor's folder is that of its manifest: its own with another suffix, whatever
    the case; None if there is none."""
    stem = plain(descriptor)[: -len(".ovf")].casefold()
    fitting = [name for name in names if plain(name).casefold() == stem + SUFFIX]
    exact = descriptor[: -len(".ovf")] + SUFFIX
    return exact if exact in fitting else min(fitting, default=None)


def name_in_archive(descriptor: str, names: Iterable[str]) -> str | None:
    """Return the name of a descriptor's manifest as ``name_beside`` does, or of the only one in its folder.

    Raises ArchiveError when it could be one of several.
    """
    manifests = [name for name in names if "/" not in name and name.lower().endswith(SUFFIX)]
    own = name_beside(descriptor, manifests)
    if own is None and len(manifests) > 1:
        raise ArchiveError(f"the package has {len(manifests)} manifests, and none of them is that of {descriptor!r}")
    return own if own is not None else next(iter(manifests), None)
