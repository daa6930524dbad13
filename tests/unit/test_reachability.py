"""What a node says of how others reach it is refused where they could not act on it."""

from __future__ import annotations

import base64

import msgspec
import pytest

from novacron.model.errors import InvalidInput
from novacron.model.reachability import check_endpoint, check_reachable
from tests.unit.test_node import INVENTORY

KEY = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "endpoint",
    ["10.0.0.5:7445", "0.0.0.0:1", "host-a:65535", "host_a.example.org:7445", "[2001:db8::1]:7445", "::1:7445", "x:1"],
)
def test_hosts_and_ports_are_taken(endpoint: str) -> None:
    assert check_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "", "nonsense", ":7445", "host:", "host:0", "host:65536", "host:-1", "host:1e3", "host:٧", "ho st:1",
        "host:1\n", "host\0:1", "h\x1b[31m:1", "[::1:1", "host:99999999999", "a" * 254 + ":1", "ü:1", "-\ud800:1",
    ],
)  # fmt: skip
def test_other_endpoints_are_refused_with_a_word_on_what_to_do(endpoint: str) -> None:
    with pytest.raises(InvalidInput, match="not a host and a port") as refused:
        check_endpoint(endpoint)
    assert "--advertise" in str(refused.value) and len(str(refused.value)) < 300


def test_an_agents_inventory_is_taken() -> None:
    check_reachable(INVENTORY)
    check_reachable(
        msgspec.structs.replace(INVENTORY, wireguard=KEY, addresses=("10.0.0.5", "192.168.1.1"), tunnel_mtu=65536)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dwcp_endpoint", "nonsense"), ("tunnel_mtu", 0), ("tunnel_mtu", -1), ("tunnel_mtu", 1 << 70),
        ("wireguard", "key"), ("wireguard", KEY + "\n"), ("wireguard", KEY[:-4]), ("addresses", ("10.0.0.5/24",)),
        ("addresses", ("::1",)), ("addresses", ("10.0.0.1\0",)),
    ],
)  # fmt: skip
def test_what_would_break_other_nodes_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_reachable(msgspec.structs.replace(INVENTORY, **{field: value}))
    assert refused.value.field == field
