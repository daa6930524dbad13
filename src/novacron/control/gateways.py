"""Which node is the gateway of each network."""

from __future__ import annotations

from collections import Counter

from novacron.control.objects import Objects
from novacron.model.network import choose_gateway
from novacron.model.node import Node
from novacron.store import leases, network_members, networks, nodes
from novacron.store.database import Database


async def step(database: Database, objects: Objects) -> None:
    async with database.connection() as connection:
        overlays = {overlay.name: overlay for overlay in await network_members.overlays(connection)}
        if not overlays:
            return
        all_nodes = await nodes.all(connection)
        alive = {node.name for node in all_nodes} - await leases.dead(connection)
    # A gateway that is silent, but not dead, stays: two at once would be worse than one that hears of no changes.
    staying = alive - {node.name for node in all_nodes if node.spec.cordoned or _may_be(node)}
    now = Counter(overlay.gateway for overlay in overlays.values())
    counts = {node.name: now[node.name] for node in all_nodes if _may_be(node)}
    encrypting = {node.name for node in all_nodes if _can_encrypt(node)}

    async def choose(name: str) -> None:
        overlay = overlays[name]
        if overlay.gateway in staying:
            return
        may = {node: count for node, count in counts.items() if node in encrypting or not overlay.encrypted}
        chosen = choose_gateway(overlay.gateway, overlay.nodes, may, alive)
        counts.update(may)
        if chosen != overlay.gateway:
            async with database.transaction() as connection:
                await networks.move_gateway(connection, name, overlay.gateway, chosen)

    await objects.each(overlays, choose)


def _may_be(node: Node) -> bool:
    """Say whether a node can be a gateway."""
    inventory = node.status.inventory
    return node.status.ready and not node.spec.cordoned and inventory is not None and inventory.networks


def _can_encrypt(node: Node) -> bool:
    inventory = node.status.inventory
    return inventory is not None and bool(inventory.wireguard)
