"""Which node a VM goes to: filters that refuse with a reason, and weights among those that are left. Pure.

A ``Fleet`` is all nodes with what is on them. What is placed in it is counted at once, so many VMs can be placed one
after another without a look at anything else. VMs that ask for the same are compared with every node once: afterwards
only nodes that got something are looked at again, since what is placed on a node never makes it better.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from novacron.model import limits
from novacron.model.constraints import Effect, Scope
from novacron.model.cpu import named
from novacron.model.network import TUNNEL_BYTES, Encryption, Network, NetworkKind
from novacron.model.node import Inventory, Load, Node, holds
from novacron.model.vm import VmSpec, VmStatus

MEMORY_WEIGHT, CPU_WEIGHT, SPACE_WEIGHT = 0.5, 0.25, 0.05
"""Of the share of a node's memory, processors and disk that is free once the VM is there."""
IMAGE_WEIGHT = 0.3
"""Of a node that holds the VM's image: no other has to send it."""
PAGES_WEIGHT = 0.5
"""Of a node that the VM has been on lately: most of its memory need not be sent again."""
AVOID_WEIGHT = 2.0
"""Against a node that the VM should avoid: more than all others together."""

NOWHERE: Mapping[str, str] = {}
NO_NETWORKS: Mapping[str, Network] = {}
Shape = tuple[object, ...]


class Wish(NamedTuple):
    """A VM that is to be placed, or moved."""

    id: str
    spec: VmSpec
    at: str | None = None
    """Where it is: it can't be moved there."""
    elsewhere: Mapping[str, str] = NOWHERE
    """Nodes that can't take it for reasons of its own, such as its volumes, and those reasons."""
    been: frozenset[str] = frozenset()
    """Nodes that hold pages of its memory."""


class Verdict(msgspec.Struct, frozen=True):
    """What is said of one node: why it can't take the VM, or how good it would be, and by what."""

    node: str
    refusal: str | None
    score: float = 0.0
    """Higher is better."""
    weights: dict[str, float] = {}
    spread: tuple[int, ...] = ()
    """VMs of its spread group in the node's site, in its zone and on it: fewer is better, before the score counts."""

    @property
    def order(self) -> tuple[object, ...]:
        return tuple(-count for count in self.spread), self.score, self.node


class Member(NamedTuple):
    """A VM that is somewhere already, as far as groups are concerned."""

    id: str
    node: str
    spec: VmSpec


class _Groups:
    """How many VMs of each group are in each place."""

    def __init__(self) -> None:
        self.affinity: dict[str, dict[str, str]] = {}
        """Of each group: the members, and their nodes."""
        self.anti: dict[str, Counter[tuple[Scope, str]]] = {}
        self.spread: dict[str, Counter[tuple[Scope, str]]] = {}


def places_of(node: Node) -> dict[Scope, str]:
    """Return the names under which a node's places are counted: a zone is one of its site."""
    site = node.spec.site
    return {Scope.SITE: site, Scope.ZONE: f"{site}/{node.spec.zone}", Scope.NODE: node.name}


def _grouped(spec: VmSpec) -> bool:
    where = spec.placement
    return (where.affinity, where.anti_affinity, where.spread) != (None, None, None) or bool(spec.devices)


def _shape(spec: VmSpec) -> Shape:
    """Return what decides about nodes, the same for VMs that ask for the same."""
    where = spec.placement
    labels = tuple(sorted(where.labels.items()))
    size = spec.vcpus, spec.memory_mib, spec.disk_mib
    networks = frozenset(nic.network for nic in spec.nics)
    return spec.image, spec.firmware, spec.tpm, size, labels, where.tolerations, networks, spec.cpu_flags, spec.devices


