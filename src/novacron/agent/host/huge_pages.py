"""Memory that this host has set aside as huge pages (Linux' Documentation/admin-guide/mm/hugetlbpage.rst)."""

from __future__ import annotations

import contextlib
from pathlib import Path

from novacron.model.devices import HugePages

PAGES = Path("/sys/kernel/mm/hugepages")


def set_aside_mib(size: HugePages, root: Path = PAGES) -> int:
    """Return how much memory consists of huge pages of a size, in use or not, in MiB."""
    with contextlib.suppress(OSError, ValueError):
        return int((root / f"hugepages-{size.size_mib * 1024}kB" / "nr_hugepages").read_text()) * size.size_mib
    return 0
