"""Which node is the gateway of each network."""

from __future__ import annotations

from novacron.model.network import choose_gateway
from novacron.store import leases, network_members, networks, nodes
from novacron.store.database import Database


async def step(database: Database) -> None:
    async with database.transaction() as connection:
        overlays = await network_members.overlays(connection)
        if not overlays:
            return
        every = await nodes.all(connection)
        able = {
            node.name
            for node in every
            if node.status.ready and not node.spec.cordoned and node.status.inventory and node.status.inventory.networks
        }
        there = {node.name for node in every} - await leases.dead(connection)
        # One that is silent, but not dead, goes on: two at once would be worse than one that hears of no changes.
        cordoned = {node.name: node.spec.cordoned for node in every}
        counts = dict.fromkeys(able, 0)
        for _, gateway, _ in overlays:
            if gateway in counts:
                counts[gateway] += 1
        for name, gateway, having in overlays:
            if gateway in there - able and not cordoned.get(gateway, False):
                continue
            chosen = choose_gateway(gateway, having, counts, there)
            if chosen != gateway:
                await networks.move_gateway(connection, name, gateway, chosen)
