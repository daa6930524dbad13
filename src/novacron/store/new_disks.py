"""Disks that are made with a VM beside its own: volumes, on the node where the VM is placed for their sake."""

from __future__ import annotations

from collections.abc import Sequence

from novacron.model.errors import Conflict, InvalidInput, NovaError
from novacron.model.node import Node
from novacron.model.vm import Vm, VmSpec
from novacron.model.volume import LUNS, NewDisk, PoolKind
from novacron.store import fleet, nodes, volumes
from novacron.store.database import Connection
from novacron.store.volumes import Attachment, NewVolume


def check(disks: Sequence[NewDisk], spec: VmSpec) -> None:
    """Raise InvalidInput when a VM can't have these disks."""
    for number, disk in enumerate(disks):
        bus = disk.bus or spec.disk_bus
        if number >= LUNS[bus]:
            raise InvalidInput(
                f"disk {number + 2} can't be on bus {bus}, which takes {LUNS[bus] + 1} disks", field="disks",
                hint="use virtio or scsi for it",
            )  # fmt: skip


async def choose_node(connection: Connection, disks: Sequence[NewDisk], spec: VmSpec, project: str) -> str:
    """Return a node with room for a VM and its disks. Raises NotFound, NoCapacity."""
    refused: NovaError | None = None
    for node in sorted(await nodes.all(connection), key=lambda node: -_free_bytes(node, disks)):
        try:
            for disk in disks:
                volumes.choose_pool([node], NewVolume("", disk.pool, disk.size_mib, node.name, disk.image))
            await fleet.check(connection, node.name, spec, project)
        except NovaError as error:
            refused = refused or error
        else:
            return node.name
    assert refused is not None, "there are no nodes, or the image was not found"
    raise refused


def _free_bytes(node: Node, disks: Sequence[NewDisk]) -> int:
    named = {disk.pool for disk in disks}
    return min((pool.bytes_free for pool in volumes.pools_of(node) if pool.name in named), default=0)


async def make(connection: Connection, vm: Vm, disks: Sequence[NewDisk], actor: str) -> None:
    """Ask for the disks of a VM that is on a node. Raises what ``volumes.create`` does."""
    for number, disk in enumerate(disks, 2):
        name = f"{vm.name[:48].rstrip('-')}-disk{number}"
        new = NewVolume(name, disk.pool, disk.size_mib, vm.node, disk.image)
        volume = await volumes.create(connection, vm.project, new, actor)
        if vm.spec.ha and volume.kind is PoolKind.LOCAL:
            raise Conflict(
                f"a highly available VM can't have a disk in pool {disk.pool}, which is on one node only",
                field="disks", hint="use a shared pool",
            )  # fmt: skip
        how = Attachment(boot_order=disk.boot_order, bus=disk.bus or vm.spec.disk_bus)
        await volumes.place(connection, volume.id, vm, how, with_vm=True)
