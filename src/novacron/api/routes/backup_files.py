"""Directories and files in backups, as the backup's node reads them out of its repository."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from litestar import get
from litestar.params import FromPath, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.api.edge.pieces import RECORDED, AskedPiece
from novacron.api.edge.slots import Full, SlotLimits, Slots
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.backup import Backup, BackupPhase
from novacron.model.backup_files import BackupFileSystem, BackupListing, BackupPath, FileSystemName
from novacron.model.errors import IllegalState, InvalidInput, NotFound, TooManyRequests
from novacron.model.guest_command import FilePiece
from novacron.store import backup_keys, backup_repositories, backups, project_keys
from novacron.wire.questions import ListBackupFiles, ListBackupFileSystems, ReadBackupFile, RepositoryBackup

AT_ONCE_MAX = 4
"""Requests of one project to one node: each may have to fetch from the repository."""
WORKING = Slots(SlotLimits(10_000, AT_ONCE_MAX, 0))
NO_ADDRESS = ""
READABLE = (BackupPhase.KEPT, BackupPhase.VERIFYING, BackupPhase.DAMAGED)

System = Annotated[FileSystemName, QueryParameter(description="file system, as listed, for example gpt2")]
Path = Annotated[BackupPath, QueryParameter(description="path from the root of the file system")]
Offset = Annotated[
    int, QueryParameter(ge=0, le=limits.GUEST_FILE_BYTES_MAX, description="where the piece starts, in bytes")
]


def _check_place(file_system: str, path: str) -> None:
    """Raise InvalidInput for what can be no file system or no path."""
    for field, value, kind, words in (
        ("file_system", file_system, FileSystemName, "the name of a file system, for example gpt2"),
        ("path", path, BackupPath, "an absolute path without control characters"),
    ):
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            raise InvalidInput(f"{value[:80]!r} is not {words}", field=field) from None


async def _readable(request: ApiRequest, backup: Backup) -> RepositoryBackup:
    """Return where a backup is, and its keys. Raises NotFound, IllegalState."""
    if backup.phase not in READABLE:
        raise IllegalState(
            f"backup {backup.id} of VM {backup.vm_name} is {backup.phase}: it can't be read",
            hint=f"see: novacron backup show {backup.id}",
        )
    async with services(request).database.connection() as connection:
        await backup_keys.check_readable(connection, backup)
        repository = await backup_repositories.get(connection, backup.repository)
        ids = [repository.key, *([backup.encryption_key] if backup.encryption_key else [])]
        wrapped = await project_keys.wrapped(connection, ids)
    keys = {key.id: await services(request).platform_keys.unwrap(key) for key in wrapped}
    if repository.key not in keys:
        raise NotFound(f"the key of backup repository {repository.name} was erased")
    content_key = keys.get(backup.encryption_key)
    return RepositoryBackup(repository.id, backup.result.snapshot, keys[repository.key], content_key)


@contextlib.asynccontextmanager
async def _opened(request: ApiRequest, id: str, piece: AskedPiece) -> AsyncIterator[tuple[str, RepositoryBackup]]:
    """Give the node of a backup, and what opens it, once the audit log says that the caller was there.

    Raises NotFound, Forbidden, IllegalState, TooManyRequests.
    """
    id = await authorization.resolve(request, "backup", id)
    async with services(request).database.connection() as connection:
        backup = await backups.get(connection, id)
    kept = await _readable(request, backup)
    if RECORDED.begins(*piece):
        async with replies.change(request):
            pass
        RECORDED.note(piece.key)
    try:
        with WORKING.taken_for(f"{backup.project} on {backup.node}", NO_ADDRESS):
            yield backup.node, kept
    except Full:
        raise TooManyRequests(
            f"project {backup.project} is already reading {AT_ONCE_MAX} files of backups on node {backup.node}",
            hint="try again when one of them has been read",
        ) from None


def _listing(request: ApiRequest, id: str) -> AskedPiece:
    """Lists of one backup: names say something of a guest, too, but thousands of directories are read in a row."""
    return AskedPiece((request.user.id, "names in backup", id), first=False)


@get("/{id:str}/file-systems", summary="List the file systems in a backup", opt=authorization.in_project(Right.WRITE))
async def list_backup_file_systems(request: ApiRequest, id: FromPath[str]) -> list[BackupFileSystem]:
    async with _opened(request, id, _listing(request, id)) as (node, backup):
        return list(await services(request).agents.ask(node, ListBackupFileSystems(backup)))


@get("/{id:str}/files", summary="List a directory in a backup", opt=authorization.in_project(Right.WRITE))
async def list_backup_files(
    request: ApiRequest, id: FromPath[str], file_system: System, path: Path = "/"
) -> BackupListing:
    _check_place(file_system, path)
    async with _opened(request, id, _listing(request, id)) as (node, backup):
        return await services(request).agents.ask(node, ListBackupFiles(backup, file_system, path))


@get("/{id:str}/file", summary="Read a piece of a file in a backup", opt=authorization.in_project(Right.WRITE))
async def read_backup_file(
    request: ApiRequest, id: FromPath[str], file_system: System, path: Path, offset: Offset = 0
) -> FilePiece:
    _check_place(file_system, path)
    piece = AskedPiece((request.user.id, "backup", id, file_system, path), first=offset == 0)
    async with _opened(request, id, piece) as (node, backup):
        question = ReadBackupFile(backup, file_system, path, offset, limits.GUEST_PIECE_BYTES_MAX)
        return await services(request).agents.ask(node, question)


ROUTES = [list_backup_file_systems, list_backup_files, read_backup_file]
