"""Where repositories are: in directories, in object storage, or behind restic's REST protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from novacron.backup import rest_address, s3_address
from novacron.backup.addresses import BadAddress
from novacron.backup.rest_address import RestAddress
from novacron.backup.s3_address import S3Address
from novacron.backup.storage import DirectoryStorage, Storage

Place: TypeAlias = Path | S3Address | RestAddress
"""Of a repository, or of several: ``place / name`` is the place of one of them."""


def place_of(text: str) -> Place:
    """Read what operators write: a path, or an address. Raises BadAddress."""
    if text.startswith(s3_address.SCHEME):
        return S3Address.parse(text)
    if text.startswith(rest_address.SCHEME):
        return RestAddress.parse(text)
    if "://" in text:
        raise BadAddress(f"write a path, {s3_address.SHAPE}, or {rest_address.SHAPE}")
    return Path(text)


def storage_at(place: Place) -> Storage:
    """Return the storage of a repository. Raises BadAddress for credentials that can't be read."""
    if isinstance(place, Path):
        return DirectoryStorage(place)
    if isinstance(place, RestAddress):
        from novacron.backup.rest import RestStorage  # as below

        return RestStorage(place)
    from novacron.backup.s3 import S3Storage  # brings a library that only object storage needs

    return S3Storage(place)
