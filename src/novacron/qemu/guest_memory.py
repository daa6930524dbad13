"""The memory of a guest whose CPUs are on several NUMA nodes, or that consists of huge pages, as arguments of QEMU.

Sources: ``-numa``, ``-object memory-backend-*`` in qemu(1). All other guests have what ``-m`` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.model.devices import HugePages

RAM = "ram"


class MemoryLayout(msgspec.Struct, frozen=True):
    """How the memory and the CPUs of a guest are split, and what its memory consists of."""

    cells: int = 1
    """NUMA nodes of the guest: each has as many CPUs and as much memory as the others."""
    hugepages: HugePages = HugePages.NONE
    host_cells: Sequence[int | None] = ()
    """On which NUMA node of the host the memory of each cell is to be; None: anywhere."""

    @property
    def is_plain(self) -> bool:
        return self.cells == 1 and self.hugepages is HugePages.NONE


def machine_options(layout: MemoryLayout) -> str:
    """Return what follows the type in ``-machine``."""
    return f",memory-backend={RAM}0" if not layout.is_plain and layout.cells == 1 else ""


def topology(layout: MemoryLayout, vcpus: int) -> str:
    """Return what follows the number of CPUs in ``-smp``: each NUMA node is a socket."""
    return f",sockets={layout.cells},cores={vcpus // layout.cells},threads=1" if layout.cells > 1 else ""


def arguments(layout: MemoryLayout, vcpus: int, memory_mib: int) -> list[str]:
    """Return the memory's parts, and which CPUs are beside which; nothing for a guest whose memory is plain."""
    if layout.is_plain:
        return []
    parts = []
    for cell in range(layout.cells):
        parts += ["-object", _backend(layout, cell, memory_mib // layout.cells)]
        if layout.cells > 1:
            cpus = vcpus // layout.cells
            parts += ["-numa", f"node,nodeid={cell},cpus={cell * cpus}-{(cell + 1) * cpus - 1},memdev={RAM}{cell}"]
    return parts


def _backend(layout: MemoryLayout, cell: int, size_mib: int) -> str:
    kind = "memory-backend-ram"
    if layout.hugepages is not HugePages.NONE:
        kind = f"memory-backend-memfd,hugetlb=on,hugetlbsize={layout.hugepages},prealloc=on"
    host = layout.host_cells[cell] if cell < len(layout.host_cells) else None
    bound = "" if host is None else f",host-nodes={host},policy=preferred"
    return f"{kind},id={RAM}{cell},size={size_mib}M{bound}"
