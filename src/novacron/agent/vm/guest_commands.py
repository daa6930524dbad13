"""Programs that users run in guests, and files that they move in and out, through the guest agents."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.model import limits
from novacron.model.errors import InvalidInput
from novacron.model.guest_command import FilePiece, GuestCommand, NewCommand
from novacron.qemu.guest import GuestSilent

FIRST_LOOK_S, LOOK_S_MAX = 0.02, 0.5
STARTED_MAX, ENDED_MAX = 256, 32
"""How many are remembered, of all VMs."""


class GuestCommands:
    """Starts each command once, however often it is asked to, and remembers how the last ones ended.

    A guest agent says only once what a program printed, and that may get lost on the way to who asked.
    """

    def __init__(self) -> None:
        self._started: OrderedDict[tuple[str, str], asyncio.Future[int]] = OrderedDict()
        """Process ids, by VM and key."""
        self._ended: OrderedDict[tuple[str, int], GuestCommand] = OrderedDict()

    async def start(self, machine: VirtualMachine, key: str, command: NewCommand) -> int:
        """Start a command, unless it was with this key, and return its process id. Raises InvalidInput."""
        _check_listens(machine)
        place = (machine.id, key)
        if place in self._started:
            return await asyncio.shield(self._started[place])
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._started[place] = started
        while len(self._started) > STARTED_MAX:
            self._started.popitem(last=False)
        try:
            pid = await machine.guest.start(command)
        except BaseException as error:
            self._started.pop(place, None)
            refusal = InvalidInput(str(error)) if isinstance(error, GuestSilent) else error
            started.set_exception(refusal)
            started.exception()  # whether or not somebody else waits for it
            raise refusal from None
        self._ended.pop((machine.id, pid), None)  # an earlier one, of a guest that has booted again
        started.set_result(pid)
        return pid

    async def wait(self, machine: VirtualMachine, pid: int, wait_s: float) -> GuestCommand:
        """Return how a command is, once it has ended or the time is over. Raises InvalidInput."""
        until_s, pause_s = time.monotonic() + wait_s, FIRST_LOOK_S
        while True:
            if (machine.id, pid) in self._ended:
                return self._ended[machine.id, pid]
            _check_listens(machine)
            try:
                status = await machine.guest.command(pid)
            except GuestSilent as error:
                if (machine.id, pid) in self._ended:  # somebody else was told meanwhile, and nobody is told twice
                    continue
                raise InvalidInput(str(error), field="pid") from None
            if not status.running:
                self._remember(machine.id, status)
                return status
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return status
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, LOOK_S_MAX)

    def _remember(self, vm: str, status: GuestCommand) -> None:
        self._ended[vm, status.pid] = status
        while len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)


async def read_file(machine: VirtualMachine, path: str, offset: int, bytes_max: int) -> FilePiece:
    """Return a piece of a file in a guest. Raises InvalidInput."""
    _check_listens(machine)
    try:
        return await machine.guest.read_file(path, offset, min(bytes_max, limits.GUEST_PIECE_BYTES_MAX))
    except GuestSilent as error:
        raise InvalidInput(str(error), field="path") from None


async def write_file(machine: VirtualMachine, path: str, offset: int, data: bytes) -> int:
    """Write a piece of a file in a guest and return how long it is then. Raises InvalidInput."""
    _check_listens(machine)
    try:
        return await machine.guest.write_file(path, offset, data)
    except GuestSilent as error:
        raise InvalidInput(str(error), field="path") from None


def _check_listens(machine: VirtualMachine) -> None:
    if not machine.guest_listens:
        raise InvalidInput(
            "no guest agent listens in this VM: install qemu-guest-agent in it, and check that it runs", field="vm"
        )
