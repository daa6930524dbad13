"""The network interfaces that a VM has while it runs: let them be as the server says."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator

import msgspec

from novacron.agent.actions import Action, Doing
from novacron.agent.host.clock import Clock
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.wired import Wired
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.model.plugged import GuestNics
from novacron.model.vm import VmSpec, mac_addresses
from novacron.model.waiting import WaitCode, code_of
from novacron.net.tap import NetworkFailed
from novacron.qemu import hotplug, nics
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

CABLE_OUT_S = 1.0
"""So that a guest notices."""
AGAIN_S = 10.0
"""Until what failed is tried again."""


class Nics:
    """Those of one VM."""

    def __init__(self, machine: VirtualMachine, networks: NodeNetworks, doing: Doing, clock: Clock) -> None:
        self._machine, self._networks, self._doing, self._clock = machine, networks, doing, clock
        self.lacks: tuple[str, WaitCode | None] = ("", None)
        """Why the guest has not got the interfaces that it should have, or does not let go of others."""
        self._last_attempt: tuple[int | None, VmSpec] | None = None
        self._last_attempt_at = 0.0

    @property
    def look_s(self) -> float | None:
        """When to look again, though nothing happens."""
        return max(0.0, self._last_attempt_at + AGAIN_S - self._clock.monotonic()) if self.lacks[0] else None

    async def settle(self, assignment: wire.Assignment) -> None:
        """Let the guest, if it runs, have the interfaces that it should. Raises MonitorFailed when QEMU does not
        answer."""
        spec, monitor, interfaces = assignment.spec, self._machine.monitor, self._machine.interfaces
        if monitor is None or not spec.nics or interfaces.are(spec):
            self._last_attempt, self.lacks = None, ("", None)
            return
        attempt = (self._machine.pid, spec)
        if self._last_attempt == attempt and self._clock.monotonic() < self._last_attempt_at + AGAIN_S:
            return
        self._last_attempt, self._last_attempt_at = attempt, self._clock.monotonic()
        failures = await self._settle(monitor, spec)
        self._machine.hardware = await hotplug.look(monitor)
        for failure in failures:
            log.warning("an interface can't be set up", vm=self._machine.id, error=str(failure))
        self.lacks = (str(failures[0]) or "it can't be set up", code_of(failures[0])) if failures else ("", None)
        interfaces.unsure = bool(failures)

    async def _settle(self, monitor: Monitor, spec: VmSpec) -> list[Exception]:
        """Do what there is to do, and return what failed of it: one interface does not keep the others from it."""
        interfaces, failures = self._machine.interfaces, list[Exception]()
        guest_nics = await nics.look(monitor)
        addresses = mac_addresses(self._machine.id, spec)
        surplus = [interface for interface in interfaces.wired if interface.mac not in addresses]
        for interface in surplus:  # first: others take their names, and their guests wait for that
            with _noted(failures):
                await interfaces.cut_off(interface)
        for number, (nic, address) in enumerate(zip(spec.nics, addresses, strict=True)):
            with _noted(failures):
                place = await self._networks.wire(self._machine.id, number, nic.network, address)
                place = msgspec.structs.replace(place, address=nic.address)
                await self._have(monitor, spec, place, guest_nics)
        guest_devices = () if guest_nics is None else guest_nics.devices
        surplus_devices = {nic.mac: nic.device for nic in guest_devices if nic.mac not in addresses}
        for address in surplus_devices.keys() | {interface.mac for interface in surplus}:
            with _noted(failures):
                await self._lose(monitor, address, surplus_devices.get(address))
        return failures

    async def _have(self, monitor: Monitor, spec: VmSpec, place: Wired, guest_nics: GuestNics | None) -> None:
        """Let the guest have an interface at its place. Raises MonitorFailed, NetworkFailed, OSError."""
        interfaces, before = self._machine.interfaces, self._machine.interfaces.of(place.mac)
        device = f"nic{_number(place)}" if guest_nics is None else guest_nics.device_of(place.mac)
        if before is None or device is None:
            with self._doing(Action.ATTACH, interface=place.mac, network=place.network):
                nic, descriptor = await interfaces.add(place)
                try:
                    device = await nics.plug(monitor, nic, spec.nic_model)
                finally:
                    await asyncio.to_thread(os.close, descriptor)
            interfaces.replace(place.mac, msgspec.structs.replace(place, device=device))
            return
        after = msgspec.structs.replace(place, device=device)
        stays = before.same_place(after) and (before.address == after.address or not before.network)
        if stays and before.tap == after.tap:
            interfaces.replace(place.mac, after)
        elif stays:
            await interfaces.move(before, after)
        else:
            log.info("an interface moves", vm=self._machine.id, mac=place.mac, network=place.network)
            await self._replug(monitor, before, after)

    async def _replug(self, monitor: Monitor, before: Wired, after: Wired) -> None:
        """Move an interface to another network, or let its guest ask for another address: to the guest, its cable is
        pulled out and put in elsewhere. Raises MonitorFailed, NetworkFailed, OSError."""
        await nics.link(monitor, after.device, up=False)
        try:
            await self._machine.interfaces.move(before, after)
            await self._clock.sleep(CABLE_OUT_S)
        finally:
            await nics.link(monitor, after.device, up=True)

    async def _lose(self, monitor: Monitor, address: str, device: str | None) -> None:
        """Let the guest lose an interface. Raises MonitorFailed, NetworkFailed, OSError."""
        if device is not None:
            with self._doing(Action.DETACH, interface=address):
                await nics.unplug(monitor, device)
        if (interface := self._machine.interfaces.of(address)) is not None:
            await self._machine.interfaces.drop(interface)


@contextlib.contextmanager
def _noted(failures: list[Exception]) -> Iterator[None]:
    try:
        yield
    except (MonitorFailed, NetworkFailed, OSError) as failure:
        failures.append(failure)


def _number(place: Wired) -> int:
    return int(place.tap[14:] or 0)
