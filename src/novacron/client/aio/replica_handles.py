"""Replicas of VMs, as objects with methods."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Self

from novacron.client.aio.handles import AsyncFindable, AsyncFollowed, AsyncRemovable, AsyncWatched
from novacron.client.aio.vm_handles import AsyncVmHandle
from novacron.client.typed import Replica, Vm

if TYPE_CHECKING:
    from typing import Unpack

    from novacron.client.bodies import ReplicaChangesBody, TryReplicaBody


class AsyncReplicaHandle(AsyncWatched[Replica], AsyncRemovable[Replica]):
    """A copy of a VM's disk on another site, that follows."""

    @property
    def id(self) -> str:
        return self.object.id

    async def configure(self, *, if_unchanged: bool = False, **changes: Unpack[ReplicaChangesBody]) -> Self:
        """Change how often it follows, and how many points it keeps."""
        return await self._change(changes, if_unchanged)

    async def try_out(self, **fields: Unpack[TryReplicaBody]) -> AsyncVmHandle:
        """Begin to make a VM of it, connected to nothing."""
        return AsyncVmHandle(self._connection, Vm, await self._act("try", dict(fields)))


class AsyncReplicaCollection(AsyncFindable[Replica, AsyncReplicaHandle], AsyncFollowed[Replica, AsyncReplicaHandle]):
    """All replicas that the caller may see."""

    _type, _handle = Replica, AsyncReplicaHandle

    def list(
        self, *, vm: str | None = None, node: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> AsyncIterator[AsyncReplicaHandle]:
        return self._list(limit, vm=vm, node=node, sort=sort)
