"""What simulated VMs use of their nodes."""

from __future__ import annotations

from collections.abc import Iterable

from novacron.model.node import ordinary_memory_mib
from novacron.model.rebalance import NodeUse, VmLoad


def uses_of(vms: Iterable[VmLoad]) -> dict[str, NodeUse]:
    """Return the sum of what the VMs of each node use."""
    uses: dict[str, NodeUse] = {}
    for vm in vms:
        if vm.wish.at is not None:
            before = uses.get(vm.wish.at, NodeUse())
            uses[vm.wish.at] = NodeUse(before.cpus + vm.cpus, before.memory_mib + ordinary_memory_mib(vm.wish.spec))
    return uses
