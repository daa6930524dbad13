"""Interfaces of VMs that a node has and the server does not name, because its database is older. Pure.

They stay as they were told last, so that their guests keep their networks on this node until it is said who is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from novacron.model.network import NetworkOnNode


def with_kept(
    told: Sequence[NetworkOnNode], before: Sequence[NetworkOnNode], owns: Callable[[str], bool]
) -> tuple[NetworkOnNode, ...]:
    """Return the networks that a node is told to have, with the interfaces that were there ``before`` of VMs that it
    ``owns`` and that are not named.

    A network that is kept for these alone has no gateway here: another node may have become that.
    """
    named = {nic.vm for network in told for nic in network.interfaces}
    kept = {
        network.name: nics for network in before
        if (nics := tuple(nic for nic in network.interfaces if nic.vm not in named and owns(nic.vm)))
    }  # fmt: skip
    merged = [
        msgspec.structs.replace(network, interfaces=(*network.interfaces, *kept.pop(network.name, ())))
        for network in told
    ]
    taken = {network.number for network in told}
    merged += [
        msgspec.structs.replace(
            network, interfaces=kept[network.name], is_gateway=False, floating=(), entrances=()
        )
        for network in before
        if network.name in kept and network.number not in taken
    ]  # fmt: skip
    return tuple(merged)
