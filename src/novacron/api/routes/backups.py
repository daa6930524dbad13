"""Routes for backups of VMs and their repositories: ``/api/v1/backups``, ``/api/v1/backup-repositories``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, replies
from novacron.api.read_model.indexes import Condition
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.api.routes import backup_files
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.backup import PRUNE_DAYS, Backup, BackupRepository, PruneDays
from novacron.model.backup_proof import ProofProbe
from novacron.model.errors import NotFound
from novacron.model.names import Name
from novacron.model.node import NodeName
from novacron.model.vm import BytesPerS, Power, Vm, check_name
from novacron.store import backup_proofs, backup_repositories, backups, project_keys
from novacron.store.database import Connection

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]


class CreateBackupRepository(msgspec.Struct, forbid_unknown_fields=True):
    """A new repository of the project's backups. Its key is made here."""

    name: Name
    prune_days: PruneDays | None = PRUNE_DAYS
    """The room of deleted backups is freed every so many days, on each node that has backups in it; null: never."""


class BackupRepositoryChanges(msgspec.Struct, forbid_unknown_fields=True):
    """What to change of a repository."""

    prune_days: PruneDays | None


class RepositoryPassword(msgspec.Struct):
    """What opens a repository, for restic and for other installations. Keep it as secret as the VMs."""

    password: str


class BackUpVm(msgspec.Struct, forbid_unknown_fields=True):
    """Into which repository, by name or id."""

    repository: str


class RestoreBackup(msgspec.Struct, forbid_unknown_fields=True):
    """The VM to make of a backup. ``node``: by default the one that made the backup. ``keep_macs``: give it the MAC
    addresses of the VM that was backed up, or (false) new ones; by default those that no other VM has. ``live``: it
    runs at once, and reads from the backup what its node does not have yet; ``bytes_per_s``: of a live restore, how
    much of the disk is fetched in a second beside what the guest reads."""

    name: Name
    node: NodeName | None = None
    power: Power = Power.RUNNING
    keep_macs: bool | None = None
    live: bool = False
    bytes_per_s: BytesPerS | None = None


@get("/", summary="List backup repositories by name")
async def list_backup_repositories(
    request: ApiRequest, paging: NamedDependency[Paging]
) -> Response[Page[BackupRepository]]:
    return lists.answer(request, paging, Query("backup-repository"))


