"""Calls about networks, security groups, floating addresses and forwarded ports."""

from __future__ import annotations

from collections.abc import Sequence

from novacron.client.aio.connection import AsyncConnection
from novacron.client.protocol import Object, quoted, without_none


class AsyncNetworkCalls(AsyncConnection):
    """Networks, and what may reach the VMs in them."""

    async def create_network(self, name: str, **fields: object) -> Object:
        """Create a network; fields as in ``POST /api/v1/networks``, those that are None left out."""
        return await self._object("POST", "/api/v1/networks", {"name": name, **without_none(fields)})

    async def configure_network(self, network: str, **changes: object) -> Object:
        """Change a network; fields as in ``PATCH /api/v1/networks/{name}``."""
        return await self._object("PATCH", f"/api/v1/networks/{quoted(network)}", changes)

    async def network_encryption(self) -> Object:
        """Return whether all traffic of networks between nodes is encrypted."""
        return await self._object("GET", "/api/v1/network-encryption")

    async def configure_network_encryption(self, *, always: bool) -> Object:
        """Let all traffic of networks between nodes be encrypted, or as each network says."""
        return await self._object("PUT", "/api/v1/network-encryption", {"always": always})

    async def create_security_group(self, name: str, rules: Sequence[Object]) -> Object:
        """Create a security group; rules as in ``POST /api/v1/security-groups``."""
        return await self._object("POST", "/api/v1/security-groups", {"name": name, "rules": [*rules]})

    async def configure_security_group(
        self, name: str, rules: Sequence[Object] | None = None, **changes: object
    ) -> Object:
        """Replace a security group's rules; None: leave them as they are. Other fields as in
        ``PATCH /api/v1/security-groups/{name}``."""
        body = changes if rules is None else {"rules": [*rules], **changes}
        return await self._object("PATCH", f"/api/v1/security-groups/{quoted(name)}", body)

    async def add_floating_address(self, address: str) -> Object:
        """Add an address that can lead to VMs; ``delete("floating-addresses", address)`` removes it."""
        return await self._object("POST", "/api/v1/floating-addresses", {"address": address})

    async def attach_floating_address(self, address: str, vm: str, network: str | None = None) -> Object:
        """Let a floating address lead to a VM; ``act("floating-addresses", address, "detach")`` undoes that."""
        return await self.act("floating-addresses", address, "attach", {"vm": vm, "network": network})

    async def configure_floating_address(self, address: str, **changes: object) -> Object:
        """Change a floating address's ``display_name``, ``description`` or ``tags``."""
        return await self._object("PATCH", f"/api/v1/floating-addresses/{quoted(address)}", changes)

    async def configure_forward(self, id: str, **changes: object) -> Object:
        """Change a forwarded port's ``display_name``, ``description`` or ``tags``."""
        return await self._object("PATCH", f"/api/v1/forwards/{quoted(id)}", changes)

    async def create_forward(self, vm: str, vm_port: int, port: int | None = None, **fields: object) -> Object:
        """Forward a port to one of a VM; fields as in ``POST /api/v1/forwards``, those that are None left out."""
        body = {"vm": vm, "vm_port": vm_port, **without_none({"port": port, **fields})}
        return await self._object("POST", "/api/v1/forwards", body)