class Fleet:
    """All nodes, what is on them, and what is placed there from now on."""

    def __init__(
        self, nodes: Iterable[Node], loads: Mapping[str, Load], members: Iterable[Member] = (),
        networks: Iterable[Network] = (), *, images_come: bool = True,
    ) -> None:  # fmt: skip
        """``images_come``: a node that lacks an image may get it from another one that is ready."""
        self.nodes = {node.name: node for node in nodes}
        self._networks = {network.name: network for network in networks}
        self.loads = {name: loads.get(name, Load()) for name in self.nodes}
        self._capacity = {name: capacity(node) for name, node in self.nodes.items()}
        self._places = {name: places_of(node) for name, node in self.nodes.items()}
        self._held = {
            image.name
            for node in self.nodes.values()
            if images_come and node.status.ready and node.status.inventory is not None
            for image in node.status.inventory.images
        }
        self._groups = _Groups()
        self._devices: dict[str, Counter[str]] = {name: Counter() for name in self.nodes}
        """Those that VMs have."""
        self._never: dict[Shape, dict[str, str | None]] = {}
        self._may: dict[Shape, list[str]] = {}
        self._scores: dict[Shape, dict[str, tuple[int, float]]] = {}
        self._best: dict[Shape, list[tuple[float, str, int]]] = {}
        self._changed: Counter[str] = Counter()
        for member in members:
            if member.node in self.nodes:
                self._count(member.id, member.node, member.spec, 1)

    def judge(self, wish: Wish, name: str) -> Verdict:
        """Say what speaks for or against one node."""
        why = self._refusal(wish, name)
        if why is not None:
            return Verdict(name, why)
        weights = self._weights(wish, name)
        return Verdict(name, None, round(sum(weights.values()), 4), weights, self._spread(wish.spec, name))

    def explain(self, wish: Wish) -> list[Verdict]:
        """Judge every node: those that can take the VM first, the best of them first of all."""
        verdicts = [self.judge(wish, name) for name in self.nodes]
        fit = sorted((v for v in verdicts if v.refusal is None), key=lambda v: v.order, reverse=True)
        return fit + sorted((v for v in verdicts if v.refusal is not None), key=lambda v: v.node)

    def choose(self, wish: Wish) -> str | None:
        """Return the best node, None if there is none."""
        if _grouped(wish.spec) or wish.at is not None or wish.elsewhere or wish.been:
            return self._choose_among_all(wish)
        shape = _shape(wish.spec)
        heap = self._best.get(shape)
        if heap is None:
            heap = self._best[shape] = [
                (-self._score(wish, shape, name), name, self._changed[name])
                for name in self._allowed(wish, shape)
                if self._refusal(wish, name) is None
            ]
            heapq.heapify(heap)
        while heap:
            _, name, changed = heap[0]
            if changed == self._changed[name]:
                return name
            if self._refusal(wish, name) is not None:  # it is fuller than it was, and stays so
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (-self._score(wish, shape, name), name, self._changed[name]))
        return None

    def _choose_among_all(self, wish: Wish) -> str | None:
        shape, spec, where = _shape(wish.spec), wish.spec, wish.spec.placement
        together, apart = self._together(wish), self._taken(wish)
        scope, spread = where.anti_affinity_scope, self._groups.spread.get(where.spread or "")
        best: tuple[tuple[int, ...], float, str] | None = None
        for name in self._allowed(wish, shape):
            load, (memory_mib, vcpus) = self.loads[name], self._capacity[name]
            if spec.memory_mib > int(memory_mib) - load.memory_mib or spec.vcpus > vcpus - load.vcpus:
                continue
            if name == wish.at or name in wish.elsewhere or (together and name not in together):
                continue
            if self._taken_devices(wish, name) is not None:
                continue
            if apart and self._places[name][scope] in apart:
                continue
            fewest = () if spread is None else self._counts(spread, name)
            order = tuple(-count for count in fewest), self._score(wish, shape, name), name
            best = order if best is None else max(best, order)
        return None if best is None else best[2]

    def _allowed(self, wish: Wish, shape: Shape) -> list[str]:
        """Return the nodes that could take VMs like this one, if they had room."""
        found = self._may.get(shape)
        if found is None:
            found = self._may[shape] = [
                name for name, node in self.nodes.items() if self._ever(node, wish.spec) is None
            ]
        return found

    def _score(self, wish: Wish, shape: Shape, name: str) -> float:
        if wish.been:
            return sum(self._weights(wish, name).values())
        known = self._scores.setdefault(shape, {})
        changed, score = known.get(name, (-1, 0.0))
        if changed != self._changed[name]:
            score = sum(self._weights(wish, name).values())
            known[name] = self._changed[name], score
        return score

    def place(self, wish: Wish) -> str | None:
        """Choose a node for the VM, and count it there."""
        name = self.choose(wish)
        if name is not None:
            self.take(wish, name)
        return name

    def take(self, wish: Wish, name: str) -> None:
        """Count a VM on a node, and not where it was."""
        spec, load = wish.spec, self.loads[name]
        self.loads[name] = Load(load.vcpus + spec.vcpus, load.memory_mib + spec.memory_mib)
        self._changed[name] += 1
        self._count(wish.id, name, spec, 1)
        if wish.at is not None and wish.at in self.nodes:
            self.leave(wish, wish.at)

    def leave(self, wish: Wish, name: str) -> None:
        """Count a VM no longer on a node: it may be the best again for what was compared before."""
        spec, load = wish.spec, self.loads[name]
        self.loads[name] = Load(load.vcpus - spec.vcpus, load.memory_mib - spec.memory_mib)
        self._best.clear()
        self._changed[name] += 1
        self._count(wish.id, name, spec, -1)

    def _count(self, id: str, name: str, spec: VmSpec, by: int) -> None:
        where, groups, places = spec.placement, self._groups, self._places[name]
        for device in spec.devices:
            self._devices[name][device] += by
        if where.affinity is not None:
            members = groups.affinity.setdefault(where.affinity, {})
            if by > 0:
                members[id] = name
            elif members.get(id) == name:
                del members[id]
        for group, counts in ((where.anti_affinity, groups.anti), (where.spread, groups.spread)):
            if group is not None:
                counter = counts.setdefault(group, Counter())
                for scope, place in places.items():
                    counter[scope, place] += by

    def _refusal(self, wish: Wish, name: str) -> str | None:
        if name == wish.at:
            return f"it is on node {name} already"
        node, spec = self.nodes[name], wish.spec
        return (
            self._ever(node, spec)
            or wish.elsewhere.get(name)
            or no_room(node, self.loads[name], spec)
            or self._apart(wish, name)
            or self._taken_devices(wish, name)
        )

    def _ever(self, node: Node, spec: VmSpec) -> str | None:
        """Say what would keep a VM away from a node, however much room that has."""
        known = self._never.setdefault(_shape(spec), {})
        if node.name not in known:
            known[node.name] = refusal(node, spec, spec.image in self._held, self._networks)
        return known[node.name]

    def _apart(self, wish: Wish, name: str) -> str | None:
        where = wish.spec.placement
        together = self._together(wish)
        if together and name not in together:
            return f"its affinity group {where.affinity} is on node {min(together)}"
        scope = where.anti_affinity_scope
        place = self._places[name][scope]
        if place in self._taken(wish):
            return f"{scope} {place} has a VM of its anti-affinity group {where.anti_affinity} already"
        return None

    def _taken_devices(self, wish: Wish, name: str) -> str | None:
        if not wish.spec.devices:
            return None
        gives, taken = given_devices(self.nodes[name]), self._devices[name]
        for id, count in Counter(wish.spec.devices).items():
            if count > gives[id] - taken[id]:
                return f"node {name} has {taken[id]} of its {gives[id]} devices {id} in use"
        return None

    def _together(self, wish: Wish) -> set[str]:
        """Return the nodes where its affinity group is; none if it may be anywhere."""
        members = self._groups.affinity.get(wish.spec.placement.affinity or "", {})
        return {at for id, at in members.items() if id != wish.id and not self.nodes[at].spec.cordoned}

    def _taken(self, wish: Wish) -> set[str]:
        """Return the places where another VM of its anti-affinity group is."""
        where = wish.spec.placement
        counts = self._groups.anti.get(where.anti_affinity or "")
        if counts is None:
            return set()
        scope = where.anti_affinity_scope
        itself = self._places.get(wish.at or "", {}).get(scope)
        return {place for (kind, place), count in counts.items() if kind is scope and count > (place == itself)}

    def _spread(self, spec: VmSpec, name: str) -> tuple[int, ...]:
        group = spec.placement.spread
        return () if group is None else self._counts(self._groups.spread.get(group, Counter()), name)

    def _counts(self, counts: Counter[tuple[Scope, str]], name: str) -> tuple[int, ...]:
        places = self._places[name]
        return tuple([counts[scope, places[scope]] for scope in (Scope.SITE, Scope.ZONE, Scope.NODE)])

    def _weights(self, wish: Wish, name: str) -> dict[str, float]:
        node, load, spec = self.nodes[name], self.loads[name], wish.spec
        memory_mib, vcpus = self._capacity[name]
        weights = {
            "memory": MEMORY_WEIGHT * (1.0 - (load.memory_mib + spec.memory_mib) / max(1.0, memory_mib)),
            "cpu": CPU_WEIGHT * (1.0 - (load.vcpus + spec.vcpus) / max(1.0, vcpus)),
        }
        space = _free_share(node)
        if space:
            weights["space"] = SPACE_WEIGHT * space
        if holds(node, spec.image):
            weights["image"] = IMAGE_WEIGHT
        if name in wish.been:
            weights["pages"] = PAGES_WEIGHT
        if any(t.effect is Effect.AVOID and t.key not in spec.placement.tolerations for t in node.spec.taints):
            weights["avoid"] = -AVOID_WEIGHT
        return weights


