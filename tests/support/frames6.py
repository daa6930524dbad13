"""IPv6 frames as a guest's kernel never sends them, and a DHCPv6 client of one question."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from novacron.model import ipv6

ICMPV6, UDP, FRAGMENT, HOP_BY_HOP, OPTIONS, ROUTING = 58, 17, 44, 0, 60, 43
SOLICIT_ROUTER, ADVERTISE_ROUTER, SOLICIT, ADVERTISE, REDIRECT = 133, 134, 135, 136, 137
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
GATEWAY = "fd12:3456:789a::1"


def packed(address: str) -> bytes:
    return ipaddress.IPv6Address(address).packed


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def checksum(source: str, target: str, kind: int, body: bytes) -> int:
    data = packed(source) + packed(target) + struct.pack("!II", len(body), kind) + body
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def icmp(source: str, target: str, kind: int, body: bytes) -> bytes:
    message = struct.pack("!BBH", kind, 0, 0) + body
    return message[:2] + struct.pack("!H", checksum(source, target, ICMPV6, message)) + message[4:]


def option(kind: int, mac: str) -> bytes:
    return bytes([kind, 1]) + octets(mac)


def frame(macs: tuple[str, str], ends: tuple[str, str], kind: int, body: bytes) -> bytes:
    """Return a frame from the first of the addresses to the second. ``kind``: of ``body``s first header."""
    header = struct.pack("!IHBB", 6 << 28, len(body), kind, 255) + packed(ends[0]) + packed(ends[1])
    return octets(macs[1]) + octets(macs[0]) + b"\x86\xdd" + header + body


class Attacker(NamedTuple):
    mac: str
    address: str
    victim_mac: str
    victim: str

    def allowed(self, text: bytes) -> bytes:
        """Return a datagram that may pass."""
        return frame((self.mac, self.victim_mac), (self.address, self.victim), UDP, self._udp(self.address, 7, 7, text))

    def _udp(self, source: str, from_port: int, to_port: int, text: bytes) -> bytes:
        body = struct.pack("!HHHH", from_port, to_port, 8 + len(text), 0) + text
        return body[:6] + struct.pack("!H", checksum(source, self.victim, UDP, body) or 0xFFFF) + body[8:]

    def _all(self, source: str, kind: int, body: bytes, mac: str | None = None) -> bytes:
        message = icmp(source, ALL_NODES, kind, body)
        return frame((mac or self.mac, ALL_NODES_MAC), (source, ALL_NODES), ICMPV6, message)

    def _routes(self, source: str) -> bytes:
        body = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + option(1, self.mac)
        return icmp(source, ALL_NODES, ADVERTISE_ROUTER, body)

    def _claims(self, target: str, mac: str, more: bytes = b"") -> bytes:
        return struct.pack("!I", 0x20000000) + packed(target) + more + option(2, mac)

    def attacks(self) -> Iterator[tuple[str, bytes]]:
        """Yield frames, and in words what each is."""
        yield from self._of_routers()
        yield from self._of_neighbours()
        both, me = (self.mac, self.victim_mac), self.address
        yield "a foreign source", frame(both, (GATEWAY, self.victim), UDP, self._udp(GATEWAY, 7, 7, b"x"))
        yield (
            "a foreign MAC address",
            frame(("06:00:00:00:00:09", self.victim_mac), (me, self.victim), UDP, self._udp(me, 7, 7, b"x")),
        )
        for port in (547, 4000):
            answer = self._udp(me, port, 546, b"\x07\0\0\1")
            yield f"DHCP's answer from port {port}", frame(both, (me, self.victim), UDP, answer)
        tagged = frame(both, (GATEWAY, self.victim), UDP, self._udp(GATEWAY, 7, 7, b"x"))
        yield "a foreign source behind a VLAN tag", tagged[:12] + b"\x81\0\0\0" + tagged[12:]
        snap = b"\xaa\xaa\3\0\0\0\x86\xdd" + tagged[14:]
        yield "a foreign source in a frame with SNAP", tagged[:12] + struct.pack("!H", len(snap)) + snap
        hidden = bytes([UDP, 0, 1, 4, 0, 0, 0, 0])
        piece = struct.pack("!BBHI", OPTIONS, 0, 1, 99) + hidden
        yield "a fragment that hides its ports", frame(both, (me, self.victim), FRAGMENT, piece)
        yield "a message that is cut off", frame(both, (me, self.victim), ICMPV6, bytes([ADVERTISE_ROUTER, 0]))

    def _of_routers(self) -> Iterator[tuple[str, bytes]]:
        local, nodes = ipv6.link_local(self.mac), (self.mac, ALL_NODES_MAC)
        for source in (local, self.address, "fe80::1"):
            yield (
                f"an advertisement of routes from {source}",
                frame(nodes, (source, ALL_NODES), ICMPV6, self._routes(source)),
            )
        ends, routes = (local, ALL_NODES), self._routes(local)
        for kind, header in ((HOP_BY_HOP, b"\x3a\0\1\4\0\0\0\0"), (OPTIONS, b"\x3a\0\1\4\0\0\0\0"),
                             (OPTIONS, b"\x3a\x1e\1\xf6" + bytes(244))):  # fmt: skip
            yield "one behind an extension header", frame(nodes, ends, kind, header + routes)
        yield "one in a fragment", frame(nodes, ends, FRAGMENT, struct.pack("!BBHI", ICMPV6, 0, 1, 7) + routes[:8])
        yield "one in an atomic fragment", frame(nodes, ends, FRAGMENT, struct.pack("!BBHI", ICMPV6, 0, 0, 7) + routes)
        tiny = struct.pack("!BBHI", OPTIONS, 0, 1, 8) + b"\x3a\0\1\4\0\0\0\0"
        yield "the beginning of one that hides what it is", frame(nodes, ends, FRAGMENT, tiny)
        redirect = bytes(4) + packed(self.address) + packed(self.victim)
        yield "a redirection", self._all(local, REDIRECT, redirect)

    def _of_neighbours(self) -> Iterator[tuple[str, bytes]]:
        local = ipv6.link_local(self.mac)
        for target in (GATEWAY, self.victim, "fe80::1", ipv6.link_local(self.victim_mac)):
            yield f"a claim of {target}", self._all(self.address, ADVERTISE, self._claims(target, self.mac))
        claim = self._claims(self.address, self.victim_mac)
        yield "a claim with another's MAC address", self._all(self.address, ADVERTISE, claim)
        nonce = b"\x0e\1" + bytes(6)
        claim = self._claims(self.address, self.victim_mac, nonce)
        yield "one behind another option", self._all(self.address, ADVERTISE, claim)
        claim = self._claims(self.address, self.victim_mac, b"\x0e\xff" + bytes(255 * 8 - 2)[:1300])
        yield "one behind a huge option", self._all(self.address, ADVERTISE, claim)
        asks = bytes(4) + packed(self.victim)
        yield "a question with another's MAC address", self._all(local, SOLICIT, asks + option(1, self.victim_mac))
        yield "a probe for another's address", self._all("::", SOLICIT, asks)
        yield (
            "a search for routers with another's MAC address",
            self._all(local, SOLICIT_ROUTER, bytes(4) + option(1, self.victim_mac)),
        )


def ask_dhcp(mac: str, device: str) -> bytes:
    """Ask for an address (RFC 8415, section 18.2.1), and return the answer."""
    identifier = struct.pack("!HH", 1, 10) + struct.pack("!HH", 3, 1) + octets(mac)
    wanted = struct.pack("!HHIII", 3, 12, 1, 0, 0)
    options = struct.pack("!HHHH", 6, 4, 23, 24) + struct.pack("!HHH", 8, 2, 0)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.bind(("::", 546))
        client.settimeout(2)
        target = ("ff02::1:2", 547, 0, socket.if_nametoindex(device))
        for _ in range(15):
            client.sendto(b"\1abc" + identifier + wanted + options, target)
            try:
                return client.recv(2000)
            except TimeoutError:
                continue
    raise TimeoutError("no DHCPv6 server answers")
