"""What is wrong with VMs once everything has come to rest. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

ENDS_WITH_ITS_FOLDER = frozenset({"DiskLost"})
"""Reasons for which a VM may be failed after a state folder was lost: its disk was in it."""


class Process(NamedTuple):
    """A QEMU that runs a VM."""

    vm: str
    host: str
    pid: int


class Expectation(NamedTuple):
    """What a history may leave."""

    present: Collection[str]
    """Ids of VMs that must be there."""
    folders_lost: bool = False
    """A state folder was removed or replaced, with the disks in it."""


def wrong(vms: Sequence[dict[str, Any]], processes: Sequence[Process], expected: Expectation) -> list[str]:
    """Return what is wrong, each as a sentence that begins with TWICE, LOST, ORPHAN or UNSETTLED; empty: nothing.

    ``vms`` is what the API lists, ``processes`` every QEMU of the installation.
    """
    by_id = {vm["id"]: vm for vm in vms}
    said = [f"LOST: {id} is in no list" for id in sorted(set(expected.present) - by_id.keys())]
    said += [f"ORPHAN: process {each.pid} on {each.host} runs {each.vm}" for each in processes if each.vm not in by_id]
    for vm in vms:
        said += _wrong_with(vm, [each for each in processes if each.vm == vm["id"]], expected)
    return said


def _wrong_with(vm: dict[str, Any], processes: Sequence[Process], expected: Expectation) -> list[str]:
    name, status = f"{vm['name']} ({vm['id']})", vm["status"]
    if len(processes) > 1:
        return [f"TWICE: {name} has {', '.join(f'process {each.pid} on {each.host}' for each in processes)}"]
    if vm["migration"] or vm["deleting"] or vm.get("unreconciled"):
        return [f"UNSETTLED: {name} is migrated, deleted or unreconciled"]
    if vm["spec"]["power"] == "stopped":
        return [f"ORPHAN: {name} is stopped and has process {each.pid}" for each in processes] + (
            [] if status["state"] == "stopped" else [f"UNSETTLED: {name} is {status['state']}, not stopped"]
        )
    if status["state"] == "failed" and expected.folders_lost and status["reason_code"] in ENDS_WITH_ITS_FOLDER:
        return [f"ORPHAN: {name} has lost its disk and has process {each.pid}" for each in processes]
    if status["state"] != "running":
        return [f"UNSETTLED: {name} is {status['state']}: {status['reason']}"]
    if not processes:
        return [f"LOST: {name} is said to run on {vm['node']}, and no process does"]
    (process,) = processes
    if (process.host, process.pid) != (vm["node"], status["pid"]):
        return [f"TWICE: {name} is said to be process {status['pid']} on {vm['node']}, and is {process}"]
    return []
