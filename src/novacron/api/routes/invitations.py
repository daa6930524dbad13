"""Routes for invitations: ``/api/v1/invitations``. A role changes nothing for a user before they accept it, unless
whoever grants it manages that user."""

from __future__ import annotations

from litestar import Response, Router, delete, get, post
from litestar.params import FromPath

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.api.read_model.paging import Page
from novacron.model.access import Right, access
from novacron.model.errors import NotFound
from novacron.model.user import Grant, Invitation
from novacron.store import invitations, users
from novacron.store.database import Connection


def _none(id: str) -> NotFound:
    return NotFound(f"there is no invitation {id!r}", hint="see: novacron invitation list")


@get("/", summary="List open invitations: the caller's, and those to projects that the caller manages")
async def list_invitations(request: ApiRequest) -> Page[Invitation]:
    context, has = services(request), request.user.access
    everywhere = has.allows(Right.MANAGE, None)
    managed = [name for name in has.projects if has.allows(Right.MANAGE, name)]
    async with context.database.connection() as connection:
        items = await invitations.listed(connection, request.user.user, None if everywhere else managed)
    return Page[Invitation](items, None, context.cache.revision)


@post("/{id:str}/actions/accept", summary="Accept an invitation, and get its role", status_code=200)
async def accept(request: ApiRequest, id: FromPath[str]) -> Response[Grant]:
    id, callers = replies.check_ref("invitation", id), services(request).cache.callers

    async def work(connection: Connection) -> Grant:
        grant = await invitations.get(connection, id)
        offered = grant.invitation
        offer = access([(offered.project, offered.role)])
        if grant.user != request.user.user:
            raise _none(id)
        if not callers.access_of(grant.inviter).covers(offer):  # who invited may no longer grant the role
            raise _none(id)
        await invitations.delete(connection, id)
        return await users.grant(connection, request.user.user, offered.project, offered.role, request.user.name)

    return await replies.write(request, work)


@delete("/{id:str}", summary="Decline an invitation, or withdraw it", status_code=204)
async def delete_invitation(request: ApiRequest, id: FromPath[str]) -> None:
    id = replies.check_ref("invitation", id)
    async with replies.change(request) as connection:
        grant = await invitations.get(connection, id)
        managed = request.user.access.allows(Right.MANAGE, grant.invitation.project)
        if grant.user != request.user.user and not managed:
            raise _none(id)
        await invitations.delete(connection, id)


router = Router(
    "/invitations",
    route_handlers=[list_invitations, accept, delete_invitation],
    tags=["access"],
    opt=authorization.SELF,
)
