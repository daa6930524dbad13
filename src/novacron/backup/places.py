"""Where repositories are: in directories, or in object storage."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from novacron.backup.s3_address import SCHEME, SHAPE, BadAddress, S3Address
from novacron.backup.storage import DirectoryStorage, Storage

Place: TypeAlias = Path | S3Address
"""Of a repository, or of several: ``place / name`` is the place of one of them."""


def place_of(text: str) -> Place:
    """Read what operators write: a path, or an address of object storage. Raises BadAddress."""
    if text.startswith(SCHEME):
        return S3Address.parse(text)
    if "://" in text:
        raise BadAddress(f"repositories are in directories or in S3: write a path, or {SHAPE}")
    return Path(text)


def storage_at(place: Place) -> Storage:
    """Return the storage of a repository. Raises BadAddress for credentials that can't be read."""
    if isinstance(place, Path):
        return DirectoryStorage(place)
    from novacron.backup.s3 import S3Storage  # brings a library that only object storage needs

    return S3Storage(place)
