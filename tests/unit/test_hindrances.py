"""Whatever keeps an object from what was asked has a code and words: those that a node says, and those of drains.

What the server itself says is in ``tests/integration/test_hindrances.py`` and ``test_hindered_runs.py``, what VMs wait
for on their nodes in ``test_waiting.py``.
"""

from __future__ import annotations

import ast
import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast
from unittest.mock import AsyncMock, MagicMock, Mock

import msgspec
import pytest

from lab.reasons_page import HINDRANCES
from novacron.agent import worker
from novacron.agent.backups import VmBackups
from novacron.agent.host import network_problems, volumes
from novacron.agent.host.network_problems import NetworkProblems, NetworkTroubles
from novacron.agent.host.volumes import NodeVolumes, Pools
from novacron.agent.images import imports
from novacron.agent.images.download import open_beneath
from novacron.agent.images.exports import VmExports
from novacron.agent.images.imports import ImageImports
from novacron.agent.replication.sender import ReplicaSenders
from novacron.agent.repositories.threads import Stalled
from novacron.agent.settings import AgentSettings
from novacron.agent.vm import snapshots
from novacron.agent.vm.devices import Devices
from novacron.control import drain as drain_control
from novacron.disk import formats
from novacron.disk.errors import Unacceptable
from novacron.disk.overlay import OverlayFailed
from novacron.model.backup import BackupPhase
from novacron.model.drain import (
    RETRY_AFTER_S_MAX,
    Drain,
    DrainPhase,
    DrainPolicy,
    Stays,
    Why,
    is_blocked,
    is_resting,
    tried_in_vain,
)
from novacron.model.errors import Conflict, NoCapacity
from novacron.model.export import ExportPhase
from novacron.model.image import ImportSpec, Source
from novacron.model.network import Entrance, NetworkOnNode, NetworkProblem, NetworkSpec, Protocol
from novacron.model.snapshot import MachineLayout, SnapshotPhase
from novacron.model.vm import VmSpec
from novacron.model.volume import VolumePhase
from novacron.model.waiting import WaitCode, code_of
from novacron.net.firewall import NicKey
from novacron.platform_key import new_key
from novacron.qemu import disks, layout, process
from novacron.qemu import snapshots as kept_snapshots
from novacron.qemu.disks import GuestHoldsIt
from novacron.qemu.guest import GuestSilent
from novacron.qemu.monitor import MonitorFailed
from novacron.store.drains import Waiting
from novacron.wire import messages as wire
from tests.integration import test_hindered_runs as of_runs
from tests.integration import test_hindrances as by_server
from tests.unit.test_waiting import VM_CASES

W = WaitCode
PAGE = Path(__file__).parents[2] / "docs/reference/reasons.md"


class Place(NamedTuple):
    """Where a case happens."""

    directory: Path
    patch: pytest.MonkeyPatch


class Said(NamedTuple):
    """What was said of an object."""

    code: str
    words: str


Case = Callable[[Place], Awaitable[Said]]


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


# volumes


def volume(
    phase: VolumePhase = VolumePhase.CREATING, pool: str = "local", image: str | None = None, fails: int | None = None
) -> Case:
    async def case(place: Place) -> Said:
        if fails is not None:
            place.patch.setattr(volumes, "_create", Mock(side_effect=system_error(fails)))
        settings = AgentSettings(
            place.directory, place.directory / "images", "a", shared_pools={"nfs": place.directory}
        )
        seen_to = NodeVolumes(Pools(settings), {}, lambda message: None)
        report = await seen_to._see_to(wire.VolumeWanted("vol-1", pool, 1, phase, image))
        return Said(report.code, report.error)

    return case


async def guest_holds_it(place: Place) -> Said:
    said: list[Any] = []
    place.patch.setattr(disks, "plugged", AsyncMock(return_value={"vol-1": 1}))
    place.patch.setattr(disks, "unplug", AsyncMock(side_effect=GuestHoldsIt("the guest does not let go")))
    place.patch.setattr(disks, "limit", AsyncMock())
    machine = Mock(monitor=Mock(), pid=1, id="vm-a")
    attached = wire.VolumeAttached("vol-1", "local", 0, 1, False, None, None, None, detaching=True, moves=True)
    assignment = cast(Any, SimpleNamespace(volumes=(attached,), spec=VmSpec(image="tiny")))
    await Devices(machine, Mock(), MagicMock(), lambda *handled: said.append(handled)).settle(assignment)
    ((_, released, words, code),) = said
    assert not released
    return Said(code, words)


