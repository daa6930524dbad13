"""Routes for the platform's own keys, ``/api/v1/keys``, and for the CAs to trust, ``/api/v1/authority``."""

from __future__ import annotations

import asyncio

import msgspec
from litestar import Router, get, post
from litestar.params import FromPath, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.model.access import Right
from novacron.model.errors import NotFound
from novacron.model.key import KeyName, ServerKey
from novacron.store import key_rotation


class Keys(msgspec.Struct):
    """All keys of the platform."""

    items: list[ServerKey]


class FinishKey(msgspec.Struct, forbid_unknown_fields=True):
    """How a key's rotation is finished."""

    force: bool = False
    """Finish although something needs the generation before."""


class TrustedAuthorities(msgspec.Struct):
    """The CAs to trust: several while one takes another's place."""

    ca: str
    """Their certificates (PEM), first the one that issues."""


def _name(text: str) -> KeyName:
    try:
        return KeyName(text)
    except ValueError:
        raise NotFound(f"there is no key {text!r}", hint=f"the keys are {', '.join(KeyName)}") from None


@get("/keys", summary="List the platform's keys, and the progress of their rotations", opt=authorization.in_fleet())
async def list_keys(request: ApiRequest) -> Keys:
    async with services(request).database.connection() as connection:
        return Keys(await key_rotation.list_all(connection))


@post("/keys/{name:str}/actions/rotate", summary="Start the rotation of a key", status_code=200,
      opt=authorization.in_fleet(Right.MANAGE))  # fmt: skip
async def rotate_key(request: ApiRequest, name: FromPath[str]) -> ServerKey:
    context, key = services(request), _name(name)

    async with replies.change(request, _Subject(key)) as connection:
        return await key_rotation.rotate(
            connection, key, lambda generation: context.new_key(key, generation), request.user.name
        )


@post("/keys/{name:str}/actions/finish", summary="Finish the rotation of a key: accept only its newest generation",
      status_code=200, opt=authorization.in_fleet(Right.MANAGE))  # fmt: skip
async def finish_key(request: ApiRequest, name: FromPath[str], data: JSONBody[FinishKey]) -> ServerKey:
    key = _name(name)
    async with replies.change(request, _Subject(key)) as connection:
        return await key_rotation.finish(connection, key, request.user.name, force=data.force)


class _Subject(msgspec.Struct, frozen=True):
    """A key, as the audit log names it."""

    name: str

    @property
    def id(self) -> str:
        return self.name


@get("/authority", summary="Show the certificate authorities to trust", opt=authorization.SELF)
async def show_authority(request: ApiRequest) -> TrustedAuthorities:
    return TrustedAuthorities(await asyncio.to_thread(services(request).trust))


router = Router("/", route_handlers=[list_keys, rotate_key, finish_key, show_authority], tags=["keys"])
