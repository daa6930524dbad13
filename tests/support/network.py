"""A network as the server describes it to a node."""

from __future__ import annotations

from novacron.model.network import (
    NetworkOnNode,
    NetworkSpec,
    VmInterface,
)

NIC = VmInterface("vm-aaaaaaaaaaaaaaaa", 0, "52:54:00:00:00:01", "10.20.0.3", None)


def network_on_node(**fields: object) -> NetworkOnNode:
    """Return a network with one VM as the server describes it to a node."""
    names = (("52:54:00:00:00:01", "10.20.0.3", "web"),)
    return NetworkOnNode("lan", NetworkSpec(subnet="10.20.0.0/24"), 7, 1450, 1, True, (), names, (NIC,), **fields)  # type: ignore[arg-type]
