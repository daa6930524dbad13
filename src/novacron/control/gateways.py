"""Which node is the gateway of each network."""

from __future__ import annotations

from novacron.control.objects import Objects
from novacron.model.network import choose_gateway
from novacron.store import leases, network_members, networks, nodes
from novacron.store.database import Database


async def step(database: Database, objects: Objects) -> None:
    async with database.connection() as connection:
        overlays = {overlay.name: overlay for overlay in await network_members.overlays(connection)}
        if not overlays:
            return
        all_nodes = await nodes.all(connection)
        alive = {node.name for node in all_nodes} - await leases.dead(connection)
    able = {
        node.name
        for node in all_nodes
        if node.status.ready and not node.spec.cordoned and node.status.inventory and node.status.inventory.networks
    }
    encrypting = {node.name for node in all_nodes if node.status.inventory and node.status.inventory.wireguard}
    # A gateway that is silent, but not dead, stays: two at once would be worse than one that hears of no changes.
    cordoned = {node.name for node in all_nodes if node.spec.cordoned}
    counts = dict.fromkeys(able, 0)
    for overlay in overlays.values():
        if overlay.gateway in counts:
            counts[overlay.gateway] += 1

    async def choose(name: str) -> None:
        gateway = overlays[name].gateway
        if gateway in alive - able and gateway not in cordoned:
            return
        may = {node: count for node, count in counts.items() if node in encrypting or not overlays[name].encrypted}
        chosen = choose_gateway(gateway, overlays[name].nodes, may, alive)
        counts.update(may)
        if chosen != gateway:
            async with database.transaction() as connection:
                await networks.move_gateway(connection, name, gateway, chosen)

    await objects.each(overlays, choose)
