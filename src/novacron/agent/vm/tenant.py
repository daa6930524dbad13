"""Whose pages a VM has: the project within which they may be shared, and the key of their digests."""

from __future__ import annotations

import msgspec

from novacron.wire import messages as wire


class Tenant(msgspec.Struct, frozen=True):
    """To whom pages belong: nothing is shared beyond a project, and its key makes their digests."""

    project: str
    key: bytes
    other_keys: tuple[bytes, ...] = ()
    """With which pages may have been kept, too."""
    encrypted: bool = False
    """Nothing of them may be on this host's disks in the clear."""


def tenant_of(assignment: wire.Assignment) -> Tenant:
    """Return to whom the pages of a VM belong."""
    encrypted = bool(assignment.spec.encryption_key or any(volume.encryption_key for volume in assignment.volumes))
    return Tenant(assignment.project, assignment.page_key, assignment.other_page_keys, encrypted)
