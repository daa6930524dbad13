"""What is on the disk in a backup, as a program reads it that may be lied to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits

FileSystemName = Annotated[
    str,
    Meta(
        max_length=256,
        pattern=r"^(disk|(msdos|gpt|sun|bsd|apple|sunpc|dfly)[0-9]{1,3}(,[a-z]{2,5}[0-9]{1,3})?|(lvm|md)/[\w+./-]{1,200})\Z",
    ),
]
"""The whole disk, a partition by its table and number, or a volume of LVM or RAID."""
BackupPath = Annotated[str, Meta(min_length=1, max_length=limits.GUEST_PATH_LENGTH_MAX, pattern=r"^/[^\x00-\x1f]*\Z")]
"""From the root of its file system on."""


class BackupFileSystem(msgspec.Struct, frozen=True):
    """A file system on a backup's disk."""

    name: str
    """``disk``, ``gpt2`` or ``msdos1``, ``lvm/GROUP-VOLUME``."""
    kind: str
    """What it is, in the words of the program that reads it: ``ext*``, ``xfs``, ``btrfs``, ``ntfs``."""
    label: str = ""
    uuid: str = ""
    size_bytes: int = 0


class BackupEntry(msgspec.Struct, frozen=True):
    """An entry of a directory in a backup. Links are shown as what they lead to."""

    name: str
    is_directory: bool
    size_bytes: int = 0
    modified_at: datetime | None = None


class BackupListing(msgspec.Struct, frozen=True):
    """A directory in a backup."""

    file_system: str
    path: str
    entries: tuple[BackupEntry, ...]
    truncated: bool = False
    """It has more entries."""
