"""A VM's network interfaces on this host: made, kept while their guest moves, taken away."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator

import msgspec

from novacron.agent.host.instances import mark_of
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.wired import Wired
from novacron.agent.vm.directory import VmDirectory
from novacron.model import mac
from novacron.model.network import MTU_DEFAULT
from novacron.model.plugged import HOT, GuestNics
from novacron.model.vm import VmSpec, mac_addresses, tap_name
from novacron.net import namespace, tap
from novacron.net.in_flight_frames import InFlightFrames
from novacron.net.tap import NetworkFailed
from novacron.qemu.nics import QemuNic
from novacron.telemetry import logs

log = logs.get(__name__)

NOTE = "interfaces.json"
LEAVING = "abcdefghijklmnop"
"""End the names of taps whose interfaces guests are to lose, instead of a number."""


def _named(wired: tuple[Wired, ...], spec: VmSpec, has: GuestNics | None) -> tuple[Wired, ...]:
    """Return interfaces with their names among the guest's devices: by their places in the spec, or those that a guest
    that comes here ``has``, without those that it has not got yet."""
    if has is None or not spec.nics:
        kind = "nic" if spec.network_boot_order is None else "net"
        return tuple(msgspec.structs.replace(nic, device=f"{kind}{number}") for number, nic in enumerate(wired))
    return tuple(
        msgspec.structs.replace(nic, device=device) for nic in wired if (device := has.device_of(nic.mac)) is not None
    )


class Interfaces:
    """Those of one VM. ``bridge``: where it is wired when its spec names no networks; None: nowhere."""

    def __init__(self, vm: str, home: VmDirectory, networks: NodeNetworks, bridge: str | None) -> None:
        self._vm, self._home, self._networks, self._bridge = vm, home, networks, bridge
        self._noted: tuple[Wired, ...] | None = None
        self._late: list[InFlightFrames] = []
        self.unsure = False
        """The guest may have others than are noted."""
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

    async def make(self, spec: VmSpec, hand: Callable[[int], int], has: GuestNics | None = None) -> tuple[QemuNic, ...]:
        """Make a VM's interfaces and return them as QEMU has them; their descriptors are passed to ``hand``. ``has``:
        those of a guest that comes here while it runs.

        Raises NetworkFailed, OSError.
        """
        wired = _named(await self._place(spec), spec, has)
        # Noted before they are made, so that a later agent can remove them.
        self._note(wired)
        if not wired and not spec.nics:
            return tuple(QemuNic(address, None) for address in mac_addresses(self._vm, spec))
        nics = []
        for interface in wired:
            mtu, descriptor = await asyncio.to_thread(interface.create, self._mark)
            nics.append(QemuNic(interface.mac, interface.tap, mtu, hand(descriptor), interface.device))
        nics += self._leaving(has if spec.nics else None, hand)
        return tuple(sorted(nics, key=lambda nic: (nic.device.startswith(HOT), nic.device)))  # as at the start

    def _leaving(self, has: GuestNics | None, hand: Callable[[int], int]) -> Iterator[QemuNic]:
        """Yield the interfaces that a guest that comes here has, and is to lose: on taps that lead nowhere."""
        macs = {interface.mac for interface in self.wired}
        left = [] if has is None else [nic for nic in has.devices if nic.mac not in macs]
        self.unsure = bool(left)
        for nic, letter in zip(left, reversed(LEAVING), strict=False):
            name = tap_name(self._vm) + letter
            yield QemuNic(nic.mac, name, MTU_DEFAULT, hand(tap.open_(name)), nic.device)

    @property
    def _mark(self) -> str:
        return mark_of(self._networks.instance, self._vm)

    def _note(self, wired: tuple[Wired, ...]) -> None:
        (self._home.path / NOTE).write_bytes(msgspec.json.encode(wired))
        self._noted = wired

    def _free_name(self) -> str:
        """Return a name for the tap of an interface that leaves: none of those by which others are known."""
        taken = {interface.tap for interface in self.wired}
        return next(name for letter in LEAVING if (name := tap_name(self._vm) + letter) not in taken)

    # while the guest runs

    def are(self, spec: VmSpec) -> bool:
        """Say whether a guest that runs has the interfaces of a spec, as far as is noted."""
        addresses = mac_addresses(self._vm, spec)
        desired = [(nic.network, nic.address, address) for nic, address in zip(spec.nics, addresses, strict=True)]
        has = [(nic.network, nic.address, nic.mac) for nic in self.wired if nic.device]
        return desired == has and not self.unsure and len(has) == len(self.wired)

    def of(self, address: str) -> Wired | None:
        return next((interface for interface in self.wired if interface.mac == address), None)

    async def add(self, place: Wired) -> tuple[QemuNic, int]:
        """Make an interface that the guest has not got yet, and return it with its tap, open, which the caller closes.

        Raises NetworkFailed, OSError.
        """
        self.replace(place.mac, place)
        mtu, descriptor = await asyncio.to_thread(place.create, self._mark)
        return QemuNic(place.mac, place.tap, mtu, descriptor), descriptor

    async def move(self, before: Wired, after: Wired) -> None:
        """Move an interface that the guest has. Raises NetworkFailed, OSError."""
        await asyncio.to_thread(before.move, after, self._mark)
        self.replace(before.mac, after)

    async def cut_off(self, interface: Wired) -> None:
        """Cut off an interface that the guest is to lose, and let others have its name. Raises NetworkFailed."""
        if interface.tap[-1] in LEAVING and interface.tap[:-1] == tap_name(self._vm):
            return
        name = self._free_name()
        await asyncio.to_thread(interface.part, name)
        self.replace(interface.mac, msgspec.structs.replace(interface, tap=name, network="", device=""))

    async def drop(self, interface: Wired) -> None:
        """Remove an interface that the guest has lost. Raises NetworkFailed, OSError."""
        await asyncio.to_thread(interface.delete)
        self.replace(interface.mac, None)

    def replace(self, address: str, after: Wired | None) -> None:
        """Note what became of an interface; None: it is gone. Those that leave come last."""
        others = [interface for interface in self.wired if interface.mac != address]
        every = others if after is None else [*others, after]
        self._note(tuple(sorted(every, key=lambda interface: (len(interface.tap), interface.tap))))

    async def _place(self, spec: VmSpec) -> tuple[Wired, ...]:
        """Return where its interfaces belong. Raises NetworkFailed."""
        addresses = mac_addresses(self._vm, spec)
        if not spec.nics:
            return self._on_bridge(*addresses) if spec.connected else ()
        wire, nics = self._networks.wire, zip(spec.nics, addresses, strict=True)
        places = [
            (nic.address, await wire(self._vm, number, nic.network, mac)) for number, (nic, mac) in enumerate(nics)
        ]
        return tuple(msgspec.structs.replace(place, address=address) for address, place in places)

    def _on_bridge(self, address: str) -> tuple[Wired, ...]:
        if self._bridge is None:
            return ()
        return (Wired(tap_name(self._vm), address, self._bridge),)

    async def delete(self) -> None:
        """Take them away. Raises NetworkFailed."""
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
