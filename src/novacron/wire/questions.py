"""What a server asks a node: one struct per question, which declares its answer's type and time limit.

To add a question: a struct here, a handler in ``agent/control/queries.py``, and a call of ``ask``. An older agent
answers a question that it does not know with an error.
"""

from __future__ import annotations

import functools
import operator
from typing import Annotated, ClassVar, Generic, TypeVar, get_args

import msgspec

from novacron.model.backup import PRUNE_WORDS_MAX
from novacron.model.backup_files import BackupFileSystem, BackupListing, BackupPath, FileSystemName
from novacron.model.backup_source import RepositoryId, SnapshotId
from novacron.model.encryption import DataKey
from novacron.model.firmware_state import FirmwareState
from novacron.model.guest_command import FilePiece, GuestCommand, NewCommand

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)


class Answerable(msgspec.Struct, Generic[A_co], frozen=True):
    """Something that is answered once. ``A_co`` is the type of the answer."""


class Question(Answerable[A_co], frozen=True):
    """Base of all questions to a node."""

    time_limit_s: ClassVar[float] = 30.0
    """How long the server waits for the answer."""


class TakePiece(Question[int], frozen=True, tag=True):
    """Bytes of an upload that begin at ``offset``. The answer is how many bytes of the upload the node holds."""

    id: str
    offset: int
    data: bytes


class RemoveImage(Question[None], frozen=True, tag=True):
    """Remove an image of which no VM is made any more."""

    name: str
    digest: str


class ReadConsoleLog(Question[bytes], frozen=True, tag=True):
    """The end of what a VM printed on its serial line."""

    vm: str
    bytes_max: int


class TakeScreenshot(Question[bytes], frozen=True, tag=True):
    """What a VM's display shows. The answer is a PNG file."""

    vm: str


class StartGuestCommand(Question[int], frozen=True, tag=True):
    """Start a program in a VM's guest. The answer is its process id there. With a key that was there before: the one
    that was started then."""

    vm: str
    key: str
    command: NewCommand


class ReadGuestCommand(Question[GuestCommand], frozen=True, tag=True):
    """How a program in a VM's guest is, at the latest after ``wait_s``."""

    vm: str
    pid: int
    wait_s: float


class ReadGuestFile(Question[FilePiece], frozen=True, tag=True):
    """A piece of a file in a VM's guest."""

    vm: str
    path: str
    offset: int
    bytes_max: int


class WriteGuestFile(Question[int], frozen=True, tag=True):
    """Write a piece of a file in a VM's guest, the first one anew. The answer is how long the file is then."""

    vm: str
    path: str
    offset: int
    data: bytes


class ReadExport(Question[bytes], frozen=True, tag=True):
    """A piece of an export."""

    id: str
    offset: int
    bytes_max: int


class ReadFirmwareState(Question[FirmwareState], frozen=True, tag=True):
    """The state of the firmware and TPM of an exported VM."""

    id: str


class PruneState(msgspec.Struct, frozen=True):
    """How far the pruning of a repository is."""

    running: bool = False
    error: Annotated[str, msgspec.Meta(max_length=PRUNE_WORDS_MAX)] = ""
    freed: Annotated[str, msgspec.Meta(max_length=PRUNE_WORDS_MAX)] = ""
    """How much room restic says that it frees."""


class PruneRepository(Question[PruneState], frozen=True, tag=True):
    """Free the room of what was deleted from a repository of this node's. The answer is how far that is; asked again
    with the same ``request``, it is not begun anew."""

    repository: RepositoryId
    key: DataKey
    request: str
    project: str = ""
    """Whose it is: projects have their turns in rotation."""


class RepositoryBackup(msgspec.Struct, frozen=True):
    """A backup that is in a repository of this node's, and the keys that open it. Only to be kept in memory."""

    repository: RepositoryId
    snapshot: SnapshotId
    key: DataKey
    content_key: DataKey | None = None
    """With this key of its project its content is encrypted."""


class ListBackupFileSystems(Question[tuple[BackupFileSystem, ...]], frozen=True, tag=True):
    """The file systems on a backup's disk."""

    time_limit_s: ClassVar[float] = 90.0

    backup: RepositoryBackup


class ListBackupFiles(Question[BackupListing], frozen=True, tag=True):
    """A directory on a backup's disk."""

    time_limit_s: ClassVar[float] = 90.0

    backup: RepositoryBackup
    file_system: FileSystemName
    path: BackupPath


class ReadBackupFile(Question[FilePiece], frozen=True, tag=True):
    """A piece of a file on a backup's disk."""

    time_limit_s: ClassVar[float] = 90.0

    backup: RepositoryBackup
    file_system: FileSystemName
    path: BackupPath
    offset: int
    bytes_max: int


class ReadMetrics(Question[bytes], frozen=True, tag=True):
    """The metrics of the agent, its host and its VMs, in one of Prometheus' formats."""

    time_limit_s: ClassVar[float] = 8.0

    open_metrics: bool


class SetLogLevel(Question[None], frozen=True, tag=True):
    """Change the agent's log level until it ends."""

    level: str


ALL: tuple[type[Question[object]], ...] = tuple(Question.__subclasses__())

_decoder: msgspec.msgpack.Decoder[Question[object]] = msgspec.msgpack.Decoder(functools.reduce(operator.or_, ALL))


def decode(raw: bytes | msgspec.Raw) -> Question[object]:
    """Return the question that ``raw`` holds. Raises msgspec.DecodeError."""
    return _decoder.decode(raw)


def answer_type(asked: type[Answerable[A]]) -> type[A]:
    """Return the type of the answer, as its struct declares it."""
    (base,) = asked.__orig_bases__  # type: ignore[attr-defined] # each names its answer there
    declared: type[A] = get_args(base)[0]
    return declared