@get("/{ref:str}", summary="Show a backup repository by id or name")
async def show_backup_repository(
    request: ApiRequest, ref: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[BackupRepository]:
    return await replies.single(request, "backup-repository", ref, newer_than, timeout_s)


@post("/", summary="Create a backup repository", status_code=201)
async def create_backup_repository(
    request: ApiRequest, data: JSONBody[CreateBackupRepository]
) -> Response[BackupRepository]:
    check_name(data.name)
    project = authorization.project_for_new(request)
    key = await services(request).platform_keys.new()

    async def work(connection: Connection) -> BackupRepository:
        new = backup_repositories.NewRepository(project, data.name, key, data.prune_days)
        return await backup_repositories.create(connection, new, request.user.name)

    return await replies.write(
        request, work, status=201, location=lambda repository: f"/api/v1/backup-repositories/{repository.id}"
    )


@patch("/{ref:str}", summary="Change how often a backup repository is pruned", status_code=200)
async def configure_backup_repository(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[BackupRepositoryChanges]
) -> Response[BackupRepository]:
    id, if_match = await authorization.resolve(request, "backup-repository", ref), replies.if_match(request)

    async def work(connection: Connection) -> BackupRepository:
        return await backup_repositories.configure(connection, id, data.prune_days, if_match, request.user.name)

    return await replies.write(request, work)


@post("/{ref:str}/actions/prune", summary="Free the space of deleted backups now, on each node", status_code=202)
async def prune_backup_repository(request: ApiRequest, ref: FromPath[str]) -> Response[BackupRepository]:
    id = await authorization.resolve(request, "backup-repository", ref)

    async def work(connection: Connection) -> BackupRepository:
        return await backup_repositories.ask_to_prune(connection, id, request.user.name)

    return await replies.write(request, work, status=202)


@delete("/{ref:str}", summary="Delete a repository without backups; its directory on nodes is kept", status_code=200)
async def delete_backup_repository(request: ApiRequest, ref: FromPath[str]) -> Response[BackupRepository]:
    id = await authorization.resolve(request, "backup-repository", ref)

    async def work(connection: Connection) -> BackupRepository:
        return await backup_repositories.delete(connection, id, request.user.name)

    return await replies.write(request, work)


@get(
    "/{ref:str}/password",
    summary="Show the password of a repository, which is secret",
    opt=authorization.in_project(Right.MANAGE),
)
async def show_repository_password(request: ApiRequest, ref: FromPath[str]) -> RepositoryPassword:
    id = await authorization.resolve(request, "backup-repository", ref)
    async with services(request).database.connection() as connection:
        repository = await backup_repositories.get(connection, id)
        wrapped = await project_keys.wrapped(connection, [repository.key])
    if not wrapped:
        raise NotFound(f"the key of backup repository {repository.name} was erased")
    key = await services(request).platform_keys.unwrap(wrapped[0])
    return RepositoryPassword(key.passphrase().decode())


@post("/{ref:str}/actions/backup", summary="Back up the VM to a repository, as it is now", status_code=202)
async def back_up_vm(request: ApiRequest, ref: FromPath[str], data: JSONBody[BackUpVm]) -> Response[Backup]:
    id = await authorization.resolve(request, "vm", ref)
    repository = await authorization.resolve(request, "backup-repository", data.repository, "repository")

    async def work(connection: Connection) -> Backup:
        return await backups.create(connection, id, repository, request.user.name)

    return await replies.write(request, work, status=202, location=lambda backup: f"/api/v1/backups/{backup.id}")


@get("/", summary="List backups, newest first")
async def list_backups(
    request: ApiRequest,
    paging: NamedDependency[Paging],
    vm: FromQuery[str | None] = None,
    repository: FromQuery[str | None] = None,
    policy: FromQuery[str | None] = None,
) -> Response[Page[Backup]]:
    within: tuple[Condition, ...] = ()
    if policy is not None:
        within = ((("policy", await authorization.resolve(request, "backup-policy", policy, "policy")),),)
    if repository is not None:
        within = (*within, (("repository", repository), ("repository_name", repository)))
    return lists.answer(request, paging, Query("backup", (*lists.of_vm(vm), *within), newest_first=True))


@get("/{id:str}", summary="Show a backup")
async def show_backup(
    request: ApiRequest, id: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Backup]:
    return await replies.single(request, "backup", id, newer_than, timeout_s)


@delete("/{id:str}", summary="Delete a backup from its repository, or cancel it", status_code=202)
async def delete_backup(request: ApiRequest, id: FromPath[str]) -> Response[Backup]:
    id = await authorization.resolve(request, "backup", id)

    async def work(connection: Connection) -> Backup:
        return await backups.delete(connection, id, request.user.name)

    return await replies.write(request, work, status=202)


@post("/{id:str}/actions/verify", summary="Verify a backup by reading it back completely", status_code=202)
async def verify_backup(request: ApiRequest, id: FromPath[str]) -> Response[Backup]:
    id = await authorization.resolve(request, "backup", id)

    async def work(connection: Connection) -> Backup:
        return await backups.verify(connection, id, request.user.name)

    return await replies.write(request, work, status=202)


@post("/{id:str}/actions/prove", summary="Prove a backup by starting a VM from it", status_code=202)
async def prove_backup(request: ApiRequest, id: FromPath[str], data: JSONBody[ProofProbe]) -> Response[Backup]:
    id = await authorization.resolve(request, "backup", id)

    async def work(connection: Connection) -> Backup:
        return await backup_proofs.ask(connection, id, data, request.user.name)

    return await replies.write(request, work, status=202)


@get(
    "/{id:str}/picture",
    summary="Show the screen of the VM that proved a backup, as PNG",
    media_type="image/png",
    opt=authorization.in_project(Right.CONSOLE),
)
async def show_backup_picture(request: ApiRequest, id: FromPath[str]) -> Response[bytes]:
    id = await authorization.resolve(request, "backup", id)
    async with services(request).database.connection() as connection:
        png = await backup_proofs.picture(connection, id)
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return Response(png, media_type="image/png", headers=headers)


@post("/{id:str}/actions/restore", summary="Create a VM from a backup", status_code=201)
async def restore_backup(request: ApiRequest, id: FromPath[str], data: JSONBody[RestoreBackup]) -> Response[Vm]:
    check_name(data.name)
    id = await authorization.resolve(request, "backup", id)
    asked = backups.NewRestore(data.name, {"power": data.power}, data.node, keep_macs=data.keep_macs, live=data.live,
                                bytes_per_s=data.bytes_per_s)  # fmt: skip

    async def work(connection: Connection) -> Vm:
        return await backups.restore(connection, id, asked, request.user.name)

    return await replies.write(request, work, status=201, location=lambda vm: f"/api/v1/vms/{vm.id}")


@post(
    "/{id:str}/actions/replace",
    summary="Replace the disk of a backup's VM, which must be off, with the backup",
    status_code=202,
)
async def replace_with_backup(request: ApiRequest, id: FromPath[str]) -> Response[Vm]:
    id = await authorization.resolve(request, "backup", id)

    async def work(connection: Connection) -> Vm:
        return await backups.replace(connection, id, request.user.name)

    return await replies.write(request, work, status=202, location=lambda vm: f"/api/v1/vms/{vm.id}")


repositories = Router(
    "/backup-repositories",
    route_handlers=[
        list_backup_repositories, show_backup_repository, create_backup_repository, configure_backup_repository,
        prune_backup_repository, delete_backup_repository, show_repository_password,
    ],
    tags=["backups"],
    opt=authorization.in_project(),
)  # fmt: skip
router = Router(
    "/backups",
    route_handlers=[
        list_backups, show_backup, delete_backup, verify_backup, prove_backup, show_backup_picture, restore_backup,
        replace_with_backup, *backup_files.ROUTES,
    ],
    tags=["backups"],
    opt=authorization.in_project(),
)  # fmt: skip