def _free_share(node: Node) -> float:
    pools = () if node.status.inventory is None else node.status.inventory.pools
    local = next((pool for pool in pools if pool.name == limits.LOCAL_POOL), None)
    return 0.0 if local is None else local.bytes_free / max(1, local.bytes_total)


def capacity(node: Node) -> tuple[float, float]:
    """Return how many MiB of memory and how many vCPUs may be placed on a node."""
    inventory = node.status.inventory
    if inventory is None:
        return 0.0, 0.0
    memory_mib = (inventory.memory_mib - limits.NODE_MEMORY_RESERVE_MIB) * node.spec.memory_overcommit
    return memory_mib, inventory.cpus * node.spec.vcpu_overcommit


def refusal(node: Node, vm: VmSpec, image_comes: bool, networks: Mapping[str, Network] = NO_NETWORKS) -> str | None:
    """Say why a VM can't be placed on a node, however much room it has, or None if it can. ``image_comes``: another
    node has its image. ``networks`` are all that there are."""
    inventory = node.status.inventory
    if not node.status.ready or inventory is None:
        return f"node {node.name} is not ready: {node.status.reason}"
    if node.spec.cordoned:
        return f"node {node.name} is cordoned"
    where = vm.placement
    for key, value in where.labels.items():
        if node.spec.labels.get(key) != value:
            return f"node {node.name} does not have the label {key}={value}"
    for taint in node.spec.taints:
        if taint.effect is Effect.NO_SCHEDULE and taint.key not in where.tolerations:
            return f"node {node.name} has the taint {taint.key}, which the VM does not tolerate"
    if not image_comes and not holds(node, vm.image):
        return f"node {node.name} does not hold image {vm.image}"
    if vm.firmware not in inventory.firmware:
        return f"node {node.name} has no firmware {vm.firmware}: apt-get install ovmf"
    if vm.tpm and not inventory.tpm:
        return f"node {node.name} has no TPM for VMs: apt-get install swtpm"
    missing = [] if inventory.cpu is None else inventory.cpu.lacks(vm.cpu_flags)
    if missing:
        return f"node {node.name} has no processor with {named(missing)}"
    gives = given_devices(node)
    for id, count in Counter(vm.devices).items():
        if count > gives[id]:
            return f"node {node.name} gives {gives[id] or 'no'} devices {id} to VMs, {count} needed"
    for nic in vm.nics:
        why = _lacks(inventory, networks[nic.network]) if nic.network in networks else f"there is no {nic.network}"
        if why is not None:
            return f"node {node.name} can't have network {nic.network}: {why}"
    return None