# imports


def refused_import(refuse: Callable[[Place], None]) -> Case:
    async def case(place: Place) -> Said:
        said: list[Any] = []
        settings = AgentSettings(place.directory, place.directory / "images", "a")
        seen_to = ImageImports(settings, said.append, AsyncMock())

        async def fails(*_: object) -> int:
            refuse(place)
            raise AssertionError("it was not refused")

        place.patch.setattr(seen_to, "_import", fails)
        await seen_to._work(wire.ImportWanted("import-1", ImportSpec("debian", Source.UPLOAD)))
        return Said(said[-1].code, said[-1].error)

    return case


def no_disk(place: Place) -> None:
    file = place.directory / "page"
    file.write_bytes(b"<!DOCTYPE html><html>not here</html>")
    with file.open("rb") as opened:
        formats.detect(opened)


def no_room(place: Place) -> None:
    place.patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    imports._check_room(place.directory, 1)


def no_file(place: Place) -> None:
    open_beneath(place.directory, "x")


def other_digest(place: Place) -> None:
    raise Unacceptable("its SHA-256 is 00, not the expected one", W.DIGEST_WRONG)


def fails_with(number: int) -> Callable[[Place], None]:
    def refuse(place: Place) -> None:
        raise system_error(number)

    return refuse


# exports


def export(phase: ExportPhase = ExportPhase.MAKING, fails: Exception | None = None) -> Case:
    async def case(place: Place) -> Said:
        said: list[Any] = []
        settings = AgentSettings(place.directory, place.directory / "images", "a")
        seen_to = VmExports(settings, lambda vm: None, said.append)
        if fails is not None:
            place.patch.setattr(seen_to, "_make", AsyncMock(side_effect=fails))
        await seen_to._see_to(wire.ExportWanted("export-1", "vm-a", phase))
        return Said(said[-1].code, said[-1].error)

    return case


# backups


def backup(phase: BackupPhase = BackupPhase.MAKING, fails: Exception | None = None) -> Case:
    async def case(place: Place) -> Said:
        said: list[Any] = []
        settings = AgentSettings(place.directory, place.directory / "images", "a", backup_dir=place.directory)
        seen_to = VmBackups(settings, lambda vm: None, said.append)
        if fails is not None:
            place.patch.setattr(seen_to, "_make", AsyncMock(side_effect=fails))
        wanted = wire.BackupWanted(
            "backup-1", "vm-a", "web", phase, "repo-0123456789abcdef", phase is BackupPhase.MAKING, "", b"{}",
            new_key(),
        )  # fmt: skip
        await seen_to._see_to(wanted)
        return Said(said[-1].code, said[-1].error)

    return case


# replicas


def replica(fails: Exception | None = None) -> Case:
    async def case(place: Place) -> Said:
        host = Mock()
        host.settings = AgentSettings(place.directory, place.directory / "images", "a")
        sent = ReplicaSenders(host, lambda vm: None if fails is None else Mock(), Mock())
        wanted = wire.ReplicaSent("replica-0123456789abcdef", "vm-a", "host-b", "host-b:7445", 30, True)
        rounds = Mock(next=AsyncMock(side_effect=fails))
        report = await sent._round(wanted, rounds)
        return Said(report.code, report.error)

    return case


# snapshots

LAYOUT = MachineLayout("7.2.22", "pc-q35-7.2", "tcg", 1, 64)


