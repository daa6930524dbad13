"""The two routes that need no token: is the process alive, and can it serve."""

from __future__ import annotations

from litestar import Response, get

from novacron.api.context import ApiRequest, services
from novacron.model.errors import Unavailable


@get("/healthz", exclude_from_auth=True, include_in_schema=False, media_type="text/plain")
async def healthz() -> str:
    return "ok\n"


@get("/readyz", exclude_from_auth=True, include_in_schema=False, media_type="text/plain")
async def readyz(request: ApiRequest) -> Response[str]:
    context = services(request)
    try:
        if not context.cache.ready:
            raise Unavailable("the change feed is away")
        await context.database.ping()
    except Unavailable as error:
        return Response(f"not ready: {error.detail}\n", status_code=503, media_type="text/plain")
    return Response("ok\n", media_type="text/plain")
