"""What can be wrong with a repository."""

from __future__ import annotations


class RepositoryError(Exception):
    """The repository can't be used as asked; the text says why, and what to do."""


class WrongKey(RepositoryError):
    """No key of the repository opens with this password."""


class Damaged(RepositoryError):
    """A file of the repository is not what was written: changed, cut short, or by something else."""


class DamagedBlobs(Damaged):
    """Blobs that can't be read back."""

    def __init__(self, text: str, packs: frozenset[bytes]) -> None:
        """``packs``: ids of the packs in which they stand."""
        super().__init__(text)
        self.packs = packs


class NotStored(RepositoryError):
    """A file or blob of the repository is not there."""


class NotAllowed(RepositoryError):
    """Who asks has no right to do that in the repository's storage."""


class Locked(RepositoryError):
    """Somebody else has the repository for themselves."""