def snapshot(
    phase: SnapshotPhase = SnapshotPhase.CREATING, *, runs: bool = True, kept: int | None = None, vcpus: int = 1,
    **fails: Exception,
) -> Case:  # fmt: skip
    """``kept``: how many bytes of memory the disk has in it; None: it does not have the snapshot. ``vcpus``: of the VM
    when it was taken."""

    async def case(place: Place) -> Said:
        inside = {} if kept is None else {"snap-1": Mock(memory_bytes=kept)}
        place.patch.setattr(kept_snapshots, "settle", AsyncMock())
        place.patch.setattr(kept_snapshots, "stored", AsyncMock(return_value=inside))
        place.patch.setattr(layout, "look", AsyncMock(return_value=LAYOUT))
        place.patch.setattr(snapshots, "_thaw", AsyncMock())
        place.patch.setattr(snapshots, "_bring_back_disk", AsyncMock())
        place.patch.setattr(process, "used", lambda pid: Mock(resident_bytes=1 << 60))
        if "create" in fails:
            place.patch.setattr(snapshots, "_create", AsyncMock(side_effect=fails["create"]))
        machine = Mock(monitor=Mock() if runs else None, pid=1, directory=place.directory)
        machine.guest.freeze = AsyncMock(side_effect=fails.get("freeze"))
        taken_with = msgspec.structs.replace(LAYOUT, vcpus=vcpus)
        wanted = wire.SnapshotWanted("snap-1", phase, True, "freeze" in fails, 1, taken_with)
        with pytest.raises(snapshots.SnapshotFailed) as failed:
            await snapshots.work(machine, wanted, "running" if runs else "absent", None)
        return Said(code_of(failed.value), str(failed.value))

    return case


# networks

LAN = NetworkOnNode(
    "lan", NetworkSpec(subnet="10.9.0.0/24"), 1, 1450, 1, True, (), (), (), (("192.0.2.7", "10.9.0.5"),),
    (Entrance(None, Protocol.TCP, 30022, "10.9.0.5", 22),),
)  # fmt: skip
NO_TROUBLES = NetworkTroubles({}, {}, (), {})


def network(**troubles: Any) -> Case:
    async def case(place: Place) -> Said:
        problem = network_problems.problems_of([LAN], NO_TROUBLES._replace(**troubles))[-1]
        return Said(problem.code, problem.message)

    return case


# drains

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DRAIN = Drain(
    "drain-1", "a", DrainPolicy.THROTTLE, "anna", DrainPhase.DRAINING, 1, (), (), (), (), None, 1, NOW, None
)  # fmt: skip
VM = Waiting("vm-a", "web", "running", 64, None, 0, None, None)


def rests(drain: Drain = DRAIN, **vm: Any) -> Case:
    async def case(place: Place) -> Said:
        why = drain_control._rests(msgspec.structs.replace(VM, **vm), drain)
        assert why is not None
        return Said(why.code, why.words)

    return case


def refused_move(error: Exception) -> Case:
    async def case(place: Place) -> Said:
        database = Mock(transaction=Mock(side_effect=error))
        why = await drain_control._move(database, DRAIN, VM, drain_control.Drains(AsyncMock()))
        assert why is not None
        return Said(why.code, why.words)

    return case


async def move_fails_with_a_defect(place: Place) -> Said:
    objects = Mock(reconcile=AsyncMock(return_value=None), failure=Mock(return_value="KeyError"))
    why = await drain_control._Round(Mock(), "drain-1", drain_control.Drains(AsyncMock()), objects)._move(DRAIN, VM)
    assert why is not None
    return Said(why.code, why.words)


