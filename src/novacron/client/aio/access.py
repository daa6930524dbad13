"""Calls about projects, users, grants and tokens."""

from __future__ import annotations

from novacron.client.aio.connection import AsyncConnection
from novacron.client.protocol import Object, quoted, without_none


class AsyncAccessCalls(AsyncConnection):
    """Projects, users, grants and tokens."""

    async def me(self) -> Object:
        """Return who calls, and what they may do."""
        return await self._object("GET", "/api/v1/me")

    async def configure_me(self, default_project: str | None) -> Object:
        """Change the caller's own settings: the project of new objects; None: the usual one."""
        return await self._object("PATCH", "/api/v1/me", {"default_project": default_project})

    async def create_project(self, name: str, **fields: object) -> Object:
        """Create a project; fields as in ``POST /api/v1/projects``."""
        return await self._object("POST", "/api/v1/projects", {"name": name, **fields})

    async def configure_project(self, project: str, /, **changes: object) -> Object:
        """Change a project's ``name``, ``description``, ``quota`` or ``host_network``."""
        return await self._object("PATCH", f"/api/v1/projects/{quoted(project)}", changes)

    async def usage(self, project: str) -> Object:
        """Return what a project uses (``usage``) and may use (``quota``)."""
        return await self._object("GET", f"/api/v1/projects/{quoted(project)}/usage")

    async def create_user(self, name: str, **fields: object) -> Object:
        """Create a user; fields as in ``POST /api/v1/users``, those that are None left out."""
        return await self._object("POST", "/api/v1/users", {"name": name, **without_none(fields)})

    async def configure_user(self, ref: str, disabled: bool) -> Object:
        """Disable a user, or enable them again."""
        return await self._object("PATCH", f"/api/v1/users/{quoted(ref)}", {"disabled": disabled})

    async def set_password(self, ref: str, password: str, present: str | None = None) -> None:
        """Set a user's password; to change one's own takes the ``present`` one."""
        body: Object = {"password": password, "present": present}
        await self.request("PUT", f"/api/v1/users/{quoted(ref)}/password", body)

    async def grant(self, user: str, role: str, project: str | None) -> Object:
        """Give a user a role in a project, or everywhere (None). Users whom the caller does not manage are invited:
        then the answer is an invitation, which has ``expires_at``."""
        return await self._object("POST", "/api/v1/grants", {"user": user, "role": role, "project": project})

    async def create_token(self, name: str, **fields: object) -> Object:
        """Create a token; fields as in ``POST /api/v1/tokens``, those that are None left out.

        Its ``secret`` is in this answer only.
        """
        return await self._object("POST", "/api/v1/tokens", {"name": name, **without_none(fields)})
