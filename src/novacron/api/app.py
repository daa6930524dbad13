"""The application: all routes, with authentication, limits and problem documents around them."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Response, Router, get
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.params import QueryParameter

from novacron.api.access import authorization
from novacron.api.access.authentication import Authentication
from novacron.api.access.context import ApiRequest, Services
from novacron.api.edge import bodies, lists, openapi, problems
from novacron.api.routes import (
    audit,
    audit_chain,
    backup_policies,
    backups,
    batches,
    consoles,
    drains,
    drills,
    events,
    exports,
    forecasts,
    health,
    images,
    imports,
    invitations,
    keys,
    links,
    load_history,
    log_levels,
    metrics,
    migrations,
    network_encryption,
    networks,
    nodes,
    page_errors,
    placements,
    plans,
    platform_keys,
    project_moves,
    projects,
    rebalancing,
    replicas,
    second_factors,
    sessions,
    snapshots,
    tokens,
    unreconciled,
    users,
    vm_templates,
    vm_usage,
    vms,
    volumes,
    watch,
)
from novacron.model import limits
from novacron.model.errors import NovaError
from novacron.store.database import UNSTORABLE


@get("/schema", include_in_schema=False, opt=authorization.SELF)
async def schema(request: ApiRequest) -> Response[dict[str, Any]]:
    """Answer with the OpenAPI 3.1 document."""
    return Response(openapi.describe(request.app), media_type="application/json")


API = (
    placements.router,
    vm_templates.router,
    rebalancing.router,
    drains.router,
    drills.router,
    networks.router,
    network_encryption.router,
    batches.router,
    vms.router,
    vm_usage.router,
    load_history.of_vms,
    unreconciled.router,
    nodes.router,
    load_history.of_nodes,
    forecasts.nodes,
    forecasts.vms,
    forecasts.accuracy,
    forecasts.capacity_router,
    migrations.router,
    links.router,
    images.router,
    images.catalogue_router,
    project_moves.image_router,
    imports.router,
    snapshots.show_snapshot,
    volumes.router,
    volumes.pools,
    exports.router,
    backups.repositories,
    backups.router,
    replicas.router,
    plans.router,
    backup_policies.router,
    events.router,
    watch.router,
    tokens.router,
    projects.router,
    platform_keys.router,
    users.router,
    second_factors.router,
    invitations.router,
    audit.router,
    audit_chain.router,
    sessions.router,
    keys.router,
)
"""What is under ``/api/v1``."""
OUTSIDE = (
    nodes.join,
    consoles.console,
    health.healthz,
    health.readyz,
    metrics.metrics,
    metrics.targets,
    metrics.node_metrics,
    log_levels.show,
    log_levels.change,
    log_levels.change_node,
    page_errors.report_page_error,
    schema,
)
"""What is beside it."""
ABOUT_REVISION = "respond from a state of at least this revision; 503 if that takes more than a few seconds"


def _api() -> Router:
    return Router(
        "/api/v1",
        parameters={
            "project": authorization.PROJECT,
            "min_revision": QueryParameter(
                annotation=int | None, name="min_revision", required=False, description=ABOUT_REVISION
            ),
        },
        route_handlers=API,
    )


def create_app(services: Services) -> Litestar:
    """Return the ASGI application that works with ``services``."""
    return Litestar(
        route_handlers=[_api(), *OUTSIDE],
        middleware=[DefineMiddleware(Authentication, exclude_from_auth_key="exclude_from_auth")],
        exception_handlers={
            NovaError: problems.on_nova_error,
            HTTPException: problems.on_http_error,
            UNSTORABLE: problems.on_unstorable,
            Exception: problems.on_any_error,
        },
        before_request=bodies.check,
        guards=[authorization.guard],
        dependencies={"paging": Provide(lists.paging_of)},
        request_max_body_size=limits.REQUEST_BODY_BYTES_MAX,
        state=State({"services": services}),
        logging_config=None,
        openapi_config=openapi.config(),
    )
