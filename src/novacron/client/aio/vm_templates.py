"""Calls about flavors and templates."""

from __future__ import annotations

from collections.abc import Mapping

from novacron.client.aio.connection import AsyncConnection
from novacron.client.protocol import Object, quoted, without_none


class AsyncTemplateCalls(AsyncConnection):
    """What new VMs begin with."""

    async def create_flavor(self, name: str, spec: Mapping[str, object], *, shared: bool = False) -> Object:
        """Create a flavor; ``spec`` as in ``POST /api/v1/flavors``, ``shared``: for all projects."""
        return await self._object("POST", "/api/v1/flavors", {"name": name, "spec": dict(spec), "shared": shared})

    async def configure_flavor(self, name: str, **changes: object) -> Object:
        """Change a flavor; fields as in ``PATCH /api/v1/flavors/{name}``."""
        return await self._object("PATCH", f"/api/v1/flavors/{quoted(name)}", changes)

    async def create_template(
        self, name: str, spec: Mapping[str, object] | None = None, *, vm: str | None = None, shared: bool = False
    ) -> Object:
        """Create a template, with a ``spec`` as in ``POST /api/v1/templates``, or like a ``vm``."""
        body = {"name": name, "shared": shared, **without_none({"spec": spec and dict(spec), "vm": vm})}
        return await self._object("POST", "/api/v1/templates", body)

    async def configure_template(self, name: str, **changes: object) -> Object:
        """Change a template; fields as in ``PATCH /api/v1/templates/{name}``."""
        return await self._object("PATCH", f"/api/v1/templates/{quoted(name)}", changes)
