"""From where in a repository the disk of a VM comes."""

from __future__ import annotations

from typing import Annotated

import msgspec

from novacron.model.encryption import KeyId

SnapshotId = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
"""Of a snapshot in a repository; empty: there is none yet."""
RepositoryId = Annotated[str, msgspec.Meta(pattern=r"^repo-[0-9a-f]{16}\Z")]


class BackupSource(msgspec.Struct, frozen=True):
    """A backup of which the disk of a VM has yet to be made."""

    repository: RepositoryId
    key: KeyId
    """Opens the repository; empty: ``sealed_key`` does."""
    snapshot: SnapshotId
    """Id of the snapshot in it."""
    content_key: KeyId = ""
    """With this key of a project the content is encrypted; empty: with none."""
    sealed_key: KeyId = ""
    """Opens the repository for a VM whose disk is encrypted: an agent that does not know this field would write the
    disk in the clear, and finds no key."""

    @property
    def opened_by(self) -> str:
        """Id of the key that opens the repository."""
        return self.key or self.sealed_key
