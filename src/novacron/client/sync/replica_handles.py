# Made of aio/replica_handles.py by script/generate: change that, and run it.
"""Replicas of VMs, as objects with methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from novacron.client.sync.handles import Findable, Followed, Removable, Watched
from novacron.client.sync.vm_handles import VmHandle
from novacron.client.typed import Replica, Vm

if TYPE_CHECKING:
    from typing import Unpack

    from novacron.client.bodies import ReplicaChangesBody, TryReplicaBody


class ReplicaHandle(Watched[Replica], Removable[Replica]):
    """A copy of a VM's disk on another site, that follows."""

    @property
    def id(self) -> str:
        return self.object.id

    def configure(self, *, if_unchanged: bool = False, **changes: Unpack[ReplicaChangesBody]) -> Self:
        """Change how often it follows, and how many points it keeps."""
        return self._change(changes, if_unchanged)

    def try_out(self, **fields: Unpack[TryReplicaBody]) -> VmHandle:
        """Begin to make a VM of it, connected to nothing."""
        return VmHandle(self._connection, Vm, self._act("try", dict(fields)))


class ReplicaCollection(Findable[Replica, ReplicaHandle], Followed[Replica, ReplicaHandle]):
    """All replicas that the caller may see."""

    _type, _handle = Replica, ReplicaHandle

    def list(
        self, *, vm: str | None = None, node: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> Iterator[ReplicaHandle]:
        return self._list(limit, vm=vm, node=node, sort=sort)
