"""The memory that a guest gives back while it runs, through its balloon."""

from __future__ import annotations

from novacron.agent.host.clock import Clock
from novacron.model.guest_hardware import GuestHardware
from novacron.qemu import usage
from novacron.qemu.monitor import Monitor

FOLLOW_S = 30.0
"""A guest that has not given its memory back by then may never do so: whoever asked is told."""
LOOK_S = 1.0
TOLERANCE_MIB = 1


class GuestBalloon:
    """That of one VM."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asked: tuple[int | None, int] | None = None
        """Of which QEMU, and how many MiB the guest was to have."""
        self._asked_at = 0.0
        self.left_mib: int | None = None
        """What the guest has, while that is less than all of it."""
        self.look_s: float | None = None
        """When to look again; None: nothing is on its way."""

    def ended(self) -> None:
        """The VM does not run any more."""
        self._asked, self.left_mib, self.look_s = None, None, None

    async def settle(self, monitor: Monitor, pid: int | None, has: GuestHardware, wanted_mib: int | None) -> str:
        """Let the guest have as much memory as it should; return why it does not, once it had time enough.

        Raises MonitorFailed.
        """
        self.look_s = None
        if not has.balloon:
            self.left_mib = None
            return ""
        target_mib = min(wanted_mib or has.memory_in_all_mib, has.memory_in_all_mib)
        is_mib = (await usage.balloon(monitor)).actual_bytes >> 20
        reached = abs(is_mib - target_mib) <= TOLERANCE_MIB
        self.left_mib = is_mib if is_mib < has.memory_in_all_mib - TOLERANCE_MIB else None
        if reached:
            self._asked = None
            return ""
        await monitor.execute("balloon", {"value": target_mib << 20})  # again: a snapshot brings an older target back
        if self._asked != (pid, target_mib):
            self._asked, self._asked_at = (pid, target_mib), self._clock.monotonic()
        if self._clock.monotonic() - self._asked_at < FOLLOW_S:
            self.look_s = LOOK_S
            return ""
        return f"its guest has {is_mib} MiB of memory, not {target_mib}: it needs them, or has no balloon driver"
