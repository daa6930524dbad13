"""Frames as an attacker makes them: every layer by hand, whatever a kernel would refuse to send."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "inject.c"
BROADCAST = "ff:ff:ff:ff:ff:ff"
IPV4, ARP, VLAN, IPV6 = 0x0800, 0x0806, 0x8100, 0x86DD
UDP, ICMPV6 = socket.IPPROTO_UDP, socket.IPPROTO_ICMPV6
FRAGMENT_BYTES = 8
"""The least that a first fragment may have: a UDP header and nothing of VXLAN's."""
_ids = itertools.count(1)


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(target: str, source: str, kind: int, payload: bytes) -> bytes:
    return (mac(target) + mac(source) + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def tagged(frame: bytes, vlan: int) -> bytes:
    """Return a frame with a VLAN tag."""
    return frame[:12] + struct.pack("!HH", VLAN, vlan) + frame[12:]


def udp(source_port: int, target_port: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source_port, target_port, 8 + len(payload), 0) + payload


def ipv4(source: str, target: str, payload: bytes, protocol: int = UDP, fragment: int = 0, number: int = 0) -> bytes:
    """``fragment``: the field with flags and offset."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), number or next(_ids), fragment, 64, protocol, 0)
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    return header[:10] + struct.pack("!H", checksum(header + addresses)) + addresses + payload


def fragments(source: str, target: str, payload: bytes) -> list[bytes]:
    """Return a packet in two fragments; the first one has only the first 8 bytes."""
    number = next(_ids)
    more, offset = 0x2000, FRAGMENT_BYTES // 8
    return [
        ipv4(source, target, payload[:FRAGMENT_BYTES], fragment=more, number=number),
        ipv4(source, target, payload[FRAGMENT_BYTES:], fragment=offset, number=number),
    ]


def ipv6_udp(source: str, target: str, datagram: bytes) -> bytes:
    """Return an IPv6 packet with a datagram, whose checksum is mandatory there."""
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    pseudo = addresses + struct.pack("!I3xB", len(datagram), UDP)
    datagram = datagram[:6] + struct.pack("!H", checksum(pseudo + datagram) or 0xFFFF) + datagram[8:]
    return struct.pack("!IHBB", 6 << 28, len(datagram), UDP, 64) + addresses + datagram


def vxlan(vni: int, frame: bytes) -> bytes:
    """Return what a datagram with a frame of an overlay carries (RFC 7348, section 5)."""
    return struct.pack("!B3xI", 0x08, vni << 8) + frame


def arp(operation: int, source_mac: str, source: str, target_mac: str, target: str) -> bytes:
    addresses = mac(source_mac) + socket.inet_aton(source) + mac(target_mac) + socket.inet_aton(target)
    return struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + addresses


def build_injector(directory: Path) -> bytes:
    """Return a program for guests that sends frames as they are."""
    program = directory / "inject"
    subprocess.run(
        ["cc", "-static", "-nostdlib", "-ffreestanding", "-O1", "-fno-stack-protector", "-mgeneral-regs-only", "-s",
         "-Wl,--build-id=none,-z,noseparate-code", "-o", str(program), str(SOURCE)],
        check=True,
    )  # fmt: skip
    return program.read_bytes()


def for_injector(interface_index: int, frames: list[bytes]) -> bytes:
    """Return what the injector reads."""
    parts = [struct.pack("!I", interface_index)]
    for frame in frames:
        parts += [struct.pack("!H", len(frame)), frame]
    return b"".join(parts)


def marker() -> bytes:
    """Return what is found again wherever the frame comes out."""
    return b"nova-" + os.urandom(6).hex().encode()
