"""Calls about recovery plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from novacron.client.aio.connection import AsyncConnection
from novacron.client.protocol import Object


class AsyncPlanCalls(AsyncConnection):
    """Recovery plans: VMs that go on from their replicas, in order."""

    async def create_plan(self, name: str, vms: Sequence[Mapping[str, object]]) -> Object:
        """Create a plan; each of ``vms`` as in ``POST /api/v1/plans``."""
        return await self._object("POST", "/api/v1/plans", {"name": name, "vms": [dict(vm) for vm in vms]})

    async def test_plan(self, ref: str) -> Object:
        """Begin to test a plan: VMs are made of its replicas, connected to nothing, and deleted at the end."""
        return await self.act("plans", ref, "test")

    async def fail_over_plan(self, ref: str, confirm: Sequence[str] = ()) -> Object:
        """Begin to let all VMs of a plan go on from their replicas; ``confirm``: the nodes whose hosts are off."""
        return await self.act("plans", ref, "failover", {"confirm": list(confirm)})

    async def switch_plan(self, ref: str) -> Object:
        """Begin to move all VMs of a plan to where their replicas are; nothing is lost."""
        return await self.act("plans", ref, "switch")

    async def fail_back_plan(self, ref: str) -> Object:
        """Begin to move all VMs of a plan back to where they were before its last failover or switch; nothing is
        lost."""
        return await self.act("plans", ref, "failback")

    async def stop_plan(self, ref: str) -> Object:
        """Begin no further VM of the run that is under way."""
        return await self.act("plans", ref, "stop")
