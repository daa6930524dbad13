"""Whatever waits says why: in its status with a code, in an event, and in the error of whoever waits for it."""

from __future__ import annotations

import asyncio
import errno
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import AsyncMock, Mock

import pytest
import typer

from novacron.agent.host.network_problems import InterfaceClosed
from novacron.agent.vm.hypervisor import AnotherQemu, MachineFailed
from novacron.agent.vm.journal import AnewAsked, Journal, PostCopy, Record
from novacron.agent.vm.power import SLOW_S
from novacron.agent.vm.start_queue import StartQueue
from novacron.agent.worker import Worker
from novacron.cli import nodes
from novacron.client.choices import DrainPolicy
from novacron.client.protocol import waits_for
from novacron.disk.images import LocalImage
from novacron.model.guest_hardware import GuestHardware
from novacron.model.migration import Side
from novacron.model.network import NicSpec
from novacron.model.ownership import Order, OrderKind
from novacron.model.snapshot import SnapshotPhase
from novacron.model.vm import CloneOf, Power, VmSpec, VmState, VmStatus
from novacron.model.waiting import WaitCode
from novacron.net.tap import NetworkFailed
from novacron.qemu.monitor import MonitorFailed
from novacron.store.owned import _event_of
from novacron.wire import messages as wire
from tests.support.agent import services_in
from tests.unit.test_simulated_machine import SimulatedMachine

RUNS = VmSpec(image="tiny", power=Power.RUNNING, starts=1)
READ_ONLY = "can't set network lan up: Read-only file system"


