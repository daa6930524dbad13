"""From where in a repository the disk of a VM comes."""

from __future__ import annotations

import msgspec

from novacron.model.encryption import KeyId


class BackupSource(msgspec.Struct, frozen=True):
    """A backup of which the disk of a VM has yet to be made."""

    repository: str
    key: KeyId
    """Opens the repository."""
    snapshot: str
    """Id of the snapshot in it."""
