"""VMs of which a node knows more than the database: an older database was put back. Pure.

A node writes into its journal at which epoch it was given each VM, or gave it away. The database that told it so knows
the same or more, unless it was replaced by an older copy of itself. Then nobody acts on the VM until an operator says
who is right: see docs/how-to/restored-database.md.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from novacron.model import ipv6, network
from novacron.model.devices import DiskBus
from novacron.model.errors import InvalidInput
from novacron.model.ipv4 import check_interface
from novacron.model.ownership import Claim, OwnershipRecord
from novacron.model.vm import MachineType, VmSpec, check_name

SAFE_ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}\Z")


class Contradiction(StrEnum):
    """How a node contradicts the database."""

    UNKNOWN = "unknown"
    """The node has a VM that is not in the database."""
    LATER = "later"
    """The node was given the VM at an epoch that the database does not know."""
    GONE = "gone"
    """The node gave the VM away, or removed it; the database has it there."""
    ENDING = "ending"
    """The database is right: the node is to end what it has of the VM, which begins nowhere before it has."""
    DAMAGED = "damaged"
    """The node can't read what it has written down of the VM: the database may be older than that."""


EPOCHS_UNSEEN = 2**32
"""By how many epochs a node whose record of a VM is damaged may have gone beyond an older database: more than a VM
begins in a hundred years of one a second."""


class Recorded(NamedTuple):
    """A VM as the database has it."""

    node: str | None
    epoch: int
    migrating: bool = False
    deleting: bool = False
    deleted: bool = False
    """Only that it was deleted is known."""


def contradiction(node: str, held: OwnershipRecord, recorded: Recorded | None) -> Contradiction | None:
    """Return how what a node holds contradicts the database, which was read after the node said it.

    The epoch of a VM that was deleted began when it was: nobody was given the VM at it, unless another database did.
    """
    if recorded is None or (recorded.deleted and held.epoch >= recorded.epoch):
        return None if held.claim is Claim.NONE else Contradiction.UNKNOWN
    if recorded.deleted or held.epoch < recorded.epoch:
        return None
    if held.epoch > recorded.epoch:
        return Contradiction.GONE if held.claim is Claim.NONE else Contradiction.LATER
    if held.claim in (Claim.OWNER, Claim.RELEASED) and recorded.node != node:
        return Contradiction.LATER  # at one epoch a VM has one owner
    if held.claim is Claim.OWNER:
        return None
    is_to_run_it = recorded.node == node and not recorded.migrating and not recorded.deleting
    return Contradiction.GONE if is_to_run_it else None


def forgotten_arrival(node: str, held: OwnershipRecord, recorded: Recorded) -> bool:
    """Say whether a node waits for a VM that does not come: its migration was in a newer database, or has
    ended.

    The node may not remove it at this epoch by itself: whether it has promised to have everything is not written down.
    """
    elsewhere = recorded.node != node and not recorded.migrating and not recorded.deleted
    return held.claim is Claim.INCOMING and held.epoch == recorded.epoch and elsewhere


class DescribedVolume(msgspec.Struct, frozen=True):
    """A volume of a VM, as its node was told of it."""

    id: str
    pool: str
    lun: int
    size_mib: int
    read_only: bool = False
    boot_order: int | None = None
    iops: int | None = None
    bytes_per_s: int | None = None
    moves: bool = True
    bus: DiskBus = DiskBus.SCSI


class VmDescription(msgspec.Struct, frozen=True):
    """What a node was told last of a VM that it owns."""

    name: str
    project: str
    """The project's id."""
    spec: VmSpec
    volumes: tuple[DescribedVolume, ...] = ()
    machine: MachineType = ""


def check_described(vm: str, described: VmDescription) -> None:
    """Raise InvalidInput unless what a node says of a VM may be told to other nodes, where it becomes names of files
    and lines of configurations."""
    check_name(described.name)
    for id in (vm, *(volume.id for volume in described.volumes)):
        if not SAFE_ID.match(id):
            raise InvalidInput(f"{id[:80]!r} is not an id", field="vm")
    for volume in described.volumes:
        check_name(volume.pool, "pool")
    if described.spec.address is not None and check_interface(described.spec.address) != described.spec.address:
        raise InvalidInput(f"{described.spec.address[:80]!r} is not in canonical form", field="address")
    for nic in described.spec.nics:
        if nic.address is not None:
            network.check_address(nic.address, "nics")
        if nic.address6 is not None and str(ipv6.check_address(nic.address6, "nics")) != nic.address6:
            raise InvalidInput(f"{nic.address6[:80]!r} is not in canonical form", field="nics")


class UnreconciledVm(msgspec.Struct, frozen=True):
    """A VM of which a node knows more than the database, as the API shows it."""

    id: str
    vm: str
    vm_name: str
    """As the node knows it, or the database; the VM's id, if neither does."""
    node: str
    contradiction: Contradiction
    epoch: int
    """The node's; of one whose record is damaged, one that it can't have reached. The next epoch is above it."""
    claim: Claim
    reason: str
    description: dict[str, Any] | None
    """A ``VmDescription``, in the words of the node's version."""
    revision: int
    created_at: datetime
    project: str | None = None
    proven: bool = True
    """False: the node can't show that a server has told it so, and nobody but the node is concerned."""
