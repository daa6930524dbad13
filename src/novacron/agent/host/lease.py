"""This node's lease, where what outlives the agent can read it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from novacron.model import lease
from novacron.qemu.lease_guard import boot_id

LENGTH = 96
"""Of what is in the file, in bytes."""
CLOCK_ERROR_S = 1.0
"""By how much a stored time may be later than can be: a lease that claims more is damaged, and none."""


def now() -> float:
    """Return the seconds since the host was started, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NodeLease:
    """A lease in a file: the boot's id, when it ends, and when the control plane was heard last. ``clock`` is read as
    ``now`` is; a simulation has its own."""

    def __init__(self, path: Path, clock: Callable[[], float] = now) -> None:
        self.path = path
        self.now = clock
        self._boot = boot_id()
        deadline, heard_at = 0.0, None
        try:
            boot, deadline_text, heard_text = path.read_text().split()
            stored = float(deadline_text), float(heard_text)
            at = self.now() + CLOCK_ERROR_S
            if boot == self._boot and stored[0] <= at + lease.LEASE_S and stored[1] <= at:  # neither, if not a number
                deadline, heard_at = stored
        except (OSError, ValueError):
            pass
        self.rule = lease.Lease(self.now(), deadline, heard_at)
        # Open, and as long as it ever gets: it is written in place, which needs no room on a disk that is full.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._write()

    def beaten(self, number: int) -> None:
        """The control plane has acknowledged a heartbeat."""
        self.rule.beaten(number, self.now())
        self._write()

    def may_go_on(self, silent: set[str], asked_at: float) -> bool:
        """Go on without the control plane if the voters allow it."""
        allowed = self.rule.may_go_on(silent, asked_at, self.now())
        if allowed:
            self._write()
        return allowed

    def valid(self) -> bool:
        return self.rule.valid(self.now())

    def remaining_s(self) -> float:
        """Return for how long it is still valid."""
        return max(0.0, self.rule.deadline - self.now())

    def silent(self) -> bool:
        return self.rule.silent(self.now())

    def _write(self) -> None:
        text = f"{self._boot} {self.rule.deadline:.3f} {self.rule.heard_at:.3f}"
        os.pwrite(self._descriptor, text.ljust(LENGTH - 1).encode() + b"\n", 0)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)
