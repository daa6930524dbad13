"""Request bodies, validated strictly before the route runs, so that an error names the field."""

from __future__ import annotations

import re

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException

from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import parameters, problems, text
from novacron.api.edge.words import in_words
from novacron.model import limits
from novacron.model.errors import MALFORMED, InvalidInput, Unavailable
from novacron.store import feed

PARAMETERS = "parameters"
"""Where the application keeps what its routes know."""
REACH_S = 5.0
FIELD = re.compile(r"(?: - at `\$\.?|field `)([^`]*)`")


async def check(request: ApiRequest) -> Response[None] | None:
    """Handle ``?min_revision=`` and OPTIONS, refuse text that no field can hold and unknown parameters, and validate
    the body against the type of the route's ``data``, without converting types. Raises InvalidInput, Unavailable.

    Runs before the framework's own parser, which would accept "128" for 128.
    """
    if request.method == "OPTIONS":
        return Response(None, status_code=204, headers={"Allow": ", ".join(problems.allowed(request))})
    text.check_address(request.url.path, request.scope["query_string"])
    if request.query_params:
        _check_parameters(request)
    await _reach(request)
    field = request.route_handler.parsed_data_field
    if field is None:
        return None
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.REQUEST_BODY_BYTES_MAX:
        raise HTTPException(
            status_code=413, detail=f"a body of {length} bytes; at most {limits.REQUEST_BODY_BYTES_MAX} are allowed"
        )
    raw = await request.body()
    if not raw and field.is_optional:
        return None
    try:
        msgspec.json.decode(raw, type=field.annotation)
    except msgspec.ValidationError as error:
        match = FIELD.search(str(error))
        name = match[1].partition("[")[0] if match else None
        raise InvalidInput(
            in_words(str(error).partition(" - at ")[0]),
            field=name or None,
            hint="the fields and their rules are in /schema",
        ) from None
    except MALFORMED as error:
        raise InvalidInput(f"the body is not JSON: {error}", hint="send a JSON object") from None
    text.check_body(raw)
    return None


def _check_parameters(request: ApiRequest) -> None:
    """Raises InvalidInput."""
    state = request.app.state
    if PARAMETERS not in state:
        state[PARAMETERS] = parameters.of_handlers(request.app)
    known = state[PARAMETERS].get(request.route_handler)
    if known is not None:
        parameters.check(request.query_params, known)


async def _reach(request: ApiRequest) -> None:
    """Wait until this replica has the revision of ``?min_revision=``. Raises InvalidInput, Unavailable."""
    asked, hint = request.query_params.get("min_revision"), "send the revision of an earlier response"
    if asked is None:
        return
    revision, cache = text.natural(asked, "min_revision", hint=hint), services(request).cache
    if not await cache.reached(revision, REACH_S):
        async with services(request).database.connection() as connection:
            newest = await feed.newest(connection)
        if revision > newest:
            raise InvalidInput(f"there is no revision {revision}", field="min_revision", hint=hint)
        raise Unavailable(f"this server is at revision {cache.revision}, not {revision}", hint="try again")
