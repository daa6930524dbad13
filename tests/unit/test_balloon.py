"""Guests that give memory back, and guests that do not."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from novacron.agent.host.clock import Clock
from novacron.agent.vm.balloon import FOLLOW_S, GuestBalloon
from novacron.model.errors import IllegalState, InvalidInput
from novacron.model.guest_hardware import GuestHardware
from novacron.model.vm import Power, Vm, VmAction, VmSpec, VmState, VmStatus
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.store import sizes, vms

HAS = GuestHardware(1, 512, dimms_mib=(128,), balloon=True)


class Guest:
    """Stands for QEMU's monitor, and for the clock."""

    def __init__(self, *, follows: bool) -> None:
        self.is_mib, self.asked, self.now, self._follows = 640, list[int](), 0.0, follows

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        if command == "query-balloon":
            return {"actual": self.is_mib << 20}
        if command != "balloon":
            raise MonitorFailed("nothing else is there")
        assert arguments is not None
        self.asked.append(arguments["value"] >> 20)
        if self._follows:
            self.is_mib = self.asked[-1]
        return None

    def monotonic(self) -> float:
        return self.now


def settle(guest: Guest, balloon: GuestBalloon, wanted_mib: int | None, has: GuestHardware = HAS) -> str:
    return asyncio.run(balloon.settle(cast(Monitor, guest), 7, has, wanted_mib))


def looks(balloon: GuestBalloon) -> bool:
    return balloon.look_s is not None


def test_a_guest_gives_memory_back_and_gets_it_again() -> None:
    guest = Guest(follows=True)
    balloon = GuestBalloon(cast(Clock, guest))
    assert settle(guest, balloon, None) == "" and guest.asked == []
    assert settle(guest, balloon, 256) == "" and looks(balloon)
    assert settle(guest, balloon, 256) == "" and (balloon.left_mib, looks(balloon), guest.asked) == (256, False, [256])
    settle(guest, balloon, None)
    assert settle(guest, balloon, None) == "" and (balloon.left_mib, guest.asked) == (None, [256, 640])


def test_a_guest_that_keeps_its_memory_is_told_of_after_a_time() -> None:
    guest = Guest(follows=False)
    balloon = GuestBalloon(cast(Clock, guest))
    assert settle(guest, balloon, 256) == ""
    guest.now = FOLLOW_S - 1
    assert settle(guest, balloon, 256) == "" and looks(balloon)
    guest.now = FOLLOW_S
    assert "has 640 MiB of memory, not 256" in settle(guest, balloon, 256)
    assert (balloon.left_mib, looks(balloon), set(guest.asked)) == (None, False, {256})
    assert settle(guest, balloon, 256, msgspec.structs.replace(HAS, balloon=False)) == ""


def running(**spec: Any) -> Vm:
    values = {"image": "tiny", "memory_mib": 640, "power": "running", **spec}
    status = VmStatus(state=VmState.RUNNING, hardware=HAS)
    vm = {
        "id": "vm-a", "name": "web", "spec": values, "status": msgspec.to_builtins(status), "node": "host-a",
        "epoch": 1,
        "migration": None, "deleting": False, "snapshot": None, "clone_of": None, "revision": 1,
        "created_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return msgspec.convert(vm, Vm)


def test_less_memory_for_a_guest_that_runs_is_a_balloon_and_its_size_at_its_next_start() -> None:
    vm = running()
    assert sizes.by_balloon(vm, {"memory_mib": 256, "restart": "never"}) == {"restart": "never", "balloon_mib": 256}
    shrunk = running(balloon_mib=256)
    assert sizes.by_balloon(shrunk, {"memory_mib": 640}) == {"memory_mib": 640, "balloon_mib": None}
    assert sizes.by_balloon(shrunk, {"vcpus": 2}) == {"vcpus": 2}
    starting = vms.power_changes(shrunk.spec, VmAction.START, None)
    assert (starting["memory_mib"], starting["balloon_mib"]) == (256, None)
    assert "memory_mib" not in vms.power_changes(vm.spec, VmAction.START, None)
    off = msgspec.structs.replace(
        shrunk, spec=msgspec.structs.replace(shrunk.spec, power=Power.STOPPED), status=VmStatus(VmState.STOPPED)
    )
    assert sizes.by_balloon(off, {"memory_mib": 300}) == {"memory_mib": 300, "balloon_mib": None}


@pytest.mark.parametrize(
    ("spec", "has", "wanted_mib", "error", "said"),
    [
        ({}, msgspec.structs.replace(HAS, balloon=False), 256, IllegalState, "without a balloon"),
        ({"devices": ["8086:10fb"]}, HAS, 256, IllegalState, "it has host devices"),
        ({"memory_max_mib": 1024}, HAS, 128, InvalidInput, "256 MiB at the start"),
    ],
)
def test_memory_that_can_not_be_given_back_is_refused(
    spec: dict[str, Any], has: GuestHardware, wanted_mib: int, error: type[Exception], said: str
) -> None:
    vm = running(**spec)
    vm = msgspec.structs.replace(vm, status=msgspec.structs.replace(vm.status, hardware=has))
    with pytest.raises(error, match=said):
        sizes.by_balloon(vm, {"memory_mib": wanted_mib})


def test_a_vm_spec_of_before_has_no_balloon() -> None:
    assert VmSpec(image="tiny").balloon_mib is None
