# Made of aio/replicas.py by script/generate: change that, and run it.
"""Calls about replicas of VMs."""

from __future__ import annotations

from novacron.client.protocol import Object, quoted, without_none
from novacron.client.sync.connection import Connection


class ReplicaCalls(Connection):
    """Replicas: copies of VMs' disks on other sites, that follow."""

    def replicate_vm(self, ref: str, **fields: object) -> Object:
        """Begin to replicate a VM; fields as in ``POST /api/v1/vms/{ref}/actions/replicate``, those that are None left
        out."""
        return self.act("vms", ref, "replicate", without_none(fields))

    def configure_replica(self, id: str, **changes: object) -> Object:
        """Change a replica; fields as in ``PATCH /api/v1/replicas/{id}``."""
        return self._object("PATCH", f"/api/v1/replicas/{quoted(id)}", changes)

    def try_replica(self, id: str, name: str, **fields: object) -> Object:
        """Begin to make a VM of a replica, connected to nothing; fields as in
        ``POST /api/v1/replicas/{id}/actions/try``, those that are None left out."""
        return self.act("replicas", id, "try", {"name": name, **without_none(fields)})

    def fail_over_vm(self, ref: str, **fields: object) -> Object:
        """Let a VM whose node is gone go on from a replica; fields as in
        ``POST /api/v1/vms/{ref}/actions/failover``, those that are None left out."""
        return self.act("vms", ref, "failover", without_none(fields))
