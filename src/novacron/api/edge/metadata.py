"""Changes of objects that have metadata: what of a request is about metadata, and what is the object's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from litestar import Response
from msgspec import UNSET

from novacron.api.access.context import ApiRequest
from novacron.api.edge import replies
from novacron.model.errors import InvalidInput
from novacron.store import metadata
from novacron.store.database import Connection
from novacron.store.feed import TABLES
from novacron.store.metadata import MetadataChange as MetadataChange
from novacron.store.metadata import ObjectRef as ObjectRef

D = TypeVar("D", bound=metadata.Described)


class Changes(NamedTuple):
    """What a request changes of an object."""

    own: dict[str, Any]
    metadata: dict[str, Any]

    @classmethod
    def of(cls, data: msgspec.Struct, field: str | None = None) -> Changes:
        """Return what the body of a request changes. Raises InvalidInput when that is nothing."""
        given = {name: value for name in data.__struct_fields__ if (value := getattr(data, name)) is not UNSET}
        if not given:
            hint = "the fields and their rules are in /schema"
            raise InvalidInput("the request changes nothing", field=field, hint=hint)
        return cls(*metadata.split(given))


async def apply(
    connection: Connection,
    target: ObjectRef,
    type_: type[D],
    wanted: MetadataChange,
    configure: Callable[[], Awaitable[D]] | None,
) -> D:
    """Change an object's own fields with ``configure``, if any of them change; then its metadata. Return the object."""
    if configure is None:
        return await metadata.change(connection, target, type_, wanted)
    await metadata.check_revision(connection, target, wanted.if_match)
    configured = await configure()
    if not wanted.changes:
        return configured
    key = getattr(configured, TABLES[target.kind][1])  # a new name may be its key
    return await metadata.change(connection, target._replace(key=key), type_, wanted._replace(if_match=None))


async def write(
    request: ApiRequest, target: ObjectRef, type_: type[D], data: msgspec.Struct, revision: int | None
) -> Response[Any]:
    """Change metadata of an object that has nothing else that can change."""
    changes, actor = Changes.of(data), request.user.name

    async def work(connection: Connection) -> D:
        return await metadata.change(connection, target, type_, MetadataChange(changes.metadata, actor, revision))

    return await replies.write(request, work)