class Site:
    """A worker whose machine is simulated, and what it says."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch | None = None) -> None:
        self.patch = patch or pytest.MonkeyPatch()
        self.begun: Callable[[Worker], object] = lambda worker: None
        """What happens to the worker before its first step."""
        self.services = services_in(directory)
        self.services.pages = Mock(prepare=AsyncMock())
        self.said: list[Any] = []
        self.services.send = self.said.append
        self.machine = SimulatedMachine("vm-a", directory / "vms", lambda name, data: None)
        self.services.hypervisor = Mock(machine=lambda vm, on_event: self.machine)
        self.services.images["tiny"] = Mock(spec=LocalImage, disk=None, info=Mock(disk_bytes=0))

    async def start(self, spec: VmSpec = RUNS, remembered: Record = Record(), **given: Any) -> list[wire.Observed]:
        """Let the VM be looked at once, as it is to run; return what was observed."""
        worker = Worker("vm-a", remembered, self.services)
        assignment = wire.Assignment(
            "vm-a", "a", spec, False, given.pop("machine", ""), 0, None, "default", bytes(32), **given
        )
        self.begun(worker)
        worker.set_desired(wire.Statement("vm-a", Order(OrderKind.OWN, 4), assignment, None))
        await worker._try_step()
        if assignment.clone_of is not None:  # it is made beside
            await asyncio.sleep(0)
            await worker._clone.cancel()
        return [message for message in self.said if isinstance(message, wire.Observed)]


def no_image(site: Site) -> None:
    site.services.images.clear()


def another_image(site: Site) -> None:
    site.services.images["tiny"].is_.return_value = False  # type: ignore[attr-defined]


def queue_is_full(site: Site) -> None:
    site.services.start_queue = Mock(spec=StartQueue, full=Mock(return_value=True), slot=StartQueue(1).slot)


def network_fails(site: Site) -> None:
    site.services.networks._report({"lan": READ_ONLY})
    site.machine.start = AsyncMock(side_effect=NetworkFailed(f"network lan is not ready: {READ_ONLY}"))  # type: ignore[method-assign]


def interface_is_closed(site: Site) -> None:
    site.machine.start = AsyncMock(side_effect=InterfaceClosed("interface 0 in network lan is closed: no"))  # type: ignore[method-assign]


def all_networks_fail(site: Site) -> None:
    site.services.networks._report({"": READ_ONLY})


def qemu_fails(site: Site) -> None:
    site.machine.start = AsyncMock(side_effect=MachineFailed("no tap"))  # type: ignore[method-assign]


def journal_fails(site: Site) -> None:
    site.services.journal = Mock(spec=Journal, store=Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))


LAN = VmSpec(image="tiny", power=Power.RUNNING, starts=1, nics=(NicSpec("lan"),))
HA = VmSpec(image="tiny", power=Power.RUNNING, starts=1, ha=True)


STOPS = VmSpec(image="tiny", power=Power.STOPPED, starts=1, stop_timeout_s=60)
REBOOTS = VmSpec(image="tiny", power=Power.RUNNING, starts=1, reboots=1)


class Waits(NamedTuple):
    """How a VM comes to wait on its node, and what it says then."""

    breaks: Callable[[Site], object]
    state: VmState
    words: str
    spec: VmSpec = RUNS
    said: int = -1
    """Which of the reports: a start that fails follows one that begins."""
    given: Mapping[str, Any] = {}
    """Of its assignment."""
    remembered: Record = Record()


def runs(site: Site, run_state: str = "running") -> None:
    site.machine.pid, site.machine.run_state = 1, run_state


def disk_is_gone(site: Site) -> None:
    site.services.images["tiny"] = Mock(spec=LocalImage, disk=Path("disk.raw"), info=Mock(disk_bytes=1 << 20))


def disk_has_no_room(site: Site) -> None:
    runs(site, "io-error")
    site.machine.directory.mkdir(parents=True)
    site.patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))


def repository_is_away(site: Site) -> None:
    runs(site, "io-error")
    site.begun = lambda worker: setattr(worker.context, "repository_away", "its repository does not answer")


def disk_is_copied(site: Site) -> None:
    runs(site)
    site.machine.copying = Mock(locked=lambda: True)


def qemu_dies_again(site: Site) -> None:
    site.begun = lambda worker: worker._reconciler.__dict__.update(_started_at=site.services.clock.monotonic())


def guest_can_t_grow(site: Site) -> None:
    runs(site)
    site.machine.grow_hardware = AsyncMock(side_effect=MonitorFailed("no slot is free"))  # type: ignore[method-assign]


def guest_can_t_shrink(site: Site) -> None:
    runs(site)
    site.machine.monitor = Mock(execute=AsyncMock(return_value=[]))  # type: ignore[assignment]
    site.machine.hardware = GuestHardware(1, 64, balloon=True)
    why = "its guest has 64 MiB of memory, not 32"
    site.begun = lambda worker: setattr(worker.context.balloon, "settle", AsyncMock(return_value=why))


def guest_stood_still(site: Site) -> None:
    runs(site)
    site.machine.stood_still_s = 30.0
    site.begun = lambda worker: worker._reconciler.on_event("RESUME")


def another_qemu_runs_it(site: Site) -> None:
    why = "QEMU 7 of node host-a, whose agent is not running, runs this VM on this host"
    site.machine.start = AsyncMock(side_effect=AnotherQemu(why))  # type: ignore[method-assign]


def guest_ignores_acpi(site: Site) -> None:
    runs(site)
    asked_at = site.services.clock.monotonic() - SLOW_S
    site.begun = lambda worker: worker._reconciler._requests.__dict__.update(_stopping_at=asked_at)


def guest_ignores_a_reboot(site: Site) -> None:
    runs(site)
    record = Record(anew_asked=AnewAsked(1, time.time() - 2 * SLOW_S))
    site.begun = lambda worker: setattr(worker.context, "record", record)


def guest_uses_little(site: Site) -> None:
    runs(site)
    site.begun = lambda worker: setattr(worker.context.guest, "unused", "its guest uses 256 MiB of memory")


def interface_closes(site: Site) -> None:
    runs(site)
    site.services.networks.closed["vm-a"] = "interface 0 in network lan is closed: syntax"


def storage_is_full(site: Site) -> None:
    site.machine.start = AsyncMock(side_effect=OSError(errno.ENOSPC, "No space left on device"))  # type: ignore[method-assign]


def making(id: str) -> wire.VolumeAttached:
    return wire.VolumeAttached(id, "local", 0, 1, False, None, None, None, detaching=False, moves=True, making=True)


REVERTS = wire.SnapshotWanted("snap-1", SnapshotPhase.REVERTING, False, False, 1)
FROM_B = PostCopy("mig-1", Side.TARGET, "host-b")
W = WaitCode
VM_CASES: dict[WaitCode, list[Waits]] = {
    W.IMAGE_MISSING: [
        Waits(no_image, VmState.STARTING, "waits for image tiny from another node"),
        Waits(another_image, VmState.STARTING, "the image tiny on its node is not the one"),
    ],
    W.LEASE_ENDED: [Waits(lambda site: None, VmState.STARTING, "a heartbeat", HA)],
    W.START_QUEUED: [Waits(queue_is_full, VmState.STARTING, "other VMs on its node", said=0)],
    W.NETWORK_NOT_READY: [
        Waits(network_fails, VmState.STARTING, f"waits for network lan: {READ_ONLY}", LAN, said=0),
        Waits(all_networks_fail, VmState.STARTING, READ_ONLY, LAN, said=0),
        Waits(network_fails, VmState.FAILED, READ_ONLY, LAN),
    ],
    W.NODE_CANT_STORE: [Waits(journal_fails, VmState.PENDING, "No space left on device")],
    W.INTERFACE_CLOSED: [
        Waits(interface_is_closed, VmState.FAILED, "interface 0 in network lan is closed", LAN),
        Waits(interface_closes, VmState.RUNNING, "interface 0 in network lan is closed", LAN),
    ],
    W.STEP_FAILED: [Waits(qemu_fails, VmState.FAILED, "no tap")],
    W.NO_SPACE: [Waits(storage_is_full, VmState.FAILED, "No space left on device")],
    W.MAY_BE_ELSEWHERE: [
        Waits(lambda site: None, VmState.STARTING, "an older database", given={"withheld": "an older database"})
    ],
    W.DISK_BEING_MADE: [
        Waits(lambda site: None, VmState.STARTING, "other disks", given={"volumes": (making("vol-1"),)}),
        Waits(
            lambda site: None, VmState.PENDING, "is being created from the disk of web", said=0,
            given={"clone_of": CloneOf("vm-web", "web", linked=False)},
        ),
    ],
    W.DISK_BEING_COPIED: [
        Waits(disk_is_copied, VmState.RUNNING, "after its disk is copied", given={"snapshots": (REVERTS,)})
    ],
    W.DISK_LOST: [Waits(disk_is_gone, VmState.FAILED, "novacron vm recover", given={"machine": "pc-q35-7.2"})],
    W.DISK_FULL: [Waits(disk_has_no_room, VmState.PAUSED, "its disk is full: 1 MiB are free")],
    W.REPOSITORY_AWAY: [Waits(repository_is_away, VmState.PAUSED, "its repository does not answer")],
    W.CRASH_BACK_OFF: [
        Waits(qemu_dies_again, VmState.FAILED, "crashed; starts again in", remembered=Record(crashes=6))
    ],
    W.CANT_GROW: [
        Waits(guest_can_t_grow, VmState.RUNNING, "no slot is free"),
        Waits(guest_uses_little, VmState.RUNNING, "its guest uses 256 MiB"),
    ],
    W.GUEST_CLOCK_BEHIND: [Waits(guest_stood_still, VmState.RUNNING, "may be behind by 30 s: no guest agent")],
    W.CANT_SHRINK: [Waits(guest_can_t_shrink, VmState.RUNNING, "not 32")],
    W.ANOTHER_QEMU: [Waits(another_qemu_runs_it, VmState.UNKNOWN, "whose agent is not running")],
    W.RECORD_DAMAGED: [
        Waits(lambda site: None, VmState.FAILED, "record of the VM is damaged", remembered=Record(damaged=True))
    ],
    W.GUEST_SHUTS_DOWN: [Waits(guest_ignores_acpi, VmState.STOPPING, "has not powered off yet", STOPS)],
    W.GUEST_REBOOTS: [
        Waits(guest_ignores_a_reboot, VmState.RUNNING, "has not rebooted yet", REBOOTS),
    ],
    W.MEMORY_FOLLOWS: [
        Waits(runs, VmState.RUNNING, "on its way from node host-b", remembered=Record(post_copy=FROM_B))
    ],
}  # fmt: skip


@pytest.mark.parametrize(("code", "number"), [(code, n) for code, waits in VM_CASES.items() for n in range(len(waits))])
async def test_what_keeps_a_vm_on_its_node_is_said_with_a_code_and_words(
    code: WaitCode, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = VM_CASES[code][number]
    site = Site(tmp_path, monkeypatch)
    waits.breaks(site)
    said = (await site.start(waits.spec, waits.remembered, **waits.given))[waits.said]
    status = said.status
    assert (status.state, status.reason_code, waits.words in status.reason) == (waits.state, code, True), status
    assert said.epoch == 4, "the server takes no report of an earlier epoch"
    assert _event_of(VmStatus(waits.state), status) == code, "an event says so when it begins"


async def test_an_image_that_no_node_has_is_asked_for_at_growing_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, now = Site(tmp_path), [1000.0]
    no_image(site)
    monkeypatch.setattr(site.services.clock, "monotonic", lambda: now[0])
    worker = Worker("vm-a", Record(), site.services)
    assignment = wire.Assignment("vm-a", "a", RUNS, False, "", 0, None, "default", bytes(32))
    worker.set_desired(wire.Statement("vm-a", Order(OrderKind.OWN, 4), assignment, None))
    for _ in range(300):  # ten minutes
        await worker._try_step()
        now[0] += 2.0
    asked = sum(isinstance(message, wire.ImageMissing) for message in site.said)
    assert 10 <= asked <= 25, asked
    worker._reconciler.resync()
    await worker._try_step()
    assert sum(isinstance(message, wire.ImageMissing) for message in site.said) == asked + 1, "the link is new"


async def test_a_vm_that_starts_waits_for_nothing(tmp_path: Path) -> None:
    assert [message.status.reason_code for message in await Site(tmp_path).start()] == [""]


@pytest.mark.parametrize(
    ("was", "now", "event"),
    [
        (VmStatus(VmState.PENDING), VmStatus(VmState.STARTING, "waits", reason_code="ImageMissing"), "Starting"),
        (VmStatus(VmState.STARTING), VmStatus(VmState.STARTING, "waits", reason_code="ImageMissing"), "ImageMissing"),
        (
            VmStatus(VmState.FAILED, "no tap", reason_code="StepFailed"),
            VmStatus(VmState.FAILED, "no tap; tried 2 times", reason_code="StepFailed"),
            None,
        ),
        (VmStatus(VmState.RUNNING, "can't", reason_code="CantGrow"), VmStatus(VmState.RUNNING), None),
        (VmStatus(VmState.RUNNING), VmStatus(VmState.RUNNING, pid=7), None),
    ],
)
def test_what_keeps_a_vm_waiting_is_an_event_when_it_begins(was: VmStatus, now: VmStatus, event: str | None) -> None:
    assert _event_of(was, now) == event


def test_every_code_can_be_stored_and_told() -> None:
    for code in WaitCode:
        assert code.isalpha() and len(code) <= 40


@pytest.mark.parametrize(
    ("current", "text"),
    [
        (None, ""),
        ({"status": {"state": "starting", "reason": "waits for it"}}, ": it is starting: waits for it"),
        ({"status": {"state": "running", "reason": ""}}, ": it is running"),
        ({"phase": "creating", "error": "pool small is full"}, ": it is creating: pool small is full"),
        ({"phase": "pending", "error": None, "waits_for": "another migration"}, ": it is pending: another migration"),
        ({"phase": "blocked", "reason": "no node"}, ": it is blocked: no node"),
        ({"phase": "draining", "stays": [{"vm_name": "web", "why": "full"}]}, ": it is draining: web stays: full"),
        ({"name": "lan"}, ""),
    ],
)  # fmt: skip
def test_whoever_waits_in_vain_is_told_how_the_object_is(current: dict[str, Any] | None, text: str) -> None:
    assert waits_for(current) == text


DRAIN: dict[str, Any] = {
    "node": "a", "phase": "draining", "total": 2, "moved": ["vm-1"], "moving": [], "given_up": [], "estimate_s": None,
    "stays": [{"vm": "vm-2", "vm_name": "web", "why": "node b is cordoned"}],
}  # fmt: skip


def follow(monkeypatch: pytest.MonkeyPatch, drain: dict[str, Any], timeout_s: float | None) -> float:
    """Follow a drain that stays as it is; return after how many seconds that ended."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    client = Mock(list=lambda kind, **filters: iter([drain]))
    with pytest.raises((TimeoutError, SystemExit, typer.Exit)):
        nodes.follow(client, ["a"], timeout_s)
    return clock[0]


