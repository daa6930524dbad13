"""Query parameters: those that a route does not know are refused, as a filter with a typing error would show
everything."""

from __future__ import annotations

import difflib

from litestar import Litestar
from litestar.datastructures import MultiDict
from litestar.handlers import HTTPRouteHandler

from novacron.model.errors import InvalidInput

OF_WRITES = frozenset({"wait"})
DIRECT = {"list_events": frozenset({"after"})}
"""What routes read themselves."""
OPEN = frozenset({"oidc_callback"})
"""Routes to which strangers add parameters of their own: an identity provider's answer."""
NO_VALUE = frozenset({"", "null"})
"""What the framework takes for a parameter that was left out: a filter would then show everything."""
ALTERNATIVES_MAX = 12


def of_handlers(app: Litestar) -> dict[HTTPRouteHandler, frozenset[str]]:
    """Return which query parameters each route knows, but for those to which strangers add their own."""
    known = dict[HTTPRouteHandler, frozenset[str]]()
    for route in app.routes:
        for method, (handler, model) in getattr(route, "route_handler_map", {}).items():
            if isinstance(handler, HTTPRouteHandler) and handler.handler_name not in OPEN:
                names = frozenset(parameter.field_alias for parameter in model.expected_query_params)
                own = DIRECT.get(handler.handler_name, frozenset()) if method == "GET" else OF_WRITES
                known[handler] = names | own
    return known


def check(sent: MultiDict[str], known: frozenset[str]) -> None:
    """Raises InvalidInput naming a parameter that the route does not know, or that has no value, or two."""
    seen: set[str] = set()
    for name, value in sent.multi_items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            takes = "it takes: " + ", ".join(sorted(known)[:ALTERNATIVES_MAX]) if known else "it takes none"
            hint = f"did you mean {near[0]}?" if near else takes
            raise InvalidInput(f"unknown parameter {name!r}", field=name, hint=hint)
        if name in seen:
            raise InvalidInput("it is given more than once", field=name, hint="give it once")
        if value in NO_VALUE:
            raise InvalidInput("it has no value", field=name, hint="leave it out, or give it a value")
        seen.add(name)
