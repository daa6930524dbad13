"""Where a VM can be placed, and which migrations may begin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from novacron.control.migration import plan
from novacron.model.fit import cannot_run
from novacron.model.guest_hardware import GuestHardware
from novacron.model.migration import Cause, Migration, MigrationKind, MigrationPhase, MigrationPolicy, Progress
from novacron.model.node import Accelerator, AcceleratorKind, ImageInfo, Inventory, Load, Node, NodeSpec, NodeStatus
from novacron.model.placement import Fleet, Wish
from novacron.model.plugged import DeviceSlot, GuestNic, GuestNics
from novacron.model.vm import VmSpec, VmStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
INVENTORY = Inventory(
    cpus=2,
    memory_mib=4096,
    architecture="x86_64",
    kernel="6.1",
    qemu_version="7.2",
    accelerator=Accelerator(AcceleratorKind.TCG, "there is no /dev/kvm"),
    images=(ImageInfo("tiny", "0" * 64, 1, "kernel"),),
    bridge=None,
    dwcp_endpoint="127.0.0.1:7445",
    agent_version="0",
)


def node(*, ready: bool = True, cordoned: bool = False) -> Node:
    return Node("n", NodeSpec(cordoned=cordoned), NodeStatus(ready, "", INVENTORY), 1, NOW)


@pytest.mark.parametrize(
    ("where", "load", "spec", "reason"),
    [
        (node(ready=False), Load(), VmSpec(image="tiny"), "not ready"),
        (node(cordoned=True), Load(), VmSpec(image="tiny"), "cordoned"),
        (node(), Load(), VmSpec(image="other"), "does not hold image other"),
        (node(), Load(), VmSpec(image="tiny", memory_mib=3585), "full: 3584 MiB of memory free, 3585 MiB needed"),
        (node(), Load(memory_mib=3400), VmSpec(image="tiny", memory_mib=256), "full"),
        (node(), Load(vcpus=64), VmSpec(image="tiny"), "vCPUs"),
    ],
)
def test_a_refusal_says_why(where: Node, load: Load, spec: VmSpec, reason: str) -> None:
    assert reason in str(Fleet([where], {"n": load}).judge(Wish("vm", spec), "n").refusal)


def test_a_node_with_enough_room_accepts_the_vm() -> None:
    fleet = Fleet([node()], {"n": Load(vcpus=63, memory_mib=3000)})
    assert fleet.judge(Wish("vm", VmSpec(image="tiny", memory_mib=584)), "n").refusal is None


def migration(id: str, source: str, target: str, phase: MigrationPhase) -> Migration:
    return Migration(
        id,
        "vm-" + id,
        id,
        MigrationKind.LIVE,
        source,
        target,
        1,
        phase,
        False,
        False,
        None,
        1,
        None,
        None,
        None,
        MigrationPolicy.THROTTLE,
        Cause.REQUEST,
        Progress(),
        None,
        1,
        NOW,
        None,
        None,
    )


def test_migrations_wait_for_a_node_that_is_busy() -> None:
    active = [
        migration("1", "a", "b", MigrationPhase.TRANSFERRING),
        migration("2", "a", "c", MigrationPhase.PENDING),
        migration("3", "a", "d", MigrationPhase.PENDING),
        migration("4", "e", "f", MigrationPhase.PENDING),
        migration("5", "c", "a", MigrationPhase.PENDING),
    ]
    planned = plan(active, {}, {}, dict.fromkeys("abcdef", 2))
    assert planned.begin == ["2", "4"]
    assert planned.waits_for == {
        "3": "node a has 2 migrations in progress",
        "5": "node a has 2 migrations in progress",
    }
    assert planned.rates == {"1": None, "2": None, "4": None}
    assert plan(active, {}, {}, dict.fromkeys("abcdef", 3)).begin == ["2", "3", "4"]


def test_migrations_of_projects_begin_in_rotation() -> None:
    of = {f"big-{n}": "big" for n in range(30)} | {"small-1": "small", "other-1": "other", "other-2": "other"}
    waiting = [
        msgspec.structs.replace(migration(id, "a", f"target-{id}", MigrationPhase.PENDING), project=project)
        for id, project in of.items()
    ]
    began, last_began = list[str](), dict[str, datetime]()
    for minute in range(6):
        at_once = {"a": 1} | {f"target-{id}": 1 for id in of}
        (next_one,) = plan(waiting, {}, {}, at_once, last_began).begin
        began.append(of[next_one])
        last_began[of[next_one]] = NOW + timedelta(minutes=minute)
        waiting = [m for m in waiting if m.id != next_one]
    assert began == ["big", "small", "other", "big", "other", "big"]

    running = [msgspec.structs.replace(m, phase=MigrationPhase.TRANSFERRING) for m in waiting[:1]]
    late = msgspec.structs.replace(migration("late", "a", "b", MigrationPhase.PENDING), project="late")
    assert plan([*running, *waiting[1:], late], {}, {}, {"a": 2, "b": 1}).begin == ["late"], "fewest under way first"


def test_no_guest_whose_interfaces_came_or_went_moves_to_an_agent_that_knows_no_such_thing() -> None:
    """Its memory would not fit the machine that such an agent makes. While the VM is off, it can have it."""
    plain, hot = (
        GuestNics((GuestNic("06:00:00:00:00:01", "nic0"),)),
        GuestNics((GuestNic("06:00:00:00:00:01", "hot0"),)),
    )
    left = GuestNics(plain.devices, (DeviceSlot("nic0-device", 3),))
    older, newer = node(), node()
    newer = msgspec.structs.replace(
        newer, status=NodeStatus(True, "", msgspec.structs.replace(INVENTORY, plugs_nics=True))
    )
    for nics, moves in (
        (None, True),
        (plain, True),
        (hot, False),
        (left, False),
        (GuestNics(plain.devices, (), 8), False),
    ):
        status = VmStatus(hardware=GuestHardware(1, 256, nics=nics))
        reason = cannot_run(older, status, runs=True)
        assert (reason is None) == moves and (moves or "changing interfaces of running VMs" in str(reason)), nics
        assert cannot_run(older, status, runs=False) is None and cannot_run(newer, status, runs=True) is None
