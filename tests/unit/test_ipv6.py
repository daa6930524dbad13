"""IPv6 addresses of networks and interfaces."""

from __future__ import annotations

import pytest

from novacron.model import ipv6
from novacron.model.errors import InvalidInput

PREFIX, MAC = "fd12:3456:789a::/64", "52:54:00:12:34:56"
OWN = "fd12:3456:789a:0:5054:ff:fe12:3456"


def test_an_interface_has_the_address_that_its_mac_address_yields_or_the_chosen_one() -> None:
    assert ipv6.give(PREFIX, MAC, set(), None) == OWN
    assert ipv6.give(PREFIX, MAC, {OWN[:-1]}, "FD12:3456:789A:0::50") == "fd12:3456:789a::50"
    assert ipv6.link_local(MAC) == "fe80::5054:ff:fe12:3456"
    assert ipv6.own_addresses("fd12:3456:789a::50", MAC) == ("fd12:3456:789a::50", OWN, ipv6.link_local(MAC))


@pytest.mark.parametrize(
    "asked",
    [
        "10.0.0.1", "fd12::1%eth0", "fd13::50", "fd12:3456:789a::", "fd12:3456:789a::1", "fd12:3456:789a::2",
        "fd12:3456:789a:0:5054:ff:fe12:3457", "fd12:3456:789a::77",
    ],
)  # fmt: skip
def test_no_interface_gets_an_address_that_is_somebody_elses_or_none(asked: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        ipv6.give(PREFIX, MAC, {"fd12:3456:789a::77"}, asked)
    assert refused.value.field == "address6"


def test_nobody_gets_the_address_that_another_has_by_the_same_mac_address() -> None:
    with pytest.raises(InvalidInput):
        ipv6.give(PREFIX, MAC, {OWN}, None)


def test_an_address_that_a_mac_address_yields_follows_it() -> None:
    other = "52:54:00:00:00:01"
    assert ipv6.after_mac_change(OWN, MAC, other) == "fd12:3456:789a:0:5054:ff:fe00:1"
    assert ipv6.after_mac_change("fd12:3456:789a::50", MAC, other) == "fd12:3456:789a::50"
    assert ipv6.after_mac_change(None, MAC, other) is None


@pytest.mark.parametrize("text", ["fd12::/48", "fd12::1/64", "fe80::/64", "2002::/64", "::/64", "10.0.0.0/24", "x"])
def test_what_guests_can_not_have_is_no_prefix(text: str) -> None:
    with pytest.raises(InvalidInput):
        ipv6.check_prefix(text)


def test_a_random_prefix_is_a_unique_local_one() -> None:
    prefix = ipv6.random_prefix(bytes(range(5)))
    assert prefix == "fd00:102:304::/64" == ipv6.check_prefix(prefix)
