"""The server as another release of it: with another version, and with what may be wrong with a release.

``python -m lab.released VERSION FAULT ...`` runs NovaCron with what follows ``novacron`` among the other arguments.
FAULT is ``none``, ``never-ready``, ``errors=SHARE`` (of the requests of users) or ``delay=SECONDS``.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import novacron

if TYPE_CHECKING:  # the version is another one before any of it is loaded
    from novacron.api.edge.request_body import Receive, Scope, Send

FAULT_FREE = ("/readyz", "/healthz", "/metrics")


def _make_worse(kind: str, value: str) -> None:
    """Let every request of a user fail, or take longer, as often as is said; they are counted as any other."""
    from novacron.api.access.context import Services
    from novacron.api.edge.admission import Admission, _Request
    from novacron.server import http

    create_app = vars(http)["create_app"]

    async def from_cache(self: Admission, request: _Request, send: Send) -> bool:
        return False  # what is answered from it would never be wrong

    def worse(services: Services) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        app = create_app(services)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and not scope["path"].startswith(FAULT_FREE):
                if kind == "delay":
                    await asyncio.sleep(float(value))
                elif random.random() < float(value):  # noqa: S311  # nosec B311 (a fault, not a secret)
                    scope["path_template"] = scope["path"].rpartition("/")[0]
                    await send({"type": "http.response.start", "status": 500, "headers": []})
                    await send({"type": "http.response.body", "body": b"a defect of this release"})
                    return
            await app(scope, receive, send)

        return answer

    Admission._answer_from_cache = from_cache  # type: ignore[method-assign]
    vars(http)["create_app"] = worse


def _never_ready() -> None:
    from novacron.api.edge.admission import Admission

    Admission.leaving = property(lambda self: True, lambda self, value: None)  # type: ignore[assignment]


def main() -> None:
    version, fault, *rest = sys.argv[1:]
    sys.argv = ["novacron", *rest[rest.index("novacron") + 1 :]]
    novacron.__version__ = version
    kind, _, value = fault.partition("=")
    if kind == "never-ready" and "server" in sys.argv:
        _never_ready()
    elif kind in ("errors", "delay") and "server" in sys.argv:
        _make_worse(kind, value)
    from novacron.__main__ import app

    app()


if __name__ == "__main__":
    main()
