"""The fleet in memory, as placement sees it, kept up to date by the change feed.

What is decided here is checked in the transaction that writes it (``fleet.choose``, ``fleet.place_waiting``): the index
may lag behind the database, and then costs a second look, never a wrong placement.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgspec

from novacron.model.constraints import Placement
from novacron.model.devices import CpuPolicy, HugePages
from novacron.model.groups import groups_of_project, is_grouped, places_of
from novacron.model.network import Network
from novacron.model.node import Node
from novacron.model.placement import Fleet, Wish
from novacron.store.feed import Change
from novacron.store.rows import report_bad_row

ALONE = Placement()
PREPARE_NODES = 100
"""Nodes that are compared before others have a turn: about a millisecond."""


class Size(NamedTuple):
    """What of a VM takes room, or concerns others."""

    vcpus: int
    memory_mib: int
    placement: Placement = ALONE
    devices: tuple[str, ...] = ()
    cpu_policy: CpuPolicy = CpuPolicy.SHARED
    hugepages: HugePages = HugePages.NONE


class _Vm(NamedTuple):
    size: Size
    node: str | None


class FleetIndex:
    """All nodes and what is placed on them. ``changed`` hears of every change, ``clear`` when some may be missing: then
    everything is announced again."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.ready = False
        """False until everything was announced."""
        self._vms: dict[str, _Vm] = {}
        self._targets: dict[str, tuple[str, str]] = {}
        """Of each VM that is on its way: the migration, and where to."""
        self._counted: dict[str, tuple[Size, tuple[str, ...]]] = {}
        """What of each VM is counted in the fleet, and on which nodes."""

    def clear(self) -> None:
        """Forget everything: it is announced again at once."""
        self.fleet = Fleet()
        self._vms.clear()
        self._targets.clear()
        self._counted.clear()
        self.ready = True

    def changed(self, change: Change) -> None:
        """Take a change into account. An object that can't be decoded counts as gone."""
        apply = {"vm": self._vm, "node": self._node, "migration": self._migration, "network": self._network}
        if change.kind not in apply:
            return
        try:
            apply[change.kind](change.key, change.body)
        except (msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
            report_bad_row(f"{change.kind}s", change.key, error)
            apply[change.kind](change.key, None)

    def assume(self, id: str, node: str | None) -> None:
        """Count a VM that waits on a node (None: on none any more), until the feed says where it is."""
        vm = self._vms.get(id)
        if vm is not None:
            self._vms[id] = vm._replace(node=node)
            self._recount(id)

    async def prepare(self, wish: Wish) -> None:
        """Compare nodes for a VM that is to be placed soon, a part at a time, so that readers are not held up."""
        for _ in range(0, len(self.fleet.nodes) + PREPARE_NODES, PREPARE_NODES):
            if not self.fleet.prepare(wish, PREPARE_NODES):
                return
            await asyncio.sleep(0)

    def _node(self, name: str, body: dict[str, Any] | None) -> None:
        if body is None:
            self.fleet.forget(name)
            return
        node, before = msgspec.convert(body, Node), self.fleet.nodes.get(name)
        if before is not None and places_of(before) == places_of(node):
            self.fleet.put(node)
            return
        # What is counted for its VMs is counted under other places, or nowhere.
        here = [id for id, (size, nodes) in self._counted.items() if name in nodes and is_grouped(size)]
        if before is None:
            here = [id for id, vm in self._vms.items() if name in (vm.node, self._targets.get(id, ("", ""))[1])]
        for id in here:
            self._count(id, None, ())
        self.fleet.put(node)
        for id in here:
            self._recount(id)

    def _vm(self, id: str, body: dict[str, Any] | None) -> None:
        if body is None:
            self._vms.pop(id, None)
        else:
            self._vms[id] = _Vm(_size(body), body["node"])
        self._recount(id)

    def _migration(self, id: str, body: dict[str, Any] | None) -> None:
        if body is not None and body["finished_at"] is None:
            self._targets[body["vm"]] = id, body["target"]
            self._recount(body["vm"])
            return
        for vm in [body["vm"]] if body is not None else [vm for vm, (m, _) in self._targets.items() if m == id]:
            if self._targets.get(vm, ("", ""))[0] == id:
                del self._targets[vm]
                self._recount(vm)

    def _network(self, name: str, body: dict[str, Any] | None) -> None:
        self.fleet.forget_network(name)
        if body is not None:
            self.fleet.put_networks([msgspec.convert(body, Network)])

    def _recount(self, id: str) -> None:
        """Count a VM where it is now, and where it is on its way to."""
        vm = self._vms.get(id)
        if vm is None:
            self._count(id, None, ())
            return
        places = (vm.node, self._targets[id][1] if id in self._targets else None)
        self._count(id, vm.size, tuple(dict.fromkeys(name for name in places if name in self.fleet.nodes and name)))

    def _count(self, id: str, size: Size | None, nodes: tuple[str, ...]) -> None:
        before = self._counted.pop(id, None)
        if size is not None and nodes:
            self._counted[id] = size, nodes
        if before == (size, nodes):
            return
        if before is not None:
            for name in before[1]:
                if name in self.fleet.nodes:
                    self.fleet.remove(id, before[0], name)
        if size is not None:
            for name in nodes:
                self.fleet.add(id, size, name)


def _size(body: dict[str, Any]) -> Size:
    spec = body["spec"]
    size = Size(spec["vcpus"], spec["memory_mib"])
    if "cpu_policy" in spec:  # an old row has none
        size = size._replace(cpu_policy=CpuPolicy(spec["cpu_policy"]), hugepages=HugePages(spec["hugepages"]))
    if not body["grouped"]:
        return size
    placement = groups_of_project(msgspec.convert(spec["placement"], Placement), body["project"])
    return size._replace(placement=placement, devices=tuple(spec["devices"]))