BLOCKED = DRAIN | {"phase": "blocked", "reason": "1 VMs are still on a: web stays: node b is cordoned"}


def test_a_drain_that_can_go_nowhere_is_not_waited_for_and_says_why_for_each_vm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(monkeypatch, BLOCKED, None) < nodes.STUCK_S + 5
    said = capsys.readouterr().err
    assert said.startswith("a: 1 to go; web stays: node b is cordoned"), "at once"
    assert "1 VMs are still on a; web stays: node b is cordoned; the drain goes on" in said


def test_a_time_limit_is_sent_only_if_it_is_given() -> None:
    """A server of before refuses the field."""
    assert nodes.drain_order(DrainPolicy.LEAVE, None) == {"policy": "leave"}
    assert nodes.drain_order(DrainPolicy.LEAVE, 60) == {"policy": "leave", "time_limit_s": 60}


def test_a_drain_is_waited_for_as_long_as_asked_or_while_something_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 300 <= follow(monkeypatch, BLOCKED, 300) < 305
    assert 900 <= follow(monkeypatch, DRAIN | {"moving": ["vm-2"], "stays": []}, 900) < 905


def test_a_drain_that_the_server_gives_up_ends_the_wait_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(monkeypatch, BLOCKED | {"phase": "failed", "reason": "time limit of 60 s: web stays"}, None) == 0
    assert (
        "error: the drain of a failed: time limit of 60 s: web stays\nthe nodes stay cordoned"
        in capsys.readouterr().err
    )
