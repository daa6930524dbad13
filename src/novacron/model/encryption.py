"""Encryption at rest: the keys of projects, and what became of one that was erased."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

SECRET_BYTES = 32
KeyId = Annotated[str, Meta(pattern=r"^(key-[0-9a-f]{16})?\Z")]
"""Id of a project's key; empty: no encryption."""


class DataKey(msgspec.Struct, frozen=True):
    """A project's key in the clear, as a node gets it for as long as it needs it. It is never written to a disk."""

    id: str
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]

    def __repr__(self) -> str:
        return f"DataKey({self.id!r})"

    def passphrase(self) -> bytes:
        """Return what opens the project's LUKS volumes: the secret in hexadecimal digits."""
        return self.secret.hex().encode()

    def derive(self, purpose: str) -> bytes:
        """Return a key of 32 bytes for something that LUKS does not encrypt."""
        return hmac.digest(self.secret, purpose.encode(), hashlib.sha256)


class SealedText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text that is encrypted with a project's key."""

    key: KeyId
    data: bytes


class WrappedKey(msgspec.Struct, frozen=True):
    """A project's key as the database keeps it: encrypted by the platform key ``wrapped_by``."""

    id: str
    wrapped: bytes
    wrapped_by: str


class ErasedKey(msgspec.Struct, frozen=True):
    """The proof of an erasure: whose key was destroyed, when, and what can't be read any more."""

    id: str
    """The key's."""
    project: str
    erased_at: datetime
    vms: tuple[str, ...]
    """Names of the VMs whose disks, or whose images, were encrypted with it."""
    volumes: tuple[str, ...]
    images: tuple[str, ...]
    successor: str | None
    """The key of what the project creates from now on; None: it does not encrypt."""
    revision: int
    backups: tuple[str, ...] = ()
    """Ids of the backups that were encrypted with it."""


class PlatformKey(msgspec.Struct, frozen=True):
    """The platform key that a server wraps projects' keys with."""

    id: str
    """Tells it from others; nothing of the key can be learned from it."""
    keys: dict[str, int]
    """How many projects' keys are wrapped by each platform key."""
    revision: int
