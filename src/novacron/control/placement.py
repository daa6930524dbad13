"""Gives every VM without a node the best one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.control.objects import Objects
from novacron.store import fleet
from novacron.store.database import Database
from novacron.store.fleet import WaitingVm
from novacron.store.fleet_index import FleetIndex

BATCH_MAX, BATCHES_MAX = 100, 10
"""VMs that are placed in one transaction, and such transactions in one pass."""


class PlacementController(msgspec.Struct):
    """``index`` has the fleet in memory; without one, every batch reads it from the database."""

    index: FleetIndex | None = None
    last: WaitingVm | None = None
    """Where the next pass goes on: VMs that no node can take must not keep others from being looked at."""

    async def step(self, database: Database, objects: Objects) -> None:
        objects.unfinished = True  # until the youngest VM has been looked at
        for _ in range(BATCHES_MAX):
            async with database.connection() as connection:
                batch = await fleet.waiting(connection, BATCH_MAX, self.last, leave_out=objects.resting())
            began_anew, self.last = self.last is None, batch[-1] if len(batch) == BATCH_MAX else None
            await self._place_all(database, batch, objects)
            if self.last is None:
                objects.unfinished = False
                if began_anew:
                    return

    async def _place_all(self, database: Database, batch: Sequence[WaitingVm], objects: Objects) -> None:
        async def place(ids: Sequence[str]) -> None:
            try:
                async with database.transaction() as connection:
                    await fleet.place_waiting(connection, ids, self.index)
            except BaseException:
                if self.index is not None:
                    for id in ids:
                        self.index.assume(id, None)
                raise

        if self.index is not None and self.index.ready:
            for vm in batch:
                if vm.wish is not None:
                    await self.index.prepare(vm.wish)
        await objects.together([vm.id for vm in batch], place, lambda id: place([id]))
