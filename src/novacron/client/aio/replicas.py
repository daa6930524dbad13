"""Calls about replicas of VMs."""

from __future__ import annotations

from novacron.client.aio.connection import AsyncConnection
from novacron.client.protocol import Object, quoted, without_none


class AsyncReplicaCalls(AsyncConnection):
    """Replicas: copies of VMs' disks on other sites, that follow."""

    async def replicate_vm(self, ref: str, **fields: object) -> Object:
        """Begin to replicate a VM; fields as in ``POST /api/v1/vms/{ref}/actions/replicate``, those that are None left
        out."""
        return await self.act("vms", ref, "replicate", without_none(fields))

    async def configure_replica(self, id: str, **changes: object) -> Object:
        """Change a replica; fields as in ``PATCH /api/v1/replicas/{id}``."""
        return await self._object("PATCH", f"/api/v1/replicas/{quoted(id)}", changes)

    async def try_replica(self, id: str, name: str, **fields: object) -> Object:
        """Begin to make a VM of a replica, connected to nothing; fields as in
        ``POST /api/v1/replicas/{id}/actions/try``, those that are None left out."""
        return await self.act("replicas", id, "try", {"name": name, **without_none(fields)})

    async def fail_over_vm(self, ref: str, **fields: object) -> Object:
        """Let a VM whose node is gone go on from a replica; fields as in
        ``POST /api/v1/vms/{ref}/actions/failover``, those that are None left out."""
        return await self.act("vms", ref, "failover", without_none(fields))