def given_devices(node: Node) -> Counter[str]:
    """Return how many devices of each id a node gives to VMs: those that are listed, and kept within their guests."""
    has = node.status.inventory
    devices = () if has is None or has.hardware is None else has.hardware.devices
    return Counter(one.id for one in devices if one.address in node.spec.passthrough and one.iommu_group is not None)


def _lacks(has: Inventory, network: Network) -> str | None:
    """Say why a node can't have a network, or None if it can."""
    if not has.networks:
        return "it lacks what networks need, see what it misses"
    if network.spec.kind is NetworkKind.BRIDGE:
        return None if network.spec.bridge in has.bridges else f"it has no bridge {network.spec.bridge}"
    if network.spec.encryption is Encryption.ALWAYS and not has.wireguard:
        return "it can't encrypt it, see what it misses"
    carries = has.tunnel_mtu - TUNNEL_BYTES
    return f"it carries {carries} bytes at most, not {network.mtu}" if carries < network.mtu else None


def no_room(node: Node, load: Load, vm: VmSpec) -> str | None:
    """Say why a VM would overfill a node that carries ``load``, or None if it would not."""
    if node.status.inventory is None:
        return f"node {node.name} has not said what it has"
    memory_mib, vcpus = capacity(node)
    room_mib = int(memory_mib) - load.memory_mib
    if vm.memory_mib > room_mib:
        return f"node {node.name} is full: {max(room_mib, 0)} MiB of memory free, {vm.memory_mib} MiB needed"
    if vm.vcpus > vcpus - load.vcpus:
        return f"node {node.name} is full: {load.vcpus} of {vcpus:g} vCPUs placed, {vm.vcpus} needed"
    return None


def unlike(every: Iterable[Node], status: VmStatus, *, runs: bool) -> dict[str, str]:
    """Return the nodes that can't give a VM what it was started with, and why. ``runs``: it moves while it does."""
    found = {}
    for node in every:
        has = node.status.inventory
        if has is None:
            continue
        why = None
        if status.machine and has.machines and status.machine not in has.machines:
            why = f"its QEMU {has.qemu_version} has no machine type {status.machine}"
        elif runs and status.accelerator and status.accelerator != has.accelerator.kind:
            why = f"it runs guests under {has.accelerator.kind}, not {status.accelerator}"
        elif status.cpu is not None and has.cpu is not None:
            why = has.cpu.cannot_be(status.cpu)
        if why is not None:
            found[node.name] = f"node {node.name} can't run it as it was started: {why}"
    return found