CASES: dict[tuple[str, WaitCode], tuple[Case, str]] = {
    ("volume", W.POOL_AWAY): (volume(pool="nfs"), "check that it is mounted"),
    ("volume", W.NO_SPACE): (volume(fails=errno.ENOSPC), "No space left"),
    ("volume", W.NODE_CANT_STORE): (volume(fails=errno.EROFS), "Read-only"),
    ("volume", W.IMAGE_MISSING): (volume(image="debian"), "does not hold image debian"),
    ("volume", W.FILE_LOST): (volume(VolumePhase.READY), "is gone"),
    ("volume", W.STEP_FAILED): (volume(fails=errno.EPERM), "not permitted"),
    ("volume", W.GUEST_HOLDS_IT): (guest_holds_it, "does not let go"),
    ("import", W.FILE_REFUSED): (refused_import(no_disk), "a web page"),
    ("import", W.DIGEST_WRONG): (refused_import(other_digest), "SHA-256"),
    ("import", W.SOURCE_UNREACHABLE): (refused_import(no_file), "No such file"),
    ("import", W.NO_SPACE): (refused_import(no_room), "there is no space"),
    ("import", W.NODE_CANT_STORE): (refused_import(fails_with(errno.EIO)), "Input/output"),
    ("import", W.STEP_FAILED): (refused_import(fails_with(errno.EPERM)), "not permitted"),
    ("export", W.VM_GONE): (export(), "no longer on this node"),
    ("export", W.FILE_LOST): (export(ExportPhase.READY), "its file is gone"),
    ("export", W.NO_SPACE): (export(fails=system_error(errno.ENOSPC)), "No space left"),
    ("export", W.NODE_CANT_STORE): (export(fails=system_error(errno.EROFS)), "Read-only"),
    ("export", W.STEP_FAILED): (export(fails=OverlayFailed("damaged")), "damaged"),
    ("backup", W.VM_GONE): (backup(), "no longer on this node"),
    ("backup", W.FILE_LOST): (backup(BackupPhase.VERIFYING), "is mounted"),
    ("backup", W.NO_SPACE): (backup(fails=system_error(errno.ENOSPC)), "No space left"),
    ("backup", W.NODE_CANT_STORE): (backup(fails=system_error(errno.EROFS)), "Read-only"),
    ("backup", W.TIME_LIMIT): (backup(fails=Stalled("its repository did not answer for 300 s")), "did not answer"),
    ("replica", W.VM_GONE): (replica(), "no longer on this node"),
    ("replica", W.NO_SPACE): (replica(system_error(errno.ENOSPC)), "No space left"),
    ("replica", W.NODE_CANT_STORE): (replica(system_error(errno.EROFS)), "Read-only"),
    ("replica", W.STEP_FAILED): (replica(OverlayFailed("damaged")), "damaged"),
    ("backup", W.STEP_FAILED): (backup(fails=OverlayFailed("damaged")), "damaged"),
    ("snapshot", W.VM_OFF): (snapshot(runs=False), "no longer running"),
    ("snapshot", W.FILE_LOST): (snapshot(SnapshotPhase.REVERTING), "not in the VM's disk"),
    ("snapshot", W.DOES_NOT_FIT): (snapshot(SnapshotPhase.REVERTING, kept=1, vcpus=4), "number of vCPUs"),
    ("snapshot", W.NO_SPACE): (snapshot(SnapshotPhase.REVERTING, kept=1), "free some space"),
    ("snapshot", W.GUEST_SILENT): (snapshot(freeze=GuestSilent("no answer")), "no answer"),
    ("snapshot", W.NODE_CANT_STORE): (snapshot(create=system_error(errno.EIO)), "Input/output"),
    ("snapshot", W.STEP_FAILED): (snapshot(create=MonitorFailed("Error -22")), "Error -22"),
    ("network", W.NETWORK_NOT_READY): (network(failed={"lan": "Read-only file system"}), "Read-only file system"),
    ("network", W.INTERFACE_CLOSED): (network(closed={"lan": {NicKey("vm-a", 0): "syntax"}}), "has no traffic"),
    ("forward", W.PORT_IN_USE): (network(unforwarded={(Protocol.TCP, 30022)}), "listens on tcp port 30022"),
    ("forward", W.RULES_REFUSED): (network(refused={"lan": {LAN.entrances[0]: "syntax"}}), "refuses its rules: syntax"),
    ("floating-address", W.RULES_REFUSED): (
        network(refused={"lan": {LAN.floating[0]: "syntax"}}), "refuses its rules: syntax",
    ),
    ("floating-address", W.NOT_ROUTED): (network(unrouted={"lan": ["192.0.2.7"]}), "route it there"),
    ("drain", W.UNPLACED): (refused_move(NoCapacity("node b is cordoned")), "node b is cordoned"),
    ("drain", W.MOVE_REFUSED): (refused_move(Conflict("it is being cloned")), "it is being cloned"),
    ("drain", W.MOVE_FAILED): (rests(failures=1, failed_s=1.0, error="the link was cut"), "the link was cut"),
    ("drain", W.WOULD_NOT_CONVERGE): (
        rests(msgspec.structs.replace(DRAIN, given_up=("vm-a",)), error="it does not converge"),
        "does not converge",
    ),
    ("drain", W.STEP_FAILED): (move_fails_with_a_defect, "KeyError"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "code"), CASES)
