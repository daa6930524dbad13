"""Which node is the gateway of each network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from novacron.control.objects import Objects
from novacron.model.fit import refusal_of_all
from novacron.model.network import choose_gateway
from novacron.model.node import Node
from novacron.store import leases, network_members, network_problems, networks, nodes, sites
from novacron.store.database import Database
from novacron.store.network_members import Overlay

NONE_ABLE = (
    "no node can be its gateway, so its guests can't reach other networks: it must be ready, healthy, not cordoned, and"
    " able to run networks, encrypted ones if all traffic must be encrypted (see: novacron node list)"
)


async def step(database: Database, objects: Objects) -> None:
    async with database.connection() as connection:
        overlays = {overlay.name: overlay for overlay in await network_members.overlays(connection)}
        if not overlays:
            return
        all_nodes = await nodes.all(connection)
        alive = {node.name for node in all_nodes} - await leases.dead(connection)
    fleet = look(all_nodes, alive, Counter(overlay.gateway for overlay in overlays.values()))

    async def choose(name: str) -> None:
        overlay = overlays[name]
        if overlay.gateway in fleet.staying:
            return
        chosen = fleet.choose(overlay)
        lacks = chosen is None and bool(overlay.nodes)
        if chosen != overlay.gateway or lacks != overlay.lacks_gateway:
            await _give(database, overlay, chosen, fleet.sites.get(chosen or ""))

    await objects.each(overlays, choose)


class Candidates(NamedTuple):
    """The nodes, as far as they may be gateways."""

    alive: set[str]
    staying: set[str]
    """A gateway that is silent, but not dead, stays: two at once would be worse than one that hears of no changes."""
    counts: dict[str, int]
    """Those that may become one, with the number of networks of which each is."""
    encrypting: set[str]
    sites: dict[str, str]

    def choose(self, overlay: Overlay) -> str | None:
        may = {node: count for node, count in self.counts.items() if node in self.encrypting or not overlay.encrypted}
        chosen = choose_gateway(overlay.gateway, overlay.nodes, may, self.alive)
        self.counts.update(may)
        return chosen


def look(every: Sequence[Node], alive: set[str], held: Counter[str | None]) -> Candidates:
    """Return what of the nodes counts. ``held``: of how many networks each is the gateway."""
    return Candidates(
        alive,
        alive - {node.name for node in every if node.spec.cordoned or _may_be(node)},
        {node.name: held[node.name] for node in every if _may_be(node)},
        {node.name for node in every if _can_encrypt(node)},
        {node.name: node.spec.site for node in every},
    )


def _may_be(node: Node) -> bool:
    """Say whether a node can be a gateway."""
    inventory = node.status.inventory
    return refusal_of_all(node) is None and inventory is not None and inventory.networks


def _can_encrypt(node: Node) -> bool:
    inventory = node.status.inventory
    return inventory is not None and bool(inventory.wireguard)


async def _give(database: Database, overlay: Overlay, chosen: str | None, site: str | None) -> None:
    """Let a node, which is at ``site``, be a network's gateway, or say that none can be."""
    async with database.transaction() as connection:
        if chosen != overlay.gateway:
            await networks.move_gateway(connection, overlay.name, overlay.gateway, chosen)
        why = NONE_ABLE if chosen is None and overlay.nodes else ""
        await network_problems.set_gateway_problem(connection, overlay.name, why)
        if site is not None:
            await sites.check_forwarded(connection, site)
