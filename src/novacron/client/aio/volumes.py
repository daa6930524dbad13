"""Calls about volumes."""

from __future__ import annotations

from novacron.client.aio.connection import AsyncConnection
from novacron.client.protocol import Object, quoted, without_none


class AsyncVolumeCalls(AsyncConnection):
    """Volumes: create, change and attach them."""

    async def create_volume(self, name: str, **fields: object) -> Object:
        """Begin to create a volume; fields as in ``POST /api/v1/volumes``, those that are None left out."""
        return await self._object("POST", "/api/v1/volumes", {"name": name, **without_none(fields)})

    async def configure_volume(self, ref: str, **changes: object) -> Object:
        """Change a volume; fields as in ``PATCH /api/v1/volumes/{ref}``."""
        return await self._object("PATCH", f"/api/v1/volumes/{quoted(ref)}", changes)

    async def attach_volume(
        self, ref: str, vm: str, read_only: bool = False, boot_order: int | None = None, **how: object
    ) -> Object:
        """Attach a volume to a VM. ``act("volumes", ref, "detach")`` detaches it."""
        return await self.act(
            "volumes", ref, "attach", {"vm": vm, "read_only": read_only, "boot_order": boot_order, **how}
        )
