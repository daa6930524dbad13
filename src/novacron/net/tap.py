"""Tap interfaces: made, put on a bridge, removed. Needs CAP_NET_ADMIN."""

from __future__ import annotations

import errno
from typing import Any


class NetworkFailed(Exception):
    """The kernel refused to make or change an interface: says which, and why."""


def load() -> None:
    """Load the netlink library before it is needed: that takes a third of a second."""
    _netlink().close()


def _netlink() -> Any:
    from pyroute2 import IPRoute  # large: see `load`

    return IPRoute()


def tap_address(guest_mac: str) -> str:
    """Return a tap's own address: the guest's with ``fe`` in front.

    A bridge takes the lowest address of its ports for its own, and would change it, with every connection of the host,
    when a VM comes or goes.
    """
    return "fe" + guest_mac[2:]


def create(name: str, bridge: str, guest_mac: str) -> int:
    """Make the tap ``name`` on ``bridge`` and set it up; one that exists is used. Return its MTU in bytes."""
    from pyroute2.netlink.exceptions import NetlinkError

    with _netlink() as ip:
        found = ip.link_lookup(ifname=bridge)
        if not found:
            raise NetworkFailed(f"there is no bridge {bridge!r} on this host")
        mtu = int(ip.get_links(found[0])[0].get_attr("IFLA_MTU"))
        try:
            if not ip.link_lookup(ifname=name):
                ip.link("add", ifname=name, kind="tuntap", mode="tap")
            index = ip.link_lookup(ifname=name)[0]
            ip.link("set", index=index, address=tap_address(guest_mac), mtu=mtu)
            ip.link("set", index=index, master=found[0], state="up")
        except NetlinkError as error:
            raise NetworkFailed(f"can't put tap {name} on bridge {bridge}: {error}") from error
    return mtu


def detach(name: str) -> None:
    """Take a tap off its bridge, and down; one that does not exist is no error.

    It stays for as long as its QEMU lives: an interface that vanishes leaves that busy with an error, for ever.
    """
    from pyroute2.netlink.exceptions import NetlinkError

    with _netlink() as ip:
        for index in ip.link_lookup(ifname=name):
            try:
                ip.link("set", index=index, master=0, state="down")
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise NetworkFailed(f"can't take tap {name} off its bridge: {error}") from error


def delete(name: str) -> None:
    """Remove a tap; one that does not exist is no error."""
    from pyroute2.netlink.exceptions import NetlinkError

    with _netlink() as ip:
        for index in ip.link_lookup(ifname=name):
            try:
                ip.link("del", index=index)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise NetworkFailed(f"can't remove tap {name}: {error}") from error
