"""The two routes that need no token: whether the process is alive, and whether it can serve."""

from __future__ import annotations

from litestar import Response, get

from novacron.api.access.context import ApiRequest, services
from novacron.model.errors import Unavailable


@get("/healthz", exclude_from_auth=True, include_in_schema=False, media_type="text/plain")
async def healthz() -> str:
    return "ok\n"


@get("/readyz", exclude_from_auth=True, include_in_schema=False, media_type="text/plain")
async def readyz(request: ApiRequest) -> Response[str]:
    """Say 200 also while only reads are served, from memory: elsewhere they would be refused. Not when the feed is well
    and this server alone has no other connections to the database: that has no end."""
    context, reasons = services(request), list[str]()
    if not context.cache.ready:
        reasons.append("the change feed is away: what is read may be old")
    try:
        await context.database.ping()
    except Unavailable as error:
        reasons.append(error.detail)
    if reasons:
        reads = not context.cache.ready and context.cache.answers()
        text = "".join(f"{'only reads' if reads else 'not ready'}: {reason}\n" for reason in reasons)
        return Response(text, status_code=200 if reads else 503, media_type="text/plain")
    return Response("ok\n", media_type="text/plain")
