"""Post-copy needs userfaultfd(2), which most hosts keep from users without privileges: it is allowed for as long as a
guest is on its way here by post-copy, and a QEMU that has it by then keeps it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")
REMEMBERED = "userfaultfd"
"""File in which an agent that may be killed keeps what the host had."""

_users = 0


@contextlib.contextmanager
def allowed(state_dir: Path) -> Iterator[None]:
    """Allow it inside the block. Raises OSError where that can't be had."""
    global _users
    _users += 1
    try:
        if _users == 1 and SYSCTL.read_text().strip() != "1":
            (state_dir / REMEMBERED).write_text(SYSCTL.read_text())
            SYSCTL.write_text("1")
        yield
    finally:
        _users -= 1
        if not _users:
            restore(state_dir)


def restore(state_dir: Path) -> None:
    """Set it back to what the host had, if an agent changed it."""
    path = state_dir / REMEMBERED
    if path.exists():
        SYSCTL.write_text(path.read_text().strip() or "0")
        path.unlink()
