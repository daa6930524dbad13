"""Whose request it is: the address of the connection's other end, or, behind proxies that the operator named, the one
that they say."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import msgspec

from novacron.model.proxy_header import ProxyHeader

HOPS_MAX = 16
"""Of proxies that the operator named, one behind another."""
HEADER_BYTES_MAX = 4096
"""Only the end of a longer header counts: what the nearest proxies wrote."""
REMEMBERED_MAX = 10_000

Headers = Iterable[tuple[bytes, bytes]]


class ProxySettings(msgspec.Struct, frozen=True):
    """Which proxies are believed, and what."""

    networks: tuple[str, ...] = ()
    header: ProxyHeader = ProxyHeader.X_FORWARDED_FOR


@functools.lru_cache(maxsize=REMEMBERED_MAX)
def counted_as(address: str) -> str:
    """Return what an address is counted as where callers without a token are limited: a host has 2^64 of IPv6."""
    if ":" not in address:
        return address
    parsed = _address(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, 64), strict=False))
    return address if parsed is None else str(parsed)


class ClientAddresses:
    """Finds the address of each request's client."""

    def __init__(self, settings: ProxySettings) -> None:
        self._networks = [ipaddress.ip_network(network) for network in settings.networks]
        self._header = settings.header
        self._trusted: dict[str, bool] = {}

    def of(self, peer: str, headers: Headers) -> str:
        """Return the client's address. ``peer``: the other end of the connection.

        The entries are read from the right, where the nearest proxy wrote. The first that is no proxy's own is the
        client: everything left of it is the client's word.
        """
        if not self._networks or not self.is_proxy(peer):
            return peer
        address = peer
        for _, entry in zip(range(HOPS_MAX), self._entries(headers), strict=False):
            if entry is None:  # a proxy that does not say it, or not so that it could be understood
                break
            address = entry
            if not self.is_proxy(address):
                break
        return address

    def is_proxy(self, text: str) -> bool:
        """Say whether an address is one of a proxy that is believed."""
        trusted = self._trusted.get(text)
        if trusted is None:
            address = _address(text)
            trusted = address is not None and any(address in network for network in self._networks)
            if len(self._trusted) >= REMEMBERED_MAX:
                self._trusted.clear()
            self._trusted[text] = trusted
        return trusted

    def _entries(self, headers: Headers) -> Iterator[str | None]:
        """Yield the addresses in the header, from the right; None: an entry has none."""
        name = self._header.value.encode()
        text = b",".join(value for key, value in headers if key == name)[-HEADER_BYTES_MAX:].decode("latin-1")
        forwarded = self._header is ProxyHeader.FORWARDED
        for entry in _from_the_right(text, quoted=forwarded):
            node = _node_of(entry) if forwarded else entry.strip()
            address = None if node is None else _without_port(node)
            yield None if address is None else str(address)


def _from_the_right(text: str, *, quoted: bool) -> Iterator[str]:
    """Yield the entries of a list, the last one first. ``quoted``: commas between quotation marks separate nothing."""
    end, inside = len(text), False
    for at in range(len(text) - 1, -1, -1):
        if quoted and text[at] == '"':
            inside = not inside
        elif text[at] == "," and not inside:
            yield text[at + 1 : end]
            end = at
    if text:
        yield text[:end]


def _node_of(element: str) -> str | None:
    """Return what an element of ``Forwarded`` names in ``for``; None: nothing, or more than one thing."""
    if "\\" in element:  # no address needs an escape, and whoever writes one wants quotation marks miscounted
        return None
    pairs = [pair.partition("=") for pair in element.split(";")]
    nodes = [value.strip() for key, _, value in pairs if key.strip().lower() == "for"]
    return nodes[0].strip('"') if len(nodes) == 1 else None


def _without_port(node: str) -> IPv4Address | IPv6Address | None:
    """Return the address of ``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1``, ``[2001:db8::1]`` or
    ``[2001:db8::1]:80``."""
    if node.startswith("["):
        node = node[1:].partition("]")[0]
    elif node.count(":") == 1:
        node = node.partition(":")[0]
    return _address(node)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address in canonical form, IPv4 in IPv6 as IPv4; None: it is none, or one with a zone."""
    if "%" in text:  # a zone may be any text
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
