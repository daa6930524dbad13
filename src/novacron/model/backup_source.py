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
    """Opens the repository."""
    snapshot: SnapshotId
    """Id of the snapshot in it."""
