"""Disks of simulated VMs, which are there as files that name them, and their replicas on other hosts.

A disk is what the product says it is until it says that the VM goes on from another one: of a replica, or an empty one.
Rounds of replicas are simulated, as is how a disk is made of a point; what is done about them, the product decides.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER
from novacron.disk.errors import Unacceptable
from novacron.model.replica import Replica, ReplicaPhase
from novacron.model.replica_source import ReplicaSource
from novacron.model.vm import CloneOf
from novacron.model.waiting import WaitCode
from novacron.store import replicas
from novacron.store.database import Connection
from novacron.wire import messages as wire
from novacron.wire.replicas import PointStands

if TYPE_CHECKING:
    from tests.simulation.host import SimulatedHost
    from tests.simulation.machine import SimulatedMachine
    from tests.simulation.world import World

GONE = "gone"
"""Users have taken the disk away: whatever is there is as good."""
DISCARDED = "discarded"
"""An operator wants an empty one."""
POINTS = "points.json"


class Disks:
    """Which disk of each VM is the one that counts."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.current: dict[str, str] = {}
        self.endangered: set[str] = set()
        """VMs of which users have taken replicas away: their disk may be lost."""

    def make(self, vm: str, directory: Path) -> str:
        """Write a new disk into a VM's directory; return its name."""
        name = f"{vm}-{next(self._numbers)}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / DISK_LAYER).write_text(name)
        return name

    def objection(self, vm: str, directory: Path) -> str:
        """Say what is wrong with a guest that begins with the disk in this directory, or with a new one if there is
        none; nothing: it may."""
        path = directory / DISK_LAYER
        counts = self.current.get(vm, DISCARDED)
        if not path.exists():
            self.current[vm] = self.make(vm, directory)
            return "" if counts in (GONE, DISCARDED) else f"it begins with an empty disk, though {counts} is its disk"
        name = path.read_text()
        if counts == GONE:
            self.current[vm] = name
        elif name != counts:
            return f"it begins with disk {name}, though {counts} is its disk"
        return ""

    def take_away(self, vm: str, directory: Path) -> bool:
        """Users remove or replace a host's state folder; say whether the VM's disk was in it."""
        if any((directory / "replicas").glob(f"*/{POINTS}")):
            self.endangered.add(vm)
        was = self.is_there(vm, directory)
        if was:
            self.current[vm] = GONE
        return was

    def is_there(self, vm: str, directory: Path) -> bool:
        """Say whether the VM's disk is in this state folder."""
        path = directory / "vms" / vm / DISK_LAYER
        return path.exists() and path.read_text() == self.current.get(vm)

    def put_back(self, vm: str, directory: Path) -> None:
        """An earlier state folder takes the place of the one that had the VM's disk: what is in it counts."""
        path = directory / "vms" / vm / DISK_LAYER
        if path.exists():
            self.current[vm] = path.read_text()

    def copied(self, vm: str, directory: Path) -> None:
        """A state folder was copied: what the guest writes from now on is in the original alone."""
        if (directory / "vms" / vm / DISK_LAYER).exists():
            self.make(vm, directory / "vms" / vm)


def points_of(host: SimulatedHost, replica: str) -> dict[int, str]:
    """Return the points of a replica that a host keeps: their numbers, and the disks of which they are."""
    path = host.directory / "replicas" / replica / POINTS
    return msgspec.json.decode(path.read_bytes(), type=dict[int, str]) if path.exists() else {}


async def make_of_replica(context: VmContext, source: ReplicaSource, vm: str) -> None:
    """Stands in for ``replica_disk.make``. Raises Unacceptable."""
    machine: SimulatedMachine = context.machine  # type: ignore[assignment]  # it is one here
    host = machine.agent.host
    machine.agent.check_alive()
    points = points_of(host, source.replica)
    if source.point not in points and not (source.or_newest and points):
        raise Unacceptable(f"point {source.point} of its replica is no longer on this node", WaitCode.FILE_LOST)
    held = context.record.held
    async with host.world.database.connection() as connection:
        row = await connection.fetchrow("SELECT node, epoch, clone_of FROM vms WHERE id = $1", context.vm)
    made = host.world.disks.make(context.vm, machine.directory)
    of = None if row is None or row["clone_of"] is None else msgspec.convert(row["clone_of"], CloneOf)
    asked = of is not None and of.replica is not None and of.replica.replica == source.replica
    if row is not None and asked and (row["node"], row["epoch"]) == (host.name, held.epoch):
        host.world.disks.current[context.vm] = made


async def rounds(world: World) -> None:
    """A round of every replica whose VM runs, and which its node reaches."""

    async def read(connection: Connection) -> tuple[list[Replica], dict[str, str | None]]:
        rows = await connection.fetch("SELECT r.*, v.node AS owner FROM replicas r LEFT JOIN vms v ON v.id = r.vm")
        return [replicas.of_row(row) for row in rows], {row["id"]: row["owner"] for row in rows}

    async with world.database.connection() as connection:
        every, owners = await read(connection)
    for replica in every:
        _round(world, replica, owners[replica.id])


def _round(world: World, replica: Replica, owner: str | None) -> None:
    host = world.hosts[replica.node]
    if not host.works:
        return
    points = points_of(host, replica.id)
    path = host.directory / "replicas" / replica.id / POINTS
    if replica.phase is ReplicaPhase.DELETING:
        path.unlink(missing_ok=True)
        host.agent.say(wire.ReplicaStands(replica.id, (), 0, gone=True))
        return
    disk = None if owner in (None, host.name) else _disk_there(world, world.hosts[str(owner)], replica)
    if disk is not None:
        number = max([0, *points, *(point.number for point in replica.points)]) + 1
        points = dict(sorted({**points, number: disk}.items())[-replica.points_kept :])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(points))
    if disk is not None or set(points) != {point.number for point in replica.points}:
        stands = tuple(PointStands(number, 0.0, 1, quiesced=False) for number in points)
        host.agent.say(wire.ReplicaStands(replica.id, stands, 1))


def _disk_there(world: World, source: SimulatedHost, replica: Replica) -> str | None:
    """Return the disk of a replica's VM if its node can send a round."""
    running = [qemu for qemu in source.qemus.values() if qemu.vm == replica.vm and qemu.run_state == "running"]
    if not (
        source.works and running and world.is_up(source.name, replica.node) and world.is_up(replica.node, source.name)
    ):
        return None
    path = source.directory / "vms" / replica.vm / DISK_LAYER
    return path.read_text() if path.exists() else None
