"""Can this machine run VMs: its accelerator, and what agents that are gone have left on it."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from novacron.agent.host import remnants
from novacron.agent.host.remnants import Remnant
from novacron.agent.vm import leftovers as earlier_agents
from novacron.local.doctor.finding import Finding, bad, ok, warning
from novacron.model.node import AcceleratorKind
from novacron.qemu import probe

LEFTOVERS_NAMED_MAX = 5


async def accelerator(binary: str) -> list[Finding]:
    """Boot a few bytes of guest code: that /dev/kvm opens proves nothing."""
    if shutil.which(binary) is None:
        return []
    try:
        accelerator = await probe.probe(binary)
    except RuntimeError as error:
        return [bad("accelerator", str(error), "reinstall QEMU, and check that this machine has free memory")]
    if accelerator.kind is AcceleratorKind.KVM:
        return [ok("accelerator", f"KVM: {accelerator.reason}")]
    advice = "turn on virtualisation in the firmware, or nested virtualisation on the host of this machine"
    if not Path("/dev/kvm").exists():
        advice += "; then: modprobe kvm_intel, or kvm_amd"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        advice = "run as root, or add the user to the group kvm"
    return [warning("accelerator", f"none, VMs are emulated, ten times slower: {accelerator.reason}", advice)]


async def leftovers() -> list[Finding]:
    """Look for what agents that are gone have left beside QEMUs."""
    if not remnants.can_look():
        return [ok("leftovers", "only root can check for leftover networks, taps and cgroups of old agents")]
    abandoned = await asyncio.to_thread(earlier_agents.abandoned)
    if not abandoned:
        return [ok("leftovers", "no leftover networks, taps or cgroups of old agents")]
    named = ", ".join(_leftover(remnant) for remnant in abandoned[:LEFTOVERS_NAMED_MAX])
    more = f" and {len(abandoned) - LEFTOVERS_NAMED_MAX} more" if len(abandoned) > LEFTOVERS_NAMED_MAX else ""
    advice = (
        "an agent of the same installation removes them when it starts on this host; by hand: ip netns del,"
        " ip link del, and rmdir below /sys/fs/cgroup"
    )
    return [warning("leftovers", f"left over from old agents: {named}{more}", advice)]


def _leftover(remnant: Remnant) -> str:
    of = f" of VM {remnant.vm}" if remnant.vm else ""
    by = "" if remnant.by is None else f" (node {remnant.by.owner.partition('/')[2]}, {remnant.by.state_dir})"
    return f"{remnant.kind} {remnant.name}{of}{by}"
