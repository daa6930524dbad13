"""Guests that are slow to see what was plugged into them, and guests whose clock is not set after they stood still."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from types import SimpleNamespace
from typing import cast

import pytest

from novacron.agent.vm import guest_agent
from novacron.agent.vm.guest_agent import GuestWatch
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.model.guest_hardware import GuestHardware
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


async def test_what_a_guest_does_not_use_after_all_questions_is_said_and_ends_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guest_agent, "RETRY_S_MIN", 0.01)
    monkeypatch.setattr(guest_agent, "RETRY_S_MAX", 0.04)
    guest = SlowGuest(*[(1, 256)] * 4, (2, 384))
    hardware = GuestHardware(1, 256, vcpus_added=1, dimms_mib=(128,))
    machine = cast(VirtualMachine, SimpleNamespace(id="vm", guest=guest, hardware=hardware, guest_listens=True))
    said: list[str] = []
    watch = GuestWatch(machine, lambda: said.append(watch.unused))
    watch.look("running")
    try:
        await eventually(lambda: not guest.answers, "it was asked until it uses all")
        await eventually(lambda: watch.unused == "", "nothing is wrong any more")
    finally:
        watch.stop()
    words = next(text for text in said if text)
    assert "uses 256 MiB of memory and 1 vCPUs of the 384 MiB and 2 vCPUs" in words
    assert guest.asked == 5, "it was asked several times before that was said"


class ClockGuest(SlowGuest):
    """A guest whose clock is ``behind_s``; ``sets``: it sets it when it is asked to."""

    def __init__(self, behind_s: float, *, sets: bool = True, refuses: str = "") -> None:
        super().__init__()
        self.behind_s, self.sets, self.refuses = behind_s, sets, refuses
        self.times_asked = 0

    async def set_time(self, now_ns: int) -> None:
        self.times_asked += 1
        if self.refuses:
            raise GuestSilent(self.refuses)
        if self.sets:
            self.behind_s = 0.0

    async def time_ns(self) -> int:
        return time.time_ns() - int(self.behind_s * 1e9)


def watching(guest: ClockGuest, *, listens: bool = True) -> GuestWatch:
    machine = SimpleNamespace(id="vm", guest=guest, hardware=None, guest_listens=listens)
    return GuestWatch(cast(VirtualMachine, machine), lambda: None)


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        (ClockGuest(100.0, sets=False), "its clock is 100 s behind, after it was set"),
        (ClockGuest(-100.0, sets=False), "its clock is 100 s ahead, after it was set"),
        (ClockGuest(100.0, refuses="guest-set-time is disabled"), "does not set it: guest-set-time is disabled"),
    ],
    ids=["lies", "lies the other way", "refuses"],
)
async def test_a_guest_whose_clock_is_not_set_is_asked_again_and_then_it_is_said(
    monkeypatch: pytest.MonkeyPatch, guest: ClockGuest, words: str
) -> None:
    monkeypatch.setattr(guest_agent, "RETRY_S_MIN", 0.01)
    monkeypatch.setattr(guest_agent, "AGAIN_S", 0.01)
    watch = watching(guest)
    watch.stood_still(100.0)
    watch.look("running")
    try:
        await eventually(lambda: bool(watch.clock), "it is said")
        assert words in watch.clock and guest.times_asked == guest_agent.CLOCK_ATTEMPTS_MAX
        guest.behind_s = 0.0  # somebody else has set it
        await eventually(lambda: not watch.clock, "it is not said any more")
    finally:
        watch.stop()
    assert guest.times_asked == guest_agent.CLOCK_ATTEMPTS_MAX


async def test_a_guest_that_sets_its_clock_is_asked_once_and_nothing_is_said() -> None:
    guest = ClockGuest(100.0)
    watch = watching(guest)
    watch.stood_still(100.0)
    watch.look("running")
    try:
        await eventually(lambda: watch.known is not None, "it was asked")
    finally:
        watch.stop()
    assert (guest.times_asked, guest.behind_s, watch.clock) == (1, 0.0, "")


def boots(watch: GuestWatch) -> None:
    watch.booted()


def ends(watch: GuestWatch) -> None:
    watch.look("absent")


@pytest.mark.parametrize("then", [boots, ends])
def test_a_guest_without_an_agent_is_said_to_be_behind_until_it_boots(then: Callable[[GuestWatch], None]) -> None:
    watch = watching(ClockGuest(0.0), listens=False)
    watch.look("running")
    assert watch.clock == "", "it never stood still"
    watch.stood_still(1.0)
    watch.look("running")
    assert watch.clock == "", "it is not worth a word"
    watch.stood_still(30.0)
    watch.look("running")
    assert watch.clock == "its clock may be behind by 30 s: no guest agent answers, which could set it"
    watch.stood_still(inf)
    watch.look("running")
    assert "since it was reverted" in watch.clock
    then(watch)
    watch.look("running")
    assert watch.clock == ""


async def test_a_guest_agent_that_comes_later_sets_the_clock() -> None:
    guest = ClockGuest(30.0)
    watch = watching(guest, listens=False)
    watch.stood_still(30.0)
    watch.look("running")
    assert watch.clock
    watch._machine.guest_listens = True
    watch.look("running")
    try:
        await eventually(lambda: not watch.clock, "it has set it")
    finally:
        watch.stop()
    assert guest.behind_s == 0.0
