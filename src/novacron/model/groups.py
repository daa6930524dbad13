"""Affinity, anti-affinity and spread groups, and how many of their VMs are where. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from novacron.model import node
from novacron.model.constraints import AntiAffinityScope, Placement
from novacron.model.node import Node
from novacron.model.project import DEFAULT

Places = Mapping[AntiAffinityScope, str]


class Occupant(node.RoomTaken, Protocol):
    """The part of a VM's spec that takes room on a node or affects where other VMs go. A ``VmSpec`` has it."""

    @property
    def placement(self) -> Placement: ...
    @property
    def devices(self) -> tuple[str, ...]: ...


def is_grouped(spec: Occupant) -> bool:
    """Say whether the VM affects where other VMs go, by its groups or devices."""
    where = spec.placement
    return (where.affinity, where.anti_affinity, where.spread) != (None, None, None) or bool(spec.devices)


def places_of(node: Node) -> dict[AntiAffinityScope, str]:
    """Return the names of a node's site, zone and the node itself. The zone includes its site's name."""
    site = node.spec.site
    return {
        AntiAffinityScope.SITE: site,
        AntiAffinityScope.ZONE: f"{site}/{node.spec.zone}",
        AntiAffinityScope.NODE: node.name,
    }


def groups_of_project(where: Placement, project: str) -> Placement:
    """Return a placement with group names that are unique to the project."""
    names = {field: getattr(where, field) for field in ("affinity", "anti_affinity", "spread")}
    groups = {field: f"{project}/{name}" for field, name in names.items() if name is not None}
    return msgspec.structs.replace(where, **groups) if groups and project != DEFAULT else where


class Groups:
    """Counts of each group's VMs in each place."""

    def __init__(self) -> None:
        self._affinity: dict[str, dict[str, str]] = {}
        """The members of each group, with their nodes."""
        self._anti: dict[str, Counter[tuple[AntiAffinityScope, str]]] = {}
        self._spread: dict[str, Counter[tuple[AntiAffinityScope, str]]] = {}

    def count(self, id: str, where: Placement, node: str, places: Places, by: int) -> None:
        """Add a VM on a node to the counts (``by`` 1), or take it away (-1)."""
        if where.affinity is not None:
            members = self._affinity.setdefault(where.affinity, {})
            if by > 0:
                members[id] = node
            elif members.get(id) == node:
                del members[id]
        for group, counts in ((where.anti_affinity, self._anti), (where.spread, self._spread)):
            if group is not None:
                counter = counts.setdefault(group, Counter())
                for scope, place in places.items():
                    counter[scope, place] += by

    def together(self, id: str, where: Placement) -> Iterable[str]:
        """Yield the nodes of the other VMs of a VM's affinity group."""
        members = self._affinity.get(where.affinity or "", {})
        return (node for member, node in members.items() if member != id)

    def taken(self, where: Placement, own: Places) -> set[str]:
        """Return the places of other VMs of an anti-affinity group. ``own``: the VM's own places."""
        counts = self._anti.get(where.anti_affinity or "")
        if counts is None:
            return set()
        scope = where.anti_affinity_scope
        itself = own.get(scope)
        return {place for (kind, place), count in counts.items() if kind is scope and count > (place == itself)}

    def spread(self, where: Placement, places: Places) -> tuple[int, ...]:
        """Return how many VMs of a spread group are in a node's site, in its zone and on it; empty without a group."""
        if where.spread is None:
            return ()
        counts = self._spread.get(where.spread, Counter[tuple[AntiAffinityScope, str]]())
        return tuple(
            [
                counts[scope, places[scope]]
                for scope in (AntiAffinityScope.SITE, AntiAffinityScope.ZONE, AntiAffinityScope.NODE)
            ]
        )
