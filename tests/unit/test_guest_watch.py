"""Guests that are slow to see what was plugged into them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from novacron.agent.vm import guest_agent
from novacron.agent.vm.guest_agent import GuestWatch
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.model.vm import GuestHardware
from novacron.qemu.guest import GuestSilent
from tests.waiting import eventually, pause_async


class SlowGuest:
    """Each time it is asked to use all, it does a little more: (processors, MiB) as it answers."""

    def __init__(self, *answers: tuple[int, int] | None) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.mib = 0

    async def name(self) -> str:
        return "slow"

    async def addresses(self) -> tuple[str, ...]:
        return ("10.0.0.2",)

    async def use_all(self) -> int:
        self.asked += 1
        answer = self.answers.pop(0)
        if answer is None:
            raise GuestSilent("busy")
        vcpus, self.mib = answer
        return vcpus

    async def memory_mib(self) -> int:
        return self.mib


@pytest.mark.parametrize(
    "answers",
    [
        [(2, 384)],
        [(1, 384), (2, 384)],
        [(1, 256), (2, 256), (2, 384)],
        [None, (1, 384), None, (2, 384)],
    ],
    ids=["at once", "processor later", "memory last", "silent in between"],
)  # fmt: skip
async def test_a_guest_is_asked_again_soon_until_it_uses_all_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch, answers: list[tuple[int, int] | None]
) -> None:
    """A minute until the next question would be too long: its kernel needs seconds to see a processor."""
    monkeypatch.setattr(guest_agent, "RETRY_S_MIN", 0.01)
    guest = SlowGuest(*answers)
    hardware = GuestHardware(1, 256, vcpus_added=1, dimms_mib=(128,))
    machine = cast(VirtualMachine, SimpleNamespace(id="vm", guest=guest, hardware=hardware, guest_listens=True))
    watch = GuestWatch(machine, lambda: None)
    watch.look("running")
    try:
        await eventually(lambda: not guest.answers, "it was asked until it uses all")
        await pause_async(0.1)
        assert guest.asked == len(answers), "and not again once it does"
        assert watch.known is not None and watch.known.memory_mib == 384
    finally:
        watch.stop()
