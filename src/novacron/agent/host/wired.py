"""Interfaces of VMs, as they are wired into a network on this host."""

from __future__ import annotations

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
