"""VMs that begin anew on another node."""

from __future__ import annotations

from novacron.model.vm import VmStatus


def begun_elsewhere(status: VmStatus, reason: str) -> VmStatus:
    """Return the status of a VM that begins anew on another node, which has to know what was done already."""
    return VmStatus(
        reason=reason, machine=status.machine, halted_at_start=status.halted_at_start, reboots=status.reboots,
        resets=status.resets, hardware_renewals=status.hardware_renewals, booted_once_at=status.booted_once_at,
    )  # fmt: skip
