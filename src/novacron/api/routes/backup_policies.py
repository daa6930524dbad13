"""Routes for what VMs are backed up when: ``/api/v1/backup-policies``."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest
from novacron.api.edge import lists, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model import limits
from novacron.model.backup_policy import BackupPolicy, BackupPolicyChanges, BackupPolicySpec
from novacron.model.errors import InvalidInput
from novacron.model.names import Name
from novacron.model.vm import check_name
from novacron.store import backup_policies
from novacron.store.backup_policies import NewPolicy
from novacron.store.database import Connection

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]


class CreateBackupPolicy(BackupPolicySpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new policy of the project. Repository and VMs are given by name or id."""

    name: Name


async def _vm_ids(request: ApiRequest, refs: tuple[str, ...]) -> tuple[str, ...]:
    """Return the ids of VMs that are given by name or id, each once. Raises NotFound."""
    return tuple(dict.fromkeys([await authorization.resolve(request, "vm", ref, "vms") for ref in refs]))


@get("/", summary="List backup policies by name")
async def list_backup_policies(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[BackupPolicy]]:
    return lists.answer(request, paging, Query("backup-policy"))


@get("/{ref:str}", summary="Show a backup policy by id or name")
async def show_backup_policy(
    request: ApiRequest, ref: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[BackupPolicy]:
    return await replies.single(request, "backup-policy", ref, newer_than, timeout_s)


@post("/", summary="Create a backup policy: which VMs to back up, and when", status_code=201)
async def create_backup_policy(request: ApiRequest, data: JSONBody[CreateBackupPolicy]) -> Response[BackupPolicy]:
    check_name(data.name)
    project = authorization.project_for_new(request)
    fields = {name: getattr(data, name) for name in BackupPolicySpec.__struct_fields__}
    fields["repository"] = await authorization.resolve(request, "backup-repository", data.repository, "repository")
    fields["vms"] = await _vm_ids(request, data.vms)
    new = NewPolicy(project, data.name, BackupPolicySpec(**fields))

    async def work(connection: Connection) -> BackupPolicy:
        return await backup_policies.create(connection, new, request.user.name)

    return await replies.write(
        request, work, status=201, location=lambda policy: f"/api/v1/backup-policies/{policy.id}"
    )


@patch("/{ref:str}", summary="Change a backup policy", status_code=200)
async def configure_backup_policy(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[BackupPolicyChanges]
) -> Response[BackupPolicy]:
    id = await authorization.resolve(request, "backup-policy", ref)
    changes, if_match = data.given(), replies.if_match(request)
    if not changes:
        raise InvalidInput("the request changes nothing", hint="the fields and their rules are in /schema")
    if "repository" in changes:
        changes["repository"] = await authorization.resolve(
            request, "backup-repository", changes["repository"], "repository"
        )
    if "vms" in changes:
        changes["vms"] = await _vm_ids(request, changes["vms"])

    async def work(connection: Connection) -> BackupPolicy:
        return await backup_policies.configure(connection, id, changes, if_match, request.user.name)

    return await replies.write(request, work)


@delete("/{ref:str}", summary="Delete a backup policy; its backups are kept", status_code=200)
async def delete_backup_policy(request: ApiRequest, ref: FromPath[str]) -> Response[BackupPolicy]:
    id = await authorization.resolve(request, "backup-policy", ref)

    async def work(connection: Connection) -> BackupPolicy:
        return await backup_policies.delete(connection, id, request.user.name)

    return await replies.write(request, work)


@post("/{ref:str}/actions/run", summary="Back up all VMs of a policy now", status_code=202)
async def run_backup_policy(request: ApiRequest, ref: FromPath[str]) -> Response[BackupPolicy]:
    id = await authorization.resolve(request, "backup-policy", ref)

    async def work(connection: Connection) -> BackupPolicy:
        return await backup_policies.run(connection, id, request.user.name)

    return await replies.write(request, work, status=202)


router = Router(
    "/backup-policies",
    route_handlers=[
        list_backup_policies, show_backup_policy, create_backup_policy, configure_backup_policy, delete_backup_policy,
        run_backup_policy,
    ],
    tags=["backups"],
    opt=authorization.in_project(),
)  # fmt: skip
