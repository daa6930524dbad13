"""The application: all routes, with authentication, limits and problem documents around them."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Response, Router, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from novacron import __version__
from novacron.api import (
    bodies,
    console,
    drains,
    events,
    exports,
    health,
    images,
    imports,
    links,
    metrics,
    migrations,
    networks,
    nodes,
    placements,
    problems,
    rebalancing,
    snapshots,
    tokens,
    vms,
    volumes,
)
from novacron.api.auth import TokenAuthentication
from novacron.api.context import ApiRequest, Services
from novacron.model import limits
from novacron.model.errors import NovaError


@get("/schema", include_in_schema=False)
async def schema(request: ApiRequest) -> Response[dict[str, Any]]:
    """Answer with the OpenAPI 3.1 document."""
    return Response(request.app.openapi_schema.to_schema(), media_type="application/json")


def create_app(services: Services) -> Litestar:
    """Return the ASGI application that works with ``services``."""
    api = Router(
        "/api/v1",
        route_handlers=[
            placements.router,
            rebalancing.router,
            drains.router,
            networks.router,
            vms.router,
            nodes.router,
            migrations.router,
            links.router,
            images.router,
            imports.router,
            snapshots.show_snapshot,
            volumes.router,
            volumes.pools,
            exports.router,
            events.router,
            tokens.router,
        ],
    )
    return Litestar(
        route_handlers=[api, nodes.join, console.console, health.healthz, health.readyz, metrics.metrics, schema],
        middleware=[DefineMiddleware(TokenAuthentication, exclude_from_auth_key="exclude_from_auth")],
        exception_handlers={
            NovaError: problems.on_nova_error,
            HTTPException: problems.on_http_error,
            Exception: problems.on_any_error,
        },
        before_request=bodies.check,
        request_max_body_size=limits.REQUEST_BODY_BYTES_MAX,
        state=State({"services": services}),
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="NovaCron",
            version=__version__,
            path="/schema/ui",
            render_plugins=[],
            components=Components(
                security_schemes={"token": SecurityScheme(type="http", scheme="bearer")},
            ),
            security=[{"token": []}],
        ),
    )
