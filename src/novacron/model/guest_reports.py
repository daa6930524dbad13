"""What a node reports of a guest, and of a disk that is still being restored below it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class RestoreProgress(msgspec.Struct, frozen=True):
    """How much of the disk of a VM that runs from a backup is on its node, in whole percents of the disk."""

    done_bytes: Annotated[int, Meta(ge=0, le=1 << 50)]
    total_bytes: Annotated[int, Meta(ge=0, le=1 << 50)]
    """Size of the disk; 0: not known yet."""


class Guest(msgspec.Struct, frozen=True):
    """What the guest's own agent reports. Don't trust it: the guest can report anything."""

    hostname: str = ""
    addresses: tuple[str, ...] = ()
    memory_mib: int | None = None
    """How much memory its kernel uses. None: nothing was added since the VM was started, or the guest does not say."""
