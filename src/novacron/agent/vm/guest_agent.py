"""What a VM's guest says of itself, asked now and then while its agent listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.model.vm import Guest
from novacron.qemu.guest import GuestSilent
from novacron.telemetry import logs

log = logs.get(__name__)

AGAIN_S, RETRY_S_MIN, RETRY_S_MAX = 60.0, 1.0, 60.0


class GuestWatch:
    """Follows one guest. ``changed`` is called when ``known`` has become another."""

    def __init__(self, machine: VirtualMachine, changed: Callable[[], None]) -> None:
        self.known: Guest | None = None
        """What it said last; None while no agent answers."""
        self._machine = machine
        self._changed = changed
        self._asking: asyncio.Task[None] | None = None

    def look(self, run_state: str) -> None:
        """Ask from now on, or no more, as the VM is."""
        listens = run_state == "running" and self._machine.guest_listens
        if listens and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask(), name=f"guest-{self._machine.id}")
        elif not listens:
            self.stop()
            if run_state != "paused":
                self._know(None)

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def _know(self, guest: Guest | None) -> None:
        if guest != self.known:
            self.known = guest
            self._changed()

    async def _ask(self) -> None:
        pause_s = RETRY_S_MIN
        while True:
            try:
                self._know(Guest(await self._machine.guest.name(), await self._machine.guest.addresses()))
                pause_s = AGAIN_S if self.known is not None and self.known.addresses else 5 * RETRY_S_MIN
            except GuestSilent as error:
                log.info("a guest agent is silent", vm=self._machine.id, error=str(error))
                self._know(None)
                pause_s = min(pause_s * 2, RETRY_S_MAX)
            await asyncio.sleep(pause_s)


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


async def take_hardware(machine: VirtualMachine) -> None:
    """Let a guest use what it was given while it runs, if it will; many do so by themselves."""
    if machine.guest_listens:
        try:
            await machine.guest.use_all()
        except GuestSilent as error:
            log.info("a guest refuses what was hot-plugged", vm=machine.id, error=str(error))


async def set_time(machine: VirtualMachine) -> None:
    """Let a guest that stood still set its clock, if it will."""
    if machine.guest_listens:
        try:
            await machine.guest.set_time()
        except GuestSilent as error:
            log.info("a guest's clock is not set", vm=machine.id, error=str(error))
