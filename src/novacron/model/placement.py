"""Placement of VMs: filters that refuse nodes with a reason, and weights that rank the other nodes. Pure.

A ``Fleet`` has all nodes with their VMs. It counts each VM that it places at once, so it can place many VMs one after
another. VMs with the same requirements are compared with every node once, in a ``_Ranking``; afterwards only nodes that
have changed are looked at again.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from novacron.model.constraints import AntiAffinityScope, Effect
from novacron.model.devices import CpuPolicy, HugePages
from novacron.model.fit import capacity, free_share, given_devices, no_room, refusal
from novacron.model.groups import Groups, Occupant, is_grouped, places_of
from novacron.model.network import Network
from novacron.model.node import Load, Node, holds
from novacron.model.vm import VmSpec

MEMORY_WEIGHT, CPU_WEIGHT, SPACE_WEIGHT = 0.5, 0.25, 0.05
"""Weights of the share of a node's memory, processors and disk that is free after the VM is placed."""
IMAGE_WEIGHT = 0.3
"""Weight of a node that holds the VM's image: no other node has to send it."""
PAGES_WEIGHT = 0.5
"""Weight of a node that the VM has been on lately: most of its memory need not be sent again."""
AVOID_WEIGHT = 2.0
"""Weight against a node that the VM should avoid: more than all other weights together."""

NOWHERE: Mapping[str, str] = {}
Shape = tuple[object, ...]
RANKINGS_MAX = 64
"""The most rankings that are kept. The least recently used one is dropped first."""
HEAP_FACTOR_MAX = 4
"""Entries of a ranking's heap for each node, outdated ones included, before the heap is rebuilt."""


class Wish(NamedTuple):
    """A VM to place or to move."""

    id: str
    spec: VmSpec
    at: str | None = None
    """The node where it is. It can't be moved there."""
    elsewhere: Mapping[str, str] = NOWHERE
    """Nodes that can't take this particular VM, for example because of its volumes, with the reasons."""
    been: frozenset[str] = frozenset()
    """Nodes that hold pages of its memory."""
    images_come: bool = True
    """A node without the image may get it from another node that is ready."""
    refuses: Callable[[Node], str | None] | None = None
    """Returns why a node can't take this particular VM, or None. Like ``elsewhere``, but computed on demand."""


class Verdict(msgspec.Struct, frozen=True):
    """The verdict on one node: why it can't take the VM, or its score with the weights that make it up."""

    node: str
    refusal: str | None
    score: float = 0.0
    """Higher is better."""
    weights: dict[str, float] = {}
    spread: tuple[int, ...] = ()
    """VMs of the spread group in the node's site, in its zone and on it. Fewer is better, and precedes the score."""

    @property
    def order(self) -> tuple[object, ...]:
        return tuple(-count for count in self.spread), self.score, self.node


class Member(NamedTuple):
    """A placed VM, as a member of groups."""

    id: str
    node: str
    spec: Occupant


def _shape(wish: Wish) -> Shape:
    """Return the requirements that decide on nodes. VMs with equal ones share a ranking."""
    spec, where = wish.spec, wish.spec.placement
    labels = tuple(sorted(where.labels.items()))
    size = spec.vcpus, spec.memory_mib, spec.disk_mib
    networks = frozenset(nic.network for nic in spec.nics)
    return (
        wish.images_come, spec.image, spec.firmware, spec.tpm, size, labels, where.tolerations, networks,
        spec.cpu_flags, spec.devices, spec.machine, tuple(spec.media), spec.cpu_policy, spec.hugepages,
    )  # fmt: skip


def _given(node: Node | None) -> set[str]:
    """Return the images that other nodes can copy from a node."""
    if node is None or not node.status.ready or node.status.inventory is None:
        return set()
    return {image.name for image in node.status.inventory.images}


class _Ranking:
    """The ranking of nodes for VMs of one shape.

    The heap has an entry for each node that may take such a VM. An outdated entry is noticed when it reaches the top;
    nodes that may have become better are ``dirty`` until the ranking is used again.
    """

    def __init__(self, wish: Wish, nodes: Iterable[str]) -> None:
        self.wish = wish
        self.refusals: dict[str, str | None] = {}
        """Why nodes can't take such a VM, however much room they have."""
        self.scores: dict[str, tuple[int, float]] = {}
        """Each node's score, with the version of the node that was scored."""
        self.heap: list[tuple[float, str, int]] = []
        self.queued: dict[str, int] = {}
        """The newest version in the heap of each node."""
        self.dirty = dict.fromkeys(nodes)


