"""What a VM's guest says of itself, asked now and then while its agent listens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.model.vm import Guest
from novacron.qemu.guest import GuestSilent
from novacron.telemetry import logs

log = logs.get(__name__)

AGAIN_S, RETRY_S_MIN, RETRY_S_MAX = 60.0, 1.0, 60.0
CLOCK_ATTEMPTS_MAX = 5


class GuestWatch:
    """Follows one guest. ``changed`` is called when ``known`` has become another."""

    def __init__(self, machine: VirtualMachine, changed: Callable[[], None]) -> None:
        self.known: Guest | None = None
        """What it said last; None while no agent answers."""
        self._machine = machine
        self._changed = changed
        self._asking: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._clock_attempts = 0
        """How often yet the guest may be asked to set its clock; 0: it is right."""
        self._hardware_unused = False
        """The guest may not use all that it was given while it ran."""
        self._hardware_retry_s = RETRY_S_MIN

    def look(self, run_state: str) -> None:
        """Ask from now on, or no more, as the VM is."""
        listens = run_state == "running" and self._machine.guest_listens
        if listens and (self._asking is None or self._asking.done()):
            self.was_given_hardware()  # it has booted again, maybe: what was added waits to be taken into use
            self._asking = asyncio.create_task(self._ask(), name=f"guest-{self._machine.id}")
        elif not listens:
            self.stop()
            if run_state != "paused":
                self._know(None)

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def stood_still(self) -> None:
        """The guest's clock is behind: let it set that, as soon as its agent answers."""
        self._clock_attempts = CLOCK_ATTEMPTS_MAX
        self._news.set()

    def was_given_hardware(self) -> None:
        """The guest has more processors or memory: let it use them."""
        self._hardware_unused, self._hardware_retry_s = True, RETRY_S_MIN
        self._news.set()

    def _know(self, guest: Guest | None) -> None:
        if guest != self.known:
            self.known = guest
            self._changed()

    async def _ask(self) -> None:
        pause_s = RETRY_S_MIN
        while True:
            self._news.clear()
            try:
                await self._set_clock()
                guest = self._machine.guest
                known = Guest(await guest.name(), await guest.addresses(), await self._use_hardware())
                self._know(known)
                pause_s = AGAIN_S if known.addresses else 5 * RETRY_S_MIN
                if self._hardware_unused:  # its kernel may not have seen yet what was plugged in
                    pause_s = min(pause_s, self._hardware_retry_s)
                    self._hardware_retry_s = min(2 * self._hardware_retry_s, RETRY_S_MAX)
            except GuestSilent as error:
                log.info("a guest agent is silent", vm=self._machine.id, error=str(error))
                self._know(None)
                pause_s = min(pause_s * 2, RETRY_S_MAX)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), pause_s)

    async def _set_clock(self) -> None:
        """Let a guest that stood still set its clock, if it will."""
        if self._clock_attempts == 0:
            return
        try:
            await self._machine.guest.set_time(time.time_ns())
            self._clock_attempts = 0
        except GuestSilent as error:
            self._clock_attempts -= 1
            log.info("a guest's clock is not set", vm=self._machine.id, error=str(error))

    async def _use_hardware(self) -> int | None:
        """Let a guest use what it was given while it ran, if it will; many do so by themselves. Return how many MiB of
        memory it uses; None: nothing was added, or it does not say."""
        hardware = self._machine.hardware
        if hardware is None or not (hardware.dimms_mib or hardware.vcpus_added):
            self._hardware_unused = False
            return None
        vcpus = hardware.vcpus_in_all
        try:
            if self._hardware_unused:
                vcpus = await self._machine.guest.use_all()
            in_use_mib = await self._machine.guest.memory_mib()
            self._hardware_unused = vcpus < hardware.vcpus_in_all or in_use_mib < hardware.memory_in_all_mib
        except GuestSilent as error:
            log.info("a guest does not use, or tell, what was hot-plugged", vm=self._machine.id, error=str(error))
            return None
        return min(in_use_mib, hardware.memory_in_all_mib) if hardware.dimms_mib else None


async def power_off(machine: VirtualMachine) -> None:
    """Ask a guest to power off, beside pressing its button."""
    await ask_to_end(machine, "powerdown")


async def ask_to_end(machine: VirtualMachine, mode: str) -> bool:
    """Ask a guest to power off or ``reboot`` itself; say whether its agent took the request."""
    if not machine.guest_listens:
        return False
    try:
        await machine.guest.shut_down(mode)
    except GuestSilent as error:
        log.info("a guest agent does not take a request", vm=machine.id, request=mode, error=str(error))
        return False
    return True