async def test_what_keeps_an_object_from_what_was_asked_is_said_with_a_code_and_words(
    kind: str, code: WaitCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, words = CASES[kind, code]
    said = await case(Place(tmp_path, monkeypatch))
    assert (said.code, words in said.words) == (code, True), said


def test_every_hindrance_has_a_case_that_is_tried() -> None:
    every = {(kind, code) for kind, codes in HINDRANCES.items() for code in codes}
    of_vms = {("vm", code) for code in VM_CASES}
    assert CASES.keys() | by_server.CASES.keys() | of_runs.CASES.keys() | of_vms == every


def test_every_code_hinders_something_and_is_on_the_page_with_each_kind() -> None:
    assert {code for codes in HINDRANCES.values() for code in codes} == set(WaitCode)
    rows = [line.split("|")[1:4] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    listed = {(kind.strip(), code.strip(" `")) for code, kinds, _ in rows for kind in kinds.split(",")}
    assert listed == {(kind, code.value) for kind, codes in HINDRANCES.items() for code in codes}


def test_problems_of_networks_are_said_when_they_begin_or_end_and_after_a_new_link() -> None:
    said: list[Any] = []
    problems = NetworkProblems()
    problems.send = said.append
    wrong = (NetworkProblem("lan", W.NETWORK_NOT_READY, "tried once"),)
    for now in ((), (), wrong, (NetworkProblem("lan", W.NETWORK_NOT_READY, "tried twice"),)):
        problems.tell(now)
    assert [message.problems for message in said] == [(), wrong]
    problems.resync()
    problems.tell(wrong)
    problems.tell(())
    assert [message.problems for message in said[2:]] == [wrong, ()]


def test_a_vm_that_can_t_be_moved_is_tried_ever_later() -> None:
    stay: Stays | None = None
    now, waits = NOW, []
    for _ in range(8):
        stay = tried_in_vain(stay, "vm-a", "web", Why(W.UNPLACED, "no node"), now)
        assert stay.next_try_at is not None and is_resting(stay, now) and not is_resting(stay, stay.next_try_at)
        waits.append((stay.next_try_at - now).total_seconds())
        now = stay.next_try_at
    assert waits == [2, 4, 8, 16, 32, RETRY_AFTER_S_MAX, RETRY_AFTER_S_MAX, RETRY_AFTER_S_MAX]
    assert not is_resting(None, now) and not is_resting(Stays("vm-a", "web", "it is unknown"), now)
    assert tried_in_vain(stay, "vm-a", "web", Why(W.UNPLACED, "no node"), now + timedelta(days=1)).tries == 9


@pytest.mark.parametrize(
    ("moving", "waiting", "stays", "blocked"),
    [(0, 1, 1, True), (0, 2, 1, False), (1, 2, 1, False), (0, 0, 0, False), (0, 1, 0, False)],
)
def test_a_drain_is_blocked_when_nothing_moves_and_every_vm_that_is_left_has_a_reason(
    moving: int, waiting: int, stays: int, blocked: bool
) -> None:
    assert is_blocked(moving, waiting, stays) is blocked


def test_the_code_of_an_error_is_its_own_or_that_of_its_cause() -> None:
    assert code_of(cast(Any, KeyError())) is W.STEP_FAILED
    outer = RuntimeError("wrapped")
    outer.__cause__ = system_error(errno.ENOSPC)
    assert code_of(outer) is W.NO_SPACE


AGENT = Path(worker.__file__).parent
SAY_OF_VMS = [
    AGENT / "worker.py",
    *(AGENT / "vm" / f"{name}.py" for name in ("reconciler", "clone_reconciler", "power", "hypervisor")),
]
"""Where it is said what keeps a VM from what was asked."""


def test_each_reason_that_an_agent_reports_has_a_code() -> None:
    bare = [
        f"{path.name}:{call.lineno}"
        for path in AGENT.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "report"
        if ast.unparse(call.func.value) in ("context", "self._context", "self.context")
        if len(call.args) == 2 and not isinstance(call.args[1], ast.Starred)
    ]
    assert not bare, "words without a code: no program and no event knows of them"


def test_each_code_that_agents_give_vms_is_one_that_is_tried() -> None:
    given = {
        node.attr
        for path in SAY_OF_VMS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "WaitCode"
    }
    assert len(given) > 15 and given <= {code.name for code in HINDRANCES["vm"]}, given
