"""A VM's network interfaces on this host: made, kept while their guest moves, taken away."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable

import msgspec

from novacron.agent.host.instances import mark_of
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.wired import Wired
from novacron.agent.vm.directory import VmDirectory
from novacron.model import mac
from novacron.model.vm import VmSpec, mac_addresses, tap_name
from novacron.net import namespace
from novacron.net.in_flight_frames import InFlightFrames
from novacron.net.tap import NetworkFailed
from novacron.qemu.command import QemuNic
from novacron.telemetry import logs

log = logs.get(__name__)

NOTE = "interfaces.json"


class Interfaces:
    """Those of one VM. ``bridge``: where it is wired when its spec names no networks; None: nowhere."""

    def __init__(self, vm: str, home: VmDirectory, networks: NodeNetworks, bridge: str | None) -> None:
        self._vm, self._home, self._networks, self._bridge = vm, home, networks, bridge
        self._noted: tuple[Wired, ...] | None = None
        self._late: list[InFlightFrames] = []
        self._stopped = False
        """The guest stands still, and frames for it are kept."""

    @property
    def wired(self) -> tuple[Wired, ...]:
        """Its interfaces on this host, as they were noted when it was started."""
        if self._noted is None:
            self._noted = self._on_bridge(mac.from_id(self._vm))  # before they were noted, all were on it
            with contextlib.suppress(OSError, ValueError):
                self._noted = msgspec.json.decode((self._home.path / NOTE).read_bytes(), type=tuple[Wired, ...])
        return self._noted

    async def make(self, spec: VmSpec, hand: Callable[[int], int]) -> tuple[QemuNic, ...]:
        """Make a VM's interfaces and return them as QEMU has them; their descriptors are passed to ``hand``.

        Raises NetworkFailed, OSError.
        """
        wired = await self._place(spec)
        # Noted before they are made, so that a later agent can remove them.
        (self._home.path / NOTE).write_bytes(msgspec.json.encode(wired))
        self._noted = wired
        if not wired:
            return tuple(QemuNic(address, None) for address in mac_addresses(self._vm, spec))
        nics = []
        for interface in wired:
            mark = mark_of(self._networks.instance, self._vm)
            mtu, descriptor = await asyncio.to_thread(interface.create, mark)
            nics.append(QemuNic(interface.mac, interface.tap, mtu, hand(descriptor)))
        return tuple(nics)

    async def _place(self, spec: VmSpec) -> tuple[Wired, ...]:
        """Return where its interfaces belong. Raises NetworkFailed."""
        addresses = mac_addresses(self._vm, spec)
        if not spec.nics:
            return self._on_bridge(*addresses) if spec.connected else ()
        wire, nics = self._networks.wire, zip(spec.nics, addresses, strict=True)
        return tuple([await wire(self._vm, number, nic.network, mac) for number, (nic, mac) in enumerate(nics)])

    def _on_bridge(self, address: str) -> tuple[Wired, ...]:
        if self._bridge is None:
            return ()
        return (Wired(tap_name(self._vm), address, self._bridge),)

    async def delete(self) -> None:
        """Take them away."""
        for interface in self.wired:
            await asyncio.to_thread(interface.delete)

    # frames that come while the guest moves

    def expect_late_frames(self) -> None:
        """The guest may stop at any moment, unnoticed for a while: keep the latest frames for it.

        Raises NetworkFailed.
        """
        if self._stopped:
            return
        self._listen()
        for frames in self._late:
            frames.forget_old()

    def keep_late_frames(self) -> None:
        """The guest has stopped on this host for good: keep the frames that arrive for it. Raises NetworkFailed."""
        if self._stopped:
            self.drop_late_frames()
        self._stopped = True
        self._listen()

    def drop_late_frames(self) -> None:
        """The guest goes on here: its tap has what came meanwhile."""
        self._stopped = False
        for frames in self._late:
            frames.close()
        self._late = []

    def _listen(self) -> None:
        if not self._late:
            self._late = [
                namespace.within(interface.netns, functools.partial(InFlightFrames, interface.tap))
                for interface in self.wired
            ]

    async def leave(self) -> None:
        """The VM runs elsewhere now: cut its interfaces off, and send after it what came late."""
        for interface in self.wired:
            await asyncio.to_thread(interface.detach)
        try:
            for interface, frames in zip(self.wired, self._late, strict=False):
                send_after = functools.partial(frames.send_after, interface.bridge, interface.mac)
                count = namespace.within(interface.netns, send_after)
                log.info("late frames were forwarded to the guest's new node", vm=self._vm, frames=count)
        except NetworkFailed as error:
            # Their senders will repeat them; the VM has to go all the same.
            log.warning("late frames can't be forwarded", vm=self._vm, error=str(error))
        finally:
            self.drop_late_frames()
