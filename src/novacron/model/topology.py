"""What goes together of a VM's CPUs, NUMA nodes and huge pages. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from novacron.model.devices import CpuPolicy, HugePages
from novacron.model.errors import InvalidInput
from novacron.model.vm import VmFields


def check(spec: VmFields) -> None:
    """Raise InvalidInput when CPUs, NUMA nodes and huge pages of a VM don't go together."""
    for field, why, hint in _problems(spec):
        raise InvalidInput(why, field=field, hint=hint)


def _problems(spec: VmFields) -> Iterator[tuple[str, str, str]]:
    """Yield the field, what is wrong and what to do."""
    cells, huge, leave_out = spec.numa_nodes, spec.hugepages is not HugePages.NONE, "leave it out"
    if spec.vcpus_max is not None:
        if spec.cpu_policy is CpuPolicy.DEDICATED:
            yield "vcpus_max", "a VM with dedicated CPUs can't get more while it runs", leave_out
        if cells > 1:
            yield "vcpus_max", f"a VM with {cells} NUMA nodes can't get more vCPUs while it runs", leave_out
    if spec.memory_max_mib is not None:
        if huge:
            yield "memory_max_mib", "memory of huge pages can't grow while the VM runs", leave_out
        if cells > 1:
            yield "memory_max_mib", f"a VM with {cells} NUMA nodes can't get more memory while it runs", leave_out
    if spec.vcpus % cells:
        why = f"{spec.vcpus} vCPUs can't be split evenly into {cells} NUMA nodes"
        yield "numa_nodes", why, "change vcpus or numa_nodes"
    unit_mib = cells * max(1, spec.hugepages.size_mib)
    if spec.memory_mib % unit_mib:
        field = "memory_mib" if huge else "numa_nodes"
        what = f"huge pages of {spec.hugepages}" if huge else f"{cells} NUMA nodes"
        why = f"{spec.memory_mib} MiB can't be split evenly into {what}"
        yield field, why, f"use a multiple of {unit_mib} MiB of memory"
