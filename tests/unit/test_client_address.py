"""Whose request it is, behind proxies that are believed, and what clients make of that."""

from __future__ import annotations

import pytest

from novacron.api.access.client_address import HOPS_MAX, ClientAddresses, ProxySettings, counted_as
from novacron.model.proxy_header import ProxyHeader

PROXY, OUTER, CLIENT = "10.0.0.1", "10.0.0.2", "203.0.113.7"
NETWORKS = ("10.0.0.0/24", "2001:db8:1::/64")


def client(*lines: str, peer: str = PROXY, header: ProxyHeader = ProxyHeader.X_FORWARDED_FOR) -> str:
    addresses = ClientAddresses(ProxySettings(NETWORKS, header))
    return addresses.of(peer, [(header.value.encode(), line.encode()) for line in lines])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([CLIENT], CLIENT),
        ([f"{CLIENT}, {OUTER}"], CLIENT),
        ([CLIENT, OUTER], CLIENT),
        ([f"6.6.6.6, {CLIENT}"], CLIENT),
        (["6.6.6.6", CLIENT], CLIENT),
        ([f"{OUTER}, 10.0.0.9, 6.6.6.6, {CLIENT}, {OUTER}"], CLIENT),
        ([f"{CLIENT}:4711"], CLIENT),
        (["[2001:db8::7]:4711"], "2001:db8::7"),
        (["2001:DB8:0::7"], "2001:db8::7"),
        ([f"{CLIENT}, 2001:db8:1::5"], CLIENT),
        ([f"::ffff:{CLIENT}"], CLIENT),
        ([f"{CLIENT}, ::ffff:{OUTER}"], CLIENT),
        ([OUTER], OUTER),
        ([], PROXY),
        ([""], PROXY),
        (["unknown"], PROXY),
        ([f"{CLIENT}, unknown"], PROXY),
        ([f"{CLIENT},"], PROXY),
        ([f"{CLIENT}, 1.2.3"], PROXY),
        (["fe80::1%\0eth0"], PROXY),
        ([f"6.6.6.6, {OUTER}, " + ", ".join([PROXY] * HOPS_MAX)], PROXY),
        (["6.6.6.6," * 10_000 + CLIENT], CLIENT),
        ([", " * 10_000], PROXY),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_no_proxy(lines: list[str], expected: str) -> None:
    assert client(*lines) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([f"for={CLIENT}"], CLIENT),
        ([f"for=6.6.6.6;proto=https, For={CLIENT};proto=https;by={PROXY}"], CLIENT),
        (['for="[2001:db8::7]:4711";host=api.example.net'], "2001:db8::7"),
        ([f"for={CLIENT}, for={OUTER}"], CLIENT),
        ([f'for="6.6.6.6, for={CLIENT}'], CLIENT),
        ([f'for="6.6.6.6, for="[2001:db8:1::5]", for={CLIENT}'], CLIENT),
        ([f'for=6.6.6.6, for="{CLIENT}"'], CLIENT),
        ([rf'for={CLIENT};host="a\", for=6.6.6.6"'], PROXY),
        ([f'for={CLIENT};host="a;for=6.6.6.6"'], PROXY),
        ([f"for=6.6.6.6, proto=https;by={PROXY}"], PROXY),
        (["for=_hidden"], PROXY),
        (["for=unknown"], PROXY),
    ],
)
def test_elements_of_forwarded_are_read_as_the_standard_has_them(lines: list[str], expected: str) -> None:
    assert client(*lines, header=ProxyHeader.FORWARDED) == expected


def test_only_named_proxies_are_believed_and_only_the_header_that_they_write() -> None:
    assert client("6.6.6.6", peer=CLIENT) == CLIENT
    assert client("6.6.6.6", peer="not an address") == "not an address"
    nobody = ClientAddresses(ProxySettings())
    assert nobody.of(PROXY, [(b"x-forwarded-for", b"6.6.6.6")]) == PROXY
    addresses = ClientAddresses(ProxySettings(NETWORKS))
    assert addresses.of(PROXY, [(b"forwarded", b"for=6.6.6.6"), (b"x-forwarded-for", CLIENT.encode())]) == CLIENT
    assert addresses.of(PROXY, [(b"forwarded", b"for=6.6.6.6")]) == PROXY


def test_hosts_with_ipv6_count_by_their_subnet() -> None:
    assert counted_as("2001:db8::1") == counted_as("2001:db8::2:3:4:5") == "2001:db8::/64"
    assert counted_as("2001:db8:0:1::1") != counted_as("2001:db8::1")
    assert counted_as(CLIENT) == CLIENT == counted_as(f"::ffff:{CLIENT}")
    assert counted_as("-") == "-"
