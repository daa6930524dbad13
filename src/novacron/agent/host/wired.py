"""Interfaces of VMs, as they are wired into a network on this host."""

from __future__ import annotations

import os

import msgspec

from novacron.net import namespace, tap


class Wired(msgspec.Struct, frozen=True):
    """An interface of a VM on this host. ``netns`` None: its bridge is the host's own."""

    tap: str
    mac: str
    bridge: str
    netns: str | None = None
    mtu: int | None = None
    vlan: int | None = None
    address: str | None = None
    """Its guest's IPv4 address, as far as it was given one."""
    network: str = ""
    """Empty: it is in none, or it was noted by an earlier version."""
    device: str = ""
    """Its name among the guest's devices; empty: by its place, or it is not plugged in yet."""

    def same_place(self, other: Wired) -> bool:
        """Say whether it is in the same network as another one."""
        return (self.bridge, self.netns, self.vlan) == (other.bridge, other.netns, other.vlan)

    def move(self, to: Wired, mark: str) -> None:
        """Let its tap, which its QEMU keeps, be ``to``: another name, another network. Raises NetworkFailed."""
        netns = None if self.netns == to.netns else namespace.open_(to.netns)
        try:
            namespace.within(self.netns, lambda: tap.move(self.tap, to.tap, netns))
        finally:
            if netns is not None:
                os.close(netns)
        namespace.within(to.netns, lambda: tap.create(to.tap, to.bridge, to.mac, to.vlan, mark))

    def part(self, name: str) -> None:
        """Cut it off under another name, until its QEMU lets go of it. Raises NetworkFailed."""
        namespace.within(self.netns, lambda: tap.move(self.tap, name))

    def create(self, mark: str) -> tuple[int, int]:
        """Make its tap, with the mark of whose it is; return the MTU, and the tap, open. Raises NetworkFailed."""

        def make() -> tuple[int, int]:
            mtu = tap.create(self.tap, self.bridge, self.mac, self.vlan, mark)
            return mtu, tap.open_(self.tap)

        return namespace.within(self.netns, make)

    def delete(self) -> None:
        """Remove its tap, if that is there, as its network may not be. Raises NetworkFailed."""
        if self.netns is None or namespace.exists(self.netns):
            namespace.within(self.netns, lambda: tap.delete(self.tap))

    def detach(self) -> None:
        """Take its tap off the bridge. Raises NetworkFailed."""
        namespace.within(self.netns, lambda: tap.detach(self.tap))
