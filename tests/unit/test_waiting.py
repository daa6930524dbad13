"""Whatever waits says why: in its status with a code, in an event, and in the error of whoever waits for it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
import typer

from novacron.agent.host.network_problems import InterfaceClosed
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.agent.vm.journal import Journal, Record
from novacron.agent.vm.start_queue import StartQueue
from novacron.agent.worker import Worker
from novacron.cli import nodes
from novacron.client.choices import DrainPolicy
from novacron.client.protocol import waits_for
from novacron.disk.images import LocalImage
from novacron.model.network import NicSpec
from novacron.model.ownership import Order, OrderKind
from novacron.model.vm import Power, VmSpec, VmState, VmStatus
from novacron.model.waiting import WaitCode
from novacron.net.tap import NetworkFailed
from novacron.store.owned import _event_of
from novacron.wire import messages as wire
from tests.support.agent import services_in
from tests.unit.test_simulated_machine import SimulatedMachine

RUNS = VmSpec(image="tiny", power=Power.RUNNING, starts=1)
READ_ONLY = "can't set network lan up: Read-only file system"


class Site:
    """A worker whose machine is simulated, and what it says."""

    def __init__(self, directory: Path) -> None:
        self.services = services_in(directory)
        self.services.pages = Mock(prepare=AsyncMock())
        self.said: list[Any] = []
        self.services.send = self.said.append
        self.machine = SimulatedMachine("vm-a", directory / "vms", lambda name, data: None)
        self.services.hypervisor = Mock(machine=lambda vm, on_event: self.machine)
        self.services.images["tiny"] = Mock(spec=LocalImage, disk=None, info=Mock(disk_bytes=0))

    async def start(self, spec: VmSpec = RUNS, machine: str = "", withheld: str = "") -> list[wire.Observed]:
        """Let the VM be started once; return what was observed."""
        worker = Worker("vm-a", Record(), self.services)
        assignment = wire.Assignment(
            "vm-a", "a", spec, False, machine, 0, None, "default", bytes(32), withheld=withheld
        )
        worker.set_desired(wire.Statement("vm-a", Order(OrderKind.OWN, 4), assignment, None))
        await worker._try_step()
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
CASES: dict[str, tuple[Callable[[Site], None], VmSpec, VmState, str, str]] = {
    "image": (no_image, RUNS, VmState.STARTING, "ImageMissing", "waits for image tiny from another node"),
    "another-image": (another_image, RUNS, VmState.STARTING, "ImageMissing", "another image as tiny"),
    "lease": (lambda site: None, HA, VmState.STARTING, "LeaseEnded", "no heartbeat"),
    "queue": (queue_is_full, RUNS, VmState.STARTING, "StartQueued", "other VMs of its node"),
    "network": (network_fails, LAN, VmState.STARTING, "NetworkNotReady", f"waits for network lan: {READ_ONLY}"),
    "networks": (all_networks_fail, LAN, VmState.STARTING, "NetworkNotReady", READ_ONLY),
    "storage": (journal_fails, RUNS, VmState.PENDING, "NodeCantStore", "No space left on device"),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_vm_that_waits_on_its_node_says_what_for(case: str, tmp_path: Path) -> None:
    breaks, spec, state, code, words = CASES[case]
    site = Site(tmp_path)
    breaks(site)
    first = (await site.start(spec))[0]
    assert (first.status.state, first.status.reason_code) == (state, code) and words in first.status.reason
    assert first.epoch == 4, "the server takes no report of an earlier epoch"


@pytest.mark.parametrize(
    ("breaks", "code", "words"),
    [
        (network_fails, "NetworkNotReady", READ_ONLY),
        (interface_is_closed, "InterfaceClosed", "interface 0 in network lan is closed"),
        (qemu_fails, "StepFailed", "no tap"),
    ],
)
async def test_a_vm_whose_start_fails_says_why(
    breaks: Callable[[Site], None], code: str, words: str, tmp_path: Path
) -> None:
    site = Site(tmp_path)
    breaks(site)
    last = (await site.start(LAN))[-1]
    assert (last.status.state, last.status.reason_code) == (VmState.FAILED, code) and words in last.status.reason


async def test_a_vm_that_may_be_elsewhere_is_not_begun_and_says_so(tmp_path: Path) -> None:
    site = Site(tmp_path)
    first = (await site.start(withheld="an older database was put back"))[0]
    assert (first.status.state, first.status.reason_code) == (VmState.STARTING, "MayBeElsewhere")
    assert first.status.reason == "an older database was put back" and site.machine.pid is None


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
