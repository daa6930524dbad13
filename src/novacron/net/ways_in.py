"""Ways from outside to guests of a network: forwarded ports and floating addresses, each of which stands alone."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from novacron.model.network import Entrance, NetworkOnNode
from novacron.net.firewall import RulesRefused, nft
from novacron.net.router import HostRules, host_script, inside_script

WayIn = Entrance | tuple[str, str]
"""A forwarded port, or a floating address and its guest's."""


def of(network: NetworkOnNode) -> list[WayIn]:
    """Return all ways into a network."""
    return [*network.entrances, *network.floating]


def without(network: NetworkOnNode, ways: Collection[WayIn]) -> NetworkOnNode:
    """Return a network that lacks these ways in."""
    if not ways:
        return network
    return msgspec.structs.replace(
        network,
        entrances=tuple(entrance for entrance in network.entrances if entrance not in ways),
        floating=tuple(floating for floating in network.floating if floating not in ways),
    )


def refused(table: str, network: NetworkOnNode) -> dict[WayIn, str]:
    """Return the ways into a network whose rules nft refuses when they stand alone, and why. ``table``: any name that
    no rules have. Raises NetworkFailed."""
    every, refusals = of(network), dict[WayIn, str]()
    for way in every:
        alone = without(network, [other for other in every if other != way])
        try:
            nft(inside_script(alone), check=True)
            nft(host_script(table, HostRules([alone], {})), check=True)
        except RulesRefused as error:
            refusals[way] = str(error)
    return refusals
