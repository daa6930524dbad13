"""MAC addresses of VMs' interfaces: how new ones are made, and which ones users may choose."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from msgspec import Meta

from novacron.model.errors import InvalidInput

MacAddress = Annotated[
    str,
    Meta(
        pattern=r"^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\Z",
        description="a unicast MAC address, such as 06:1f:02:aa:00:10",
    ),
]
FIRST_OCTET = 0x06
"""Locally administered and unicast (IEEE 802, section 8.4). The other 40 bits of a new address are random."""
RANDOM_BYTES = 5
RESERVED = {"fe:": "taps of VMs", "02:4e:4f:56:": "gateways of networks", "02:4e:4f:57:": "nodes in networks"}
"""What addresses of NovaCron's own interfaces begin with, and whose they are."""
HINT = "leave it out to get a free one"


def from_random(random: bytes) -> str:
    """Return the MAC address that 5 random bytes make."""
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"a MAC address takes {RANDOM_BYTES} random bytes, got {len(random)}")
    return bytes((FIRST_OCTET, *random)).hex(":")


def from_id(id: str, nic: int = 0) -> str:
    """Return the MAC address of an interface whose VM's spec has none: QEMU's prefix and 24 bits of a hash of its id.

    VMs created before addresses were assigned have these. Two such VMs may have the same.
    """
    digest = hashlib.sha256(f"{id}/{nic}".encode() if nic else id.encode()).digest()
    return f"52:54:00:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"


def check(text: str, field: str) -> str:
    """Return a MAC address that a user chose, in lower case. Raises InvalidInput."""
    mac = text.lower()
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac):
        raise InvalidInput(f"{text!r} is not a MAC address", field=field, hint="write it like 06:1f:02:aa:00:10")
    if int(mac[:2], 16) & 1:
        raise InvalidInput(f"{text} is a multicast address", field=field, hint="the second digit must be even")
    if mac == "00:00:00:00:00:00":
        raise InvalidInput(f"{text} can't be used as an interface's MAC address", field=field, hint=HINT)
    for prefix, holders in RESERVED.items():
        if mac.startswith(prefix):
            raise InvalidInput(f"{text} is reserved: {prefix}... is for {holders}", field=field, hint=HINT)
    return mac
