"""The route that Prometheus asks: ``/metrics``, with a token like all others."""

from __future__ import annotations

from litestar import Response, get

from novacron.api import scopes
from novacron.api.context import ApiRequest, services
from novacron.telemetry.metrics import CONTENT_TYPE


@get(
    "/metrics",
    summary="What this server counts and measures, in Prometheus' text format",
    media_type="text/plain",
    opt=scopes.in_fleet(),
)
async def metrics(request: ApiRequest) -> Response[bytes]:
    return Response(services(request).metrics.render(), media_type=CONTENT_TYPE)
