"""Snapshots: a VM's disk, and on request its memory, at one moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model.errors import IllegalState
from novacron.model.limits import MEMORY_SLOTS
from novacron.model.metadata import Metadata
from novacron.model.project import DEFAULT

LAYOUT_DEVICES_MAX = 256
LayoutText = Annotated[str, Meta(max_length=200)]


class SnapshotPhase(StrEnum):
    """How far a snapshot is."""

    CREATING = "creating"
    READY = "ready"
    REVERTING = "reverting"
    """The VM is being reverted to it."""
    DELETING = "deleting"
    FAILED = "failed"
    """It could not be created: only the error is kept."""


TRANSITIONS: dict[SnapshotPhase, frozenset[SnapshotPhase]] = {
    SnapshotPhase.CREATING: frozenset({SnapshotPhase.READY, SnapshotPhase.FAILED}),
    SnapshotPhase.READY: frozenset({SnapshotPhase.REVERTING, SnapshotPhase.DELETING}),
    SnapshotPhase.REVERTING: frozenset({SnapshotPhase.READY}),
    SnapshotPhase.DELETING: frozenset(),
    SnapshotPhase.FAILED: frozenset({SnapshotPhase.DELETING}),
}
"""The phases that may follow each phase. After DELETING the snapshot is gone."""
WORKING = frozenset({SnapshotPhase.CREATING, SnapshotPhase.REVERTING, SnapshotPhase.DELETING})
"""The phases in which a node has work to do."""


class ExcludedVolume(msgspec.Struct, frozen=True):
    """A volume that was attached when a snapshot was taken. The snapshot does not contain it."""

    id: str
    name: str
    lun: int
    """Its place at the controller."""


class MachineLayout(msgspec.Struct, frozen=True):
    """What the memory in a snapshot fits: the virtual machine that had it."""

    qemu: LayoutText
    """QEMU's version, such as ``7.2.22``."""
    machine: LayoutText
    """Versioned machine type."""
    accelerator: LayoutText
    vcpus: int
    memory_mib: int
    added_mib: Annotated[tuple[int, ...], Meta(max_length=MEMORY_SLOTS)] = ()
    """Memory modules added while the guest ran."""
    devices: Annotated[tuple[LayoutText, ...], Meta(max_length=LAYOUT_DEVICES_MAX)] = ()
    """Each as ``NAME (TYPE)``, or ``TYPE`` without a name, sorted."""


class Snapshot(Metadata, frozen=True):
    """A snapshot as stored and as the API shows it."""

    id: str
    vm: str
    vm_name: str
    name: str
    parent: str | None
    """The snapshot that had been created or reverted to last, before this one was created."""
    memory: bool
    quiesce: bool
    vcpus: int
    memory_mib: int
    phase: SnapshotPhase
    error: str
    pause_ms: float | None
    """How long the guest was paused for the snapshot."""
    revision: int
    created_at: datetime
    project: str = DEFAULT
    excluded_volumes: tuple[ExcludedVolume, ...] | None = None
    """The volumes that the VM had: a snapshot contains none. None: not known, it is older than this field."""
    layout: MachineLayout | None = None
    """With memory: what a VM must be like to be reverted to it. None: not known, or without memory."""
    starts_vm: bool = False
    """The latest revert began with the VM off."""
    reason_code: str = ""
    """``error``, for programs: one of ``WaitCode``."""


def check_transition(snapshot: Snapshot, phase: SnapshotPhase) -> None:
    """Raise IllegalState if the snapshot can't enter ``phase`` from its present one."""
    if phase not in TRANSITIONS[snapshot.phase]:
        raise IllegalState(
            f"snapshot {snapshot.name} of VM {snapshot.vm_name} is {snapshot.phase}, and can't become {phase}",
            hint=f"see: novacron snapshot list {snapshot.vm_name}",
        )


def layout_differences(then: MachineLayout, now: MachineLayout) -> list[str]:
    """Say what of a machine keeps it from having the memory of another one. Pure."""
    differences = []
    if _version(now.qemu) < _version(then.qemu):  # a newer QEMU reads what older ones wrote
        differences.append(f"it was taken with QEMU {then.qemu}, and this node has QEMU {now.qemu}")
    for what, was, is_ in (
        ("machine type", then.machine, now.machine),
        ("accelerator", then.accelerator, now.accelerator),
        ("number of vCPUs", then.vcpus, now.vcpus),
        ("memory", _memory(then), _memory(now)),
    ):
        if was != is_:
            differences.append(f"the {what} was {was} and is {is_}")
    had, has = Counter(then.devices), Counter(now.devices)
    differences += [f"device {device} is missing" for device in (had - has).elements()]
    differences += [f"device {device} is new" for device in (has - had).elements()]
    return differences


def volume_differences(then: Sequence[ExcludedVolume], now: Sequence[ExcludedVolume]) -> list[str]:
    """Say which volumes a VM would have to have, or not to have, to be reverted to memory. Pure."""
    had, has = {volume.id: volume for volume in then}, {volume.id: volume for volume in now}
    differences = [f"volume {volume.name} was attached" for volume in then if volume.id not in has]
    differences += [f"volume {volume.name} was not attached" for volume in now if volume.id not in had]
    return differences + [
        f"volume {volume.name} was at place {had[volume.id].lun} and is at {volume.lun}"
        for volume in now
        if volume.id in had and had[volume.id].lun != volume.lun
    ]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def _memory(layout: MachineLayout) -> str:
    return " + ".join(str(mib) for mib in (layout.memory_mib, *layout.added_mib)) + " MiB"
