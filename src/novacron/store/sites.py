"""What operators set for a site."""

from __future__ import annotations

from novacron.model.errors import Conflict, NotFound
from novacron.model.network import FORWARD_PORTS_DEFAULT, PortRange, forward_ports, port_range
from novacron.model.waiting import WaitCode
from novacron.store import events, network_problems
from novacron.store.database import Connection

FORWARDED = """
    SELECT forwards.id, port FROM forwards JOIN networks ON networks.name = forwards.network
    JOIN nodes ON nodes.name = networks.gateway WHERE address IS NULL AND nodes.spec ->> 'site' = $1 ORDER BY port
"""
"""Ports of gateways at a site that are forwarded."""


async def all_forward_ports(connection: Connection) -> dict[str, str]:
    """Return the range of ports that gateways of each site forward; sites that are not in it have the default."""
    rows = await connection.fetch("SELECT site, forward_ports FROM site_settings")
    return {row["site"]: row["forward_ports"] for row in rows}


async def forward_ports_of(connection: Connection, site: str) -> PortRange:
    """Return the ports of a site's gateways that may be forwarded."""
    text = await connection.fetchval("SELECT forward_ports FROM site_settings WHERE site = $1", site)
    return port_range(text or FORWARD_PORTS_DEFAULT)


async def set_forward_ports(connection: Connection, site: str, text: str, actor: str) -> None:
    """Set the ports of a site's gateways that may be forwarded. Raises InvalidInput, NotFound, Conflict."""
    ports = forward_ports(text)
    if await connection.fetchval("SELECT 1 FROM nodes WHERE spec ->> 'site' = $1 LIMIT 1", site) is None:
        raise NotFound(f"no node is in site {site!r}", hint="see: novacron site list")
    before = await forward_ports_of(connection, site)
    forwarded = await connection.fetch(FORWARDED, site)
    for row in forwarded:
        if row["port"] in before and row["port"] not in ports:
            raise Conflict(
                f"port {row['port']} is forwarded, and is not in {text}",
                field="forward_ports", hint=f"novacron forward delete {row['id']}",
            )  # fmt: skip
    await connection.execute(
        "INSERT INTO site_settings (site, forward_ports) VALUES ($1, $2)"
        " ON CONFLICT (site) DO UPDATE SET forward_ports = excluded.forward_ports",
        site, str(ports),
    )  # fmt: skip
    # Gateways hear of changes of forwards: some may lead somewhere from now on.
    await connection.execute("UPDATE forwards SET port = port WHERE id = ANY($1)", [row["id"] for row in forwarded])
    await check_forwarded(connection, site)
    what = f"forwardable ports of its gateways: {ports}, before: {before}"
    await events.record(connection, events.NewEvent("site", site, site, "Configured", what, actor))


async def check_forwarded(connection: Connection, site: str) -> None:
    """Say of forwarded ports of gateways at a site whether that forwards them."""
    ports = await forward_ports_of(connection, site)
    words = f"the gateway's site {site} forwards ports {ports} only: use one of these"
    rows = await connection.fetch(
        "SELECT forwards.* FROM forwards JOIN networks ON networks.name = forwards.network"
        " JOIN nodes ON nodes.name = networks.gateway WHERE address IS NULL AND nodes.spec ->> 'site' = $1"
        " ORDER BY forwards.id FOR UPDATE OF forwards",
        site,
    )
    for row in rows:
        allowed = row["port"] in ports
        if allowed and row["reason_code"] != WaitCode.PORT_NOT_ALLOWED:
            continue
        now = ("", "") if allowed else (WaitCode.PORT_NOT_ALLOWED.value, words)
        if await network_problems.change(connection, "forwards", "id", row, now):
            await events.record(connection, events.NewEvent("vm", row["vm"], row["vm_name"], *now))
