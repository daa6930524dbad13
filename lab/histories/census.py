"""What of an installation is on this machine: QEMUs, and what agents make for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.histories.verdict import Process
from lab.hosts import Host
from novacron.agent.host import remnants
from novacron.agent.host.instances import instance_of
from novacron.agent.host.remnants import RemnantKind
from novacron.qemu import running

SCRATCH = (".importing-*", ".receiving-*")


def state_dir_of(directory: Path, host: str) -> Path:
    """Return the state folder of a host's agent."""
    return directory / host / "agent"


def processes(directory: Path) -> list[Process]:
    """Return every QEMU that an agent of this installation has started, also with folders that are gone."""
    return [
        Process(qemu.vm, Path(qemu.state_dir).relative_to(directory).parts[0], qemu.pid)
        for qemu in running.running()
        if qemu.state_dir and Path(qemu.state_dir).is_relative_to(directory)
    ]


def left_over(directory: Path, hosts: Sequence[Host], places: Sequence[str] = ()) -> list[str]:
    """Return what is there although the installation has no VM: processes, folders, taps, cgroups, networks.

    ``places``: folders in which copies of state folders are, from which agents have worked on these hosts.
    """
    found = [f"process {each.pid} of {each.vm} on {each.host}" for each in processes(directory)]
    for host in hosts:
        state = state_dir_of(directory, host.name)
        found += [f"directory {path}" for path in (state / "vms").glob("*")]
        for pattern in SCRATCH:
            found += [f"directory {path}" for path in (directory / host.name / "images").glob(pattern)]
        states = state, *(state_dir_of(directory, place) for place in places)
        found += host.within(lambda states=states: [each for s in states for each in _remnants(instance_of(s))])  # type: ignore[misc]
    return sorted(set(found))


def _remnants(instance: str) -> list[str]:
    return [
        f"{each.kind} {each.name}"
        for each in remnants.find()
        if each.instance == instance and (each.kind is not RemnantKind.NETWORKS or remnants.is_there(each))
    ]


def remove_cgroups(instance: str) -> None:
    """Remove the cgroups of an agent whose host has lost its power."""
    for each in remnants.find():
        if each.instance == instance and each.kind is RemnantKind.CGROUP:
            remnants.remove(each)
