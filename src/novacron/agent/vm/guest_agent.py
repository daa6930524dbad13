"""What a VM's guest says of itself, asked now and then while its agent listens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from math import inf

from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.model.guest_reports import Guest
from novacron.qemu.guest import GuestSilent
from novacron.telemetry import logs

log = logs.get(__name__)

AGAIN_S, RETRY_S_MIN, RETRY_S_MAX = 60.0, 1.0, 60.0
CLOCK_ATTEMPTS_MAX = 5
CLOCK_WRONG_S = 2.0
"""A guest's clock that is wrong by more is said to be: its agent takes its time to answer."""


class GuestWatch:
    """Follows one guest. ``changed`` is called when ``known`` has become another."""

    def __init__(self, machine: VirtualMachine, changed: Callable[[], None]) -> None:
        self.known: Guest | None = None
        """What it said last; None while no agent answers."""
        self._machine = machine
        self._changed = changed
        self._asking: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self.clock = ""
        """What is wrong with the guest's clock since it stood still; empty: nothing, as far as it is known."""
        self.unused = ""
        """What of the hardware that it was given while it ran it does not use, though it was asked again and again."""
        self._clock_attempts = 0
        """How often yet the guest may be asked to set its clock."""
        self._stood_still_s = 0.0
        self._hardware_unused = False
        """The guest may not use all that it was given while it ran."""
        self._hardware_retry_s = RETRY_S_MIN

    def look(self, run_state: str) -> None:
        """Ask from now on, or no more, as the VM is."""
        listens = run_state == "running" and self._machine.guest_listens
        if run_state == "absent":
            self.booted()
        elif run_state == "running" and not listens and self._clock_attempts and self._stood_still_s >= CLOCK_WRONG_S:
            still = "since it was reverted" if self._stood_still_s == inf else f"by {self._stood_still_s:.0f} s"
            self._say_clock(f"its clock may be behind {still}: no guest agent answers, which could set it")
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

    def stood_still(self, seconds: float) -> None:
        """The guest's clock is behind: let it set that, as soon as its agent answers. 0: by moments, ``inf``: by an
        unknown time."""
        self._stood_still_s = max(seconds, self._stood_still_s if self._clock_attempts or self.clock else 0.0)
        self._clock_attempts = CLOCK_ATTEMPTS_MAX
        self._news.set()

    def booted(self) -> None:
        """The guest begins anew: it reads the clock then."""
        self._clock_attempts = 0
        self._say_clock("")

    def _say_clock(self, words: str) -> None:
        if words != self.clock:
            self.clock = words
            self._changed()

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
            wait_s = pause_s
            if self._clock_attempts:
                wait_s = min(wait_s, RETRY_S_MIN * 2.0 ** (CLOCK_ATTEMPTS_MAX - self._clock_attempts))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), wait_s)

    async def _set_clock(self) -> None:
        """Let a guest that stood still set its clock, if it will; look later whether somebody else has."""
        if self._clock_attempts == 0:
            if self.clock and not await self._wrong_clock():
                self._say_clock("")
            return
        try:
            await self._machine.guest.set_time(time.time_ns())
            wrong = await self._wrong_clock()
        except GuestSilent as error:
            wrong = f"its clock may be behind, and its guest agent does not set it: {error}"
        if not wrong:
            self._clock_attempts = 0
            self._say_clock("")
            return
        self._clock_attempts -= 1
        log.info("a guest's clock is not set", vm=self._machine.id, error=wrong)
        if self._clock_attempts == 0:
            self._say_clock(wrong)

    async def _wrong_clock(self) -> str:
        """Return what is wrong with the guest's clock, as it says itself. Raises GuestSilent."""
        before_ns = time.time_ns()
        clock_ns = await self._machine.guest.time_ns()
        after_ns = time.time_ns()
        wrong_s = max(before_ns - clock_ns, clock_ns - after_ns) / 1e9
        if wrong_s <= CLOCK_WRONG_S:
            return ""
        return f"its clock is {wrong_s:.0f} s {'behind' if clock_ns < before_ns else 'ahead'}, after it was set"

    def _say_unused(self, words: str) -> None:
        if words != self.unused:
            self.unused = words
            self._changed()

    async def _use_hardware(self) -> int | None:
        """Let a guest use what it was given while it ran, if it will; many do so by themselves. Return how many MiB of
        memory it uses; None: nothing was added, or it does not say."""
        hardware = self._machine.hardware
        if hardware is None or not (hardware.dimms_mib or hardware.vcpus_added):
            self._hardware_unused = False
            self._say_unused("")
            return None
        vcpus, unused = hardware.vcpus_in_all, ""
        try:
            if self._hardware_unused:
                vcpus = await self._machine.guest.use_all()
            in_use_mib = await self._machine.guest.memory_mib()
            self._hardware_unused = vcpus < hardware.vcpus_in_all or in_use_mib < hardware.memory_in_all_mib
            if self._hardware_unused and (self.unused or self._hardware_retry_s >= RETRY_S_MAX):
                unused = (
                    f"its guest uses {in_use_mib} MiB of memory and {vcpus} vCPUs of the"
                    f" {hardware.memory_in_all_mib} MiB and {hardware.vcpus_in_all} vCPUs that it has: reset it, or see"
                    " its kernel"
                )
        except GuestSilent as error:
            log.info("a guest does not use, or tell, what was hot-plugged", vm=self._machine.id, error=str(error))
            return None
        self._say_unused(unused)
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