class Fleet:
    """All nodes with their VMs; it places further VMs."""

    def __init__(
        self, nodes: Iterable[Node] = (), loads: Mapping[str, Load] | None = None, members: Iterable[Member] = (),
        networks: Iterable[Network] = (), held: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """``held``: images of nodes that are not in this fleet."""
        self.nodes: dict[str, Node] = {}
        self.loads: dict[str, Load] = {}
        self._networks = {network.name: network for network in networks}
        self._capacity: dict[str, tuple[float, float]] = {}
        self._places: dict[str, dict[AntiAffinityScope, str]] = {}
        self._held = Counter(held)
        """The number of nodes from which each image can be copied."""
        self._groups = Groups()
        self._devices: dict[str, Counter[str]] = {}
        """The devices of each node that VMs use."""
        self._rankings: dict[Shape, _Ranking] = {}
        self._versions: Counter[str] = Counter()
        for node in nodes:
            self.put(node)
        for name, load in (loads or {}).items():
            if name in self.nodes:
                self.loads[name] = load
        for member in members:
            if member.node in self.nodes:
                self._count(member.id, member.node, member.spec, 1)

    # what is known of nodes

    def put(self, node: Node) -> None:
        """Add or update a node. Its VMs stay."""
        self._hold(self.nodes.get(node.name), node)
        self.nodes[node.name] = node
        self.loads.setdefault(node.name, Load())
        self._devices.setdefault(node.name, Counter())
        self._capacity[node.name], self._places[node.name] = capacity(node), places_of(node)
        self._renew(node.name)

    def forget(self, name: str) -> None:
        """Remove a node and its VMs."""
        if name not in self.nodes:
            return
        self._hold(self.nodes.pop(name), None)
        for by_node in (self.loads, self._devices, self._capacity, self._places):
            by_node.pop(name)
        self._renew(name)

    def put_networks(self, networks: Iterable[Network]) -> None:
        """Add or update networks."""
        self._networks.update((network.name, network) for network in networks)
        self._rankings.clear()

    def forget_network(self, name: str) -> None:
        self._networks.pop(name, None)
        self._rankings.clear()

    def held(self) -> set[str]:
        """Return the images that can be copied from some node."""
        return set(+self._held)

    def _hold(self, before: Node | None, now: Node | None) -> None:
        """Update the count of nodes that hold each image, after a node has changed."""
        gone, new = _given(before), _given(now)
        for image, by in [*((image, -1) for image in gone - new), *((image, 1) for image in new - gone)]:
            was_held = self._held[image] > 0
            self._held[image] += by
            if was_held != (self._held[image] > 0):
                for shape in [s for s, ranking in self._rankings.items() if ranking.wish.spec.image == image]:
                    del self._rankings[shape]

    def _renew(self, name: str) -> None:
        """Forget the rankings' results for a node that has changed."""
        self._versions[name] += 1
        for ranking in self._rankings.values():
            ranking.refusals.pop(name, None)
            ranking.dirty[name] = None

    # what is asked

    def judge(self, wish: Wish, name: str, ranking: _Ranking | None = None) -> Verdict:
        """Return the verdict on one node."""
        why = self._refusal(wish, name, ranking)
        if why is not None:
            return Verdict(name, why)
        weights = self._weights(wish, name)
        return Verdict(
            name,
            None,
            round(sum(weights.values()), 4),
            weights,
            self._groups.spread(wish.spec.placement, self._places[name]),
        )

    def explain(self, wish: Wish) -> list[Verdict]:
        """Return the verdicts on all nodes: the best node first, those that can't take the VM last."""
        ranking = self._ranking(wish)
        verdicts = [self.judge(wish, name, ranking) for name in self.nodes]
        fit = sorted((v for v in verdicts if v.refusal is None), key=lambda v: v.order, reverse=True)
        return fit + sorted((v for v in verdicts if v.refusal is not None), key=lambda v: v.node)

    def refusals(self, wish: Wish, text_max: int) -> list[str]:
        """Return why nodes can't take a VM, sorted by node, up to about ``text_max`` characters in all."""
        reasons, length, ranking = list[str](), 0, self._ranking(wish)
        for name in sorted(self.nodes):
            reason = self._refusal(wish, name, ranking)
            if reason is not None and name != wish.at:
                reasons.append(reason)
                length += len(reason)
            if length > text_max:
                break
        return reasons

    def choose(self, wish: Wish) -> str | None:
        """Return the best node, or None if no node can take the VM."""
        ranking = self._ranking(wish)
        self._look(ranking, len(ranking.dirty))
        return self._choose_among_all(wish, ranking) if is_grouped(wish.spec) else self._choose_ranked(wish, ranking)

    def prepare(self, wish: Wish, nodes_max: int) -> bool:
        """Look at up to ``nodes_max`` nodes for a VM that will be placed soon; return whether more nodes are left.

        The first comparison with every node takes long; this splits it into parts.
        """
        ranking = self._ranking(wish)
        self._look(ranking, nodes_max)
        return bool(ranking.dirty)

    def _ranking(self, wish: Wish) -> _Ranking:
        shape = _shape(wish)
        ranking = self._rankings.pop(shape, None) or _Ranking(wish, self.nodes)
        self._rankings[shape] = ranking
        if len(self._rankings) > RANKINGS_MAX:
            del self._rankings[next(iter(self._rankings))]
        return ranking

    def _look(self, ranking: _Ranking, nodes_max: int) -> None:
        """Look again at nodes that may have become better."""
        for _ in range(min(nodes_max, len(ranking.dirty))):
            name, _ = ranking.dirty.popitem()
            if name in self.nodes and self._ever(ranking, name) is None:
                self._queue(ranking, name)
        if len(ranking.heap) > HEAP_FACTOR_MAX * len(self.nodes) + RANKINGS_MAX:
            ranking.heap = [entry for entry in ranking.heap if ranking.queued.get(entry[1]) == entry[2]]
            heapq.heapify(ranking.heap)

    def _queue(self, ranking: _Ranking, name: str) -> None:
        """Push a node onto the heap with its present score, if it has room."""
        version = self._versions[name]
        if (
            ranking.queued.get(name) != version
            and no_room(self.nodes[name], self.loads[name], ranking.wish.spec) is None
        ):
            heapq.heappush(ranking.heap, (-self._score(ranking, name), name, version))
            ranking.queued[name] = version

    def _best_left(self, ranking: _Ranking) -> tuple[float, str, int] | None:
        """Return the first entry of the heap that is up to date. Outdated ones before it are renewed or dropped."""
        while ranking.heap:
            entry = ranking.heap[0]
            _, name, version = entry
            if name in self.nodes and version == self._versions[name]:
                return entry
            heapq.heappop(ranking.heap)
            if ranking.queued.get(name) == version:
                del ranking.queued[name]
                if name in self.nodes and self._ever(ranking, name) is None:
                    self._queue(ranking, name)
        return None

    def _choose_ranked(self, wish: Wish, ranking: _Ranking) -> str | None:
        """Return the best node of the ranking that can take the VM, or a better one that holds its pages."""
        best = max(
            (
                (self._score(ranking, name) + PAGES_WEIGHT, name)
                for name in wish.been
                if name in self.nodes and self._refusal(wish, name, ranking) is None
            ),
            default=None,
        )
        aside, chosen = list[tuple[float, str, int]](), None if best is None else best[1]
        while (entry := self._best_left(ranking)) is not None:
            if best is not None and -entry[0] <= best[0]:
                break
            if self._refusal(wish, entry[1], ranking) is None:
                chosen = entry[1]
                break
            aside.append(heapq.heappop(ranking.heap))
        for entry in aside:
            heapq.heappush(ranking.heap, entry)
        return chosen

    def _choose_among_all(self, wish: Wish, ranking: _Ranking) -> str | None:
        spec, where = wish.spec, wish.spec.placement
        together, apart = self._together(wish), self._taken(wish)
        scope = where.anti_affinity_scope
        best: tuple[tuple[int, ...], float, str] | None = None
        for name, never in ranking.refusals.items():
            if never is not None or name not in self.nodes or (together and name not in together):
                continue
            if not self._has_room(name, spec):
                continue
            if apart and self._places[name][scope] in apart:
                continue
            fewest = self._groups.spread(where, self._places[name])
            bonus = PAGES_WEIGHT if name in wish.been else 0.0
            order = tuple(-count for count in fewest), self._score(ranking, name) + bonus, name
            if (best is None or order > best) and self._own_refusal(wish, name) is None:
                best = order
        return None if best is None else best[2]

    def _has_room(self, name: str, spec: VmSpec) -> bool:
        """Say what ``no_room`` would; with sums that are known already where nothing is dedicated."""
        load = self.loads[name]
        if load.dedicated_vcpus or spec.cpu_policy is CpuPolicy.DEDICATED or spec.hugepages is not HugePages.NONE:
            return no_room(self.nodes[name], load, spec) is None
        memory_mib, vcpus = self._capacity[name]
        return spec.memory_mib <= int(memory_mib) - load.memory_mib and spec.vcpus <= vcpus - load.vcpus

    def _score(self, ranking: _Ranking, name: str) -> float:
        version, score = ranking.scores.get(name, (-1, 0.0))
        if version != self._versions[name]:
            score = sum(self._weights(ranking.wish._replace(been=frozenset()), name).values())
            ranking.scores[name] = self._versions[name], score
        return score

    # what is placed

    def place(self, wish: Wish) -> str | None:
        """Choose a node for the VM, and count it there."""
        name = self.choose(wish)
        if name is not None:
            self.take(wish, name)
        return name

    def take(self, wish: Wish, name: str) -> None:
        """Count a VM on a node, and no longer on the node where it was."""
        self.add(wish.id, wish.spec, name)
        if wish.at is not None and wish.at in self.nodes:
            self.leave(wish, wish.at)

    def leave(self, wish: Wish, name: str) -> None:
        """Stop counting a VM on a node."""
        self.remove(wish.id, wish.spec, name)

    def add(self, id: str, spec: Occupant, name: str) -> None:
        """Count a VM on a node of this fleet."""
        self.loads[name] = self.loads[name].changed(spec, 1)
        self._versions[name] += 1
        self._count(id, name, spec, 1)

    def remove(self, id: str, spec: Occupant, name: str) -> None:
        """Stop counting a VM on a node. Rankings look at the node again: it may now be the best."""
        self.loads[name] = self.loads[name].changed(spec, -1)
        self._versions[name] += 1
        for ranking in self._rankings.values():
            ranking.dirty[name] = None
        self._count(id, name, spec, -1)

    def _count(self, id: str, name: str, spec: Occupant, by: int) -> None:
        if not is_grouped(spec):
            return
        for device in spec.devices:
            self._devices[name][device] += by
        self._groups.count(id, spec.placement, name, self._places[name], by)

    # why not

    def _refusal(self, wish: Wish, name: str, ranking: _Ranking | None = None) -> str | None:
        if name == wish.at:
            return f"it is on node {name} already"
        return (
            self._ever(ranking or self._ranking(wish), name)
            or no_room(self.nodes[name], self.loads[name], wish.spec)
            or (self._apart(wish, name) if is_grouped(wish.spec) else None)
            or self._own_refusal(wish, name)
        )

    def _own_refusal(self, wish: Wish, name: str) -> str | None:
        """Return why a node can't take this particular VM, or None if it can."""
        if name == wish.at:
            return f"it is on node {name} already"
        return (
            wish.elsewhere.get(name)
            or (None if wish.refuses is None else wish.refuses(self.nodes[name]))
            or self._taken_devices(wish, name)
        )

    def _ever(self, ranking: _Ranking, name: str) -> str | None:
        """Return why a node can't take a VM, however much room it has, or None if it can."""
        if name not in ranking.refusals:
            wish = ranking.wish
            comes = wish.images_come and self._held[wish.spec.image] > 0
            ranking.refusals[name] = refusal(
                self.nodes[name], wish.spec, comes, self._networks, media_come=wish.images_come
            )
        return ranking.refusals[name]

    def _apart(self, wish: Wish, name: str) -> str | None:
        where = wish.spec.placement
        together = self._together(wish)
        if together and name not in together:
            return f"its affinity group {where.affinity} is on node {min(together)}"
        scope = where.anti_affinity_scope
        place = self._places[name][scope]
        if place in self._taken(wish):
            return f"{scope} {place} already has a VM of its anti-affinity group {where.anti_affinity}"
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
        """Return the nodes of its affinity group that are not cordoned; empty: it may be anywhere."""
        nodes = self._groups.together(wish.id, wish.spec.placement)
        return {name for name in nodes if name in self.nodes and not self.nodes[name].spec.cordoned}

    def _taken(self, wish: Wish) -> set[str]:
        """Return the places of other VMs of its anti-affinity group."""
        return self._groups.taken(wish.spec.placement, self._places.get(wish.at or "", {}))

    def _weights(self, wish: Wish, name: str) -> dict[str, float]:
        node, load, spec = self.nodes[name], self.loads[name], wish.spec
        memory_mib, vcpus = self._capacity[name]
        weights = {
            "memory": MEMORY_WEIGHT * (1.0 - (load.memory_mib + spec.memory_mib) / max(1.0, memory_mib)),
            "cpu": CPU_WEIGHT * (1.0 - (load.vcpus + spec.vcpus) / max(1.0, vcpus)),
        }
        space = free_share(node)
        if space:
            weights["space"] = SPACE_WEIGHT * space
        if holds(node, spec.image):
            weights["image"] = IMAGE_WEIGHT
        if name in wish.been:
            weights["pages"] = PAGES_WEIGHT
        if any(t.effect is Effect.AVOID and t.key not in spec.placement.tolerations for t in node.spec.taints):
            weights["avoid"] = -AVOID_WEIGHT
        return weights
