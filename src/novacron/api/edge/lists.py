"""Answers to requests for lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from litestar import Response
from litestar.enums import MediaType
from litestar.params import QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.read_model import paging, response_cache
from novacron.api.read_model.indexes import Condition
from novacron.api.read_model.paging import FIELDS, Paging, Query, Selection
from novacron.model import limits, metadata
from novacron.model.errors import InvalidInput
from novacron.model.metadata import wanted_tags

Tag = Annotated[
    str | None, QueryParameter(description="only objects with this tag, or with all of these tags, separated by commas")
]
ABOUT_FIELDS = "only these fields, like id,name,status.state; others are omitted"


async def paging_of(
    limit: Annotated[int, QueryParameter(ge=1, le=limits.PAGE_SIZE_MAX, description="objects per page")]
    = limits.PAGE_SIZE_DEFAULT,
    cursor: Annotated[str | None, QueryParameter(description="`next` of the previous page")] = None,
    sort: Annotated[str | None, QueryParameter(description="a field, like created_at; -created_at: descending")] = None,
    fields: Annotated[str | None, QueryParameter(description=ABOUT_FIELDS)] = None,
    tag: Tag = None,
) -> Paging:  # fmt: skip
    """Return the parameters that every list takes. Raises InvalidInput."""
    if fields is not None and not FIELDS.match(fields):
        raise InvalidInput(f"{fields!r} are not fields", field="fields", hint="write them like id,name,status.state")
    return Paging(limit, cursor, sort, None if fields is None else tuple(fields.split(",")), wanted_tags(tag))


def where(values: Mapping[str, object]) -> tuple[Condition, ...]:
    """Return a condition for each field that has a value: ``where({"node": "a", "phase": None})``."""
    return tuple(((field, value),) for field, value in values.items() if value is not None)


def of_vm(vm: str | None) -> tuple[Condition, ...]:
    """Return the condition for objects that belong to a VM, which is given by id or name; None: to any."""
    return () if vm is None else ((("vm", vm), ("vm_name", vm)),)


def answer(request: ApiRequest, page: Paging, query: Query) -> Response[Any]:
    """Answer with a page of the objects of a list that the caller may see; with ``keep``, that alone says which these
    are. Raises InvalidInput, NotFound."""
    selection = selected(request, page, query)
    body = paging.encode(selection, page.fields, services(request).cache.revision)
    if query.keep is None:
        request.scope.setdefault("state", {})[response_cache.DEPENDENCY] = selection.dependency
    return Response(body, media_type=MediaType.JSON, headers={"Cache-Control": "no-cache"})


def selected(request: ApiRequest, page: Paging, query: Query) -> Selection:
    """Return a page of the objects of a list that the caller may see; with ``keep``, that alone says which these are.

    Raises InvalidInput, NotFound.
    """
    if page.tags and query.kind not in metadata.KINDS:
        raise InvalidInput(f"a {query.kind} has no tags", field="tag", hint="leave it out")
    for tag in page.tags:
        query = _and(query, (("tags", tag),))
    if query.keep is None:
        visible = authorization.visible(request, query.kind)
        query = query if visible is None else _and(query, visible)
    return paging.select(services(request).cache, query, page)


def _and(query: Query, condition: Condition) -> Query:
    return msgspec.structs.replace(query, conditions=(*query.conditions, condition))
