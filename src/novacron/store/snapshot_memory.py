"""Snapshots with memory: what a VM is may not change under them."""

from __future__ import annotations

from novacron.model.errors import IllegalState
from novacron.model.vm import Vm
from novacron.store.connection import Connection


async def check_none(connection: Connection, vm: Vm, what: str, field: str | None = None) -> None:
    """Raise IllegalState when a snapshot has the memory of a guest that has something of the VM as it is now."""
    held = "SELECT name FROM snapshots WHERE vm = $1 AND memory ORDER BY created_at LIMIT 1"
    if (snapshot := await connection.fetchval(held, vm.id)) is not None:
        raise IllegalState(
            f"snapshot {snapshot} of VM {vm.name} holds the memory of a guest with the current {what}", field=field,
            hint=f"delete it first: novacron snapshot delete {vm.name} {snapshot}",
        )  # fmt: skip
