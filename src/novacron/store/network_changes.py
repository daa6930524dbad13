"""What changes of a network that exists: its name, MTU, name servers and search domains, and whether VMs
that name no network are in it."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from novacron.model.errors import Conflict, PreconditionFailed
from novacron.model.network import Network, NetworkKind, check_spec
from novacron.store import events, nodes
from novacron.store.database import Connection
from novacron.store.networks import check_free_name, check_mtu, get, mtu_max, network_of

OF_SPEC = ("nameservers", "search_domains")


async def configure(
    connection: Connection, name: str, changes: dict[str, Any], if_match: int | None, actor: str
) -> Network:
    """Change a network. Raises NotFound, Conflict, InvalidInput, PreconditionFailed."""
    network = await get(connection, name, lock=True)
    if if_match is not None and if_match != network.revision:
        raise PreconditionFailed(
            f"network {name} is at revision {network.revision}, not {if_match}", field="If-Match",
            hint="read it again, look at what changed, and repeat",
        )  # fmt: skip
    spec = msgspec.structs.replace(network.spec, **{field: changes[field] for field in OF_SPEC if field in changes})
    check_spec(spec)
    if "mtu" in changes:
        required = network.encryption_required and spec.kind is NetworkKind.OVERLAY
        check_mtu(changes["mtu"], spec, mtu_max(spec, await nodes.all(connection), encrypted=required))
    if changes.get("name", name) != name:
        check_free_name(changes["name"])
        await _check_unused(connection, name)
    now = {field: changes.get(field, getattr(network, field)) for field in ("name", "mtu")}
    try:
        row = await connection.fetchrow(
            "UPDATE networks SET name = $2, mtu = $3, spec = $4 WHERE name = $1 RETURNING *",
            name, now["name"], now["mtu"], msgspec.to_builtins(spec),
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a network named {now['name']!r} exists", field="name", hint="choose another name") from None
    changed = network_of(row)
    if "is_default" in changes:
        await _make_default(connection, changed, wanted=changes["is_default"])
    said = ", ".join(f"{field} {_in_words(value)}" for field, value in changes.items())
    await events.record(connection, events.NewEvent("network", changed.name, changed.name, "Configured", said, actor))
    return changed


def _in_words(value: object) -> str:
    return " ".join(value) or "none" if isinstance(value, tuple) else str(value)


async def _check_unused(connection: Connection, name: str) -> None:
    """Raise Conflict if something knows a network by its name, as VMs do, and guests, for whom it is a domain."""
    vm = await connection.fetchval(
        "SELECT v.name FROM nics JOIN vms v ON v.id = vm WHERE network = $1 ORDER BY v.name LIMIT 1", name
    )
    if vm is not None:
        raise Conflict(f"VM {vm} is in network {name}", field="name", hint="only an unused network can be renamed")
    address = await connection.fetchval("SELECT address FROM floating_addresses WHERE network = $1 LIMIT 1", name)
    if address is not None:
        raise Conflict(f"floating address {address} points into network {name}", field="name", hint="detach it first")


async def _make_default(connection: Connection, network: Network, *, wanted: bool) -> None:
    """Let new VMs of the network's project that name no network be in this one, or not any more."""
    if wanted:
        await connection.execute(
            "UPDATE projects SET default_network = $2 WHERE name = $1", network.project, network.name
        )
    else:
        await connection.execute("UPDATE projects SET default_network = NULL WHERE default_network = $1", network.name)
