"""Calls about projects, users, grants and tokens."""

from __future__ import annotations

from novacron.client.aio.connection import AsyncConnection
from novacron.client.protocol import Object, quoted, without_none


class AsyncAccessCalls(AsyncConnection):
    """Projects, users, grants and tokens."""

    async def me(self) -> Object:
        """Return who calls, and what they may do."""
        return await self._object("GET", "/api/v1/me")

    async def create_login_link(self) -> Object:
        """Make a link that logs the caller in to the web UI, once: ``path``, at the API's own address, until
        ``expires_at``."""
        return await self._object("POST", "/api/v1/login-links")

    async def configure_me(self, default_project: str | None) -> Object:
        """Change the caller's own settings: the project of new objects; None: the usual one."""
        return await self._object("PATCH", "/api/v1/me", {"default_project": default_project})

    async def create_project(self, name: str, **fields: object) -> Object:
        """Create a project; fields as in ``POST /api/v1/projects``."""
        return await self._object("POST", "/api/v1/projects", {"name": name, **fields})

    async def configure_project(self, project: str, /, **changes: object) -> Object:
        """Change a project; fields as in ``PATCH /api/v1/projects/{name}``."""
        return await self._object("PATCH", f"/api/v1/projects/{quoted(project)}", changes)

    async def move_to_project(self, kind: str, ref: str, project: str | None) -> Object:
        """Move one of ``vms``, ``volumes`` or ``images`` to another project; an image with None: to all."""
        return await self._object("POST", f"/api/v1/{kind}/{quoted(ref)}/actions/move-to-project", {"project": project})

    async def erase_project_key(self, project: str) -> Object:
        """Destroy a project's key, and return what can't be read any more: ``vms`` and ``volumes``."""
        return await self._object("POST", f"/api/v1/projects/{quoted(project)}/erase-key", {"confirm": project})

    async def platform_key(self) -> Object:
        """Return the platform key's ``id``, and how many projects' ``keys`` each platform key has wrapped."""
        return await self._object("GET", "/api/v1/platform-key")

    async def rewrap_project_keys(self) -> Object:
        """Wrap up to 100 projects' keys with the present platform key; the answer is that of ``platform_key``."""
        return await self._object("POST", "/api/v1/platform-key/rewrap")

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

    async def require_second_factor(self, ref: str, required: bool) -> Object:
        """Require a second factor of a user's logins with a password, or no longer."""
        body: Object = {"second_factor_required": required}
        return await self._object("PATCH", f"/api/v1/users/{quoted(ref)}", body)

    async def second_factors(self, user: str | None = None) -> Object:
        """Return the caller's second factors, or another user's."""
        whose = "me" if user is None else f"users/{quoted(user)}"
        return await self._object("GET", f"/api/v1/{whose}/second-factors")

    async def begin_second_factor(self, kind: str, name: str, password: str) -> Object:
        """Begin to add an app (``totp``): the answer has its ``secret`` and a ``uri``; or a security key
        (``webauthn``): the answer has the ``options`` for the browser."""
        body: Object = {"kind": kind, "name": name, "password": password}
        return await self._object("POST", "/api/v1/me/second-factors", body)

    async def confirm_second_factor(
        self, ref: str, code: str | None = None, credential: Object | None = None
    ) -> Object:
        """Confirm a second factor with the app's code or the browser's answer. With the first one the answer has
        ``recovery_codes``, which are not shown again."""
        body: Object = {"code": code, "credential": credential}
        return await self._object("POST", f"/api/v1/me/second-factors/{quoted(ref)}/actions/confirm", body)

    async def remove_second_factor(self, ref: str, password: str) -> None:
        """Remove one of the caller's second factors."""
        path = f"/api/v1/me/second-factors/{quoted(ref)}/actions/remove"
        await self.request("POST", path, {"password": password})

    async def renew_recovery_codes(self, password: str) -> Object:
        """Make other recovery codes (``recovery_codes``); those before are no longer good."""
        return await self._object("POST", "/api/v1/me/recovery-codes", {"password": password})

    async def reset_second_factors(self, user: str) -> None:
        """Remove all second factors and recovery codes of a user; their sessions end."""
        await self.request("DELETE", f"/api/v1/users/{quoted(user)}/second-factors")

    async def audit_chain(self) -> Object:
        """Return where the audit log's hash chain begins and ends; ``novacron.client.audit`` verifies it."""
        return await self._object("GET", "/api/v1/audit/chain")

    async def erase_user(self, user: str) -> Object:
        """Delete a user, and put a pseudonym in place of their name and addresses in all that was recorded.

        Of one who was deleted before, by their name. The answer has the ``pseudonym``, and in how many ``records`` of
        the audit log it stands.
        """
        return await self._object("POST", "/api/v1/audit/erasures", {"user": user})
