"""Projects have their turns in rotation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import pytest

from novacron.agent.fair_turns import FairTurns
from novacron.agent.images.exports import VmExports
from novacron.agent.replication.sender import AT_ONCE, OF_A_PROJECT, ReplicaSenders
from novacron.agent.repositories.queues import REPOSITORIES_AT_ONCE, REPOSITORIES_OF_A_PROJECT, RepositoryQueues
from novacron.agent.settings import AgentSettings
from novacron.agent.vm import clone_disk, restored_disk
from novacron.agent.vm.clone_reconciler import CloneReconciler
from novacron.model.backup_source import BackupSource
from novacron.model.export import ExportPhase
from novacron.model.vm import CloneOf
from novacron.wire import messages as wire
from tests.waiting import eventually, pause_async


async def test_a_project_that_asks_for_many_turns_does_not_make_others_wait_for_all_of_them() -> None:
    turns, had = FairTurns(1), list[str]()

    async def work(project: str) -> None:
        async with turns.turn(project):
            had.append(project)
            await pause_async(0)

    await asyncio.wait_for(
        asyncio.gather(*(work("big") for _ in range(200)), *(work("small") for _ in range(3)), work("other")), 20
    )
    assert len(had) == 204
    assert max(place for place, project in enumerate(had) if project != "big") <= 7, "each had every third turn"


async def test_a_project_that_asks_again_and_again_takes_no_turn_of_one_that_waits() -> None:
    turns, had = FairTurns(1), list[str]()

    async def ask(project: str) -> None:
        for _ in range(20):
            async with turns.turn(project):
                had.append(project)
                await pause_async(0)

    many = (ask("big") for _ in range(10))
    await asyncio.wait_for(asyncio.gather(*many, ask("a"), ask("b")), 20)
    for project in ("a", "b"):
        last = len(had) - 1 - had[::-1].index(project)
        assert had[:last].count("big") <= 22, "no more turns than the others had"


async def test_some_turns_are_never_one_project_s() -> None:
    turns, go_on, busy = FairTurns(4, 3), asyncio.Event(), list[str]()

    async def hold(project: str) -> None:
        async with turns.turn(project):
            busy.append(project)
            await go_on.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(hold("big"))
        await eventually(lambda: len(busy) == 3, "it has all that it may have")
        for _ in range(2):
            group.create_task(hold("small"))
        await eventually(lambda: len(busy) == 4, "another has a turn at once")
        assert busy.count("big") == 3
        go_on.set()
    assert len(busy) == 12


async def test_a_turn_that_nobody_waits_for_any_more_is_another_s() -> None:
    turns, entered, go_on = FairTurns(1), asyncio.Event(), asyncio.Event()

    async def hold(project: str) -> None:
        async with turns.turn(project):
            entered.set()
            await go_on.wait()

    holding = asyncio.create_task(hold("a"))
    await asyncio.wait_for(entered.wait(), 20)
    given_up, others = asyncio.create_task(hold("b")), asyncio.create_task(hold("b"))
    await pause_async(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    go_on.set()
    await asyncio.wait_for(asyncio.gather(holding, others), 20)
    granted = asyncio.create_task(hold("c"))
    granted.cancel()  # before it has begun
    await asyncio.gather(granted, return_exceptions=True)
    async with asyncio.timeout(20), turns.turn("d"):
        pass


async def test_repositories_of_one_project_leave_room_for_others() -> None:
    queues, working = RepositoryQueues(), list[str]()
    go_on = asyncio.Event()

    async def work(project: str, repository: str) -> None:
        async with queues.of(repository).turn(project):
            working.append(project)
            await go_on.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(work("big", f"big-{number}"))
        await eventually(lambda: len(working) == REPOSITORIES_OF_A_PROJECT, "as many as it may have")
        group.create_task(work("small", "small-1"))
        await eventually(lambda: "small" in working, "the other's begins beside them")
        assert len(working) == REPOSITORIES_AT_ONCE
        go_on.set()


def of_projects(vm: str) -> Any:
    """A VM whose name begins with its project's."""
    return Mock(name_and_project=lambda: (vm, vm.partition("-")[0]))


async def test_rounds_of_replicas_of_one_project_leave_room_for_others(tmp_path: Path) -> None:
    sending, go_on = list[str](), asyncio.Event()
    senders = ReplicaSenders(Mock(settings=AgentSettings(tmp_path, tmp_path / "images", "a")), of_projects, Mock())

    async def round(replica: wire.ReplicaSent, _rounds: Any) -> wire.ReplicaRound:
        sending.append(replica.vm)
        await go_on.wait()
        return wire.ReplicaRound(replica.id)

    cast(Any, senders)._round = round
    vms = [*(f"big-{number}" for number in range(100)), "small-1"]
    sent = tuple(
        wire.ReplicaSent(f"replica-{number:016x}", vm, "b", "b:7445", 3600, True) for number, vm in enumerate(vms)
    )
    async with asyncio.TaskGroup() as tasks:
        senders.tell(sent[:-1], tasks)
        await eventually(lambda: len(sending) == OF_A_PROJECT, "as many as it may have")
        senders.tell(sent, tasks)
        await eventually(lambda: "small-1" in sending, "the other's goes beside them")
        assert len(sending) == AT_ONCE
        senders.tell((), tasks)


async def test_exports_are_made_in_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, reports = list[str](), list[Any]()
    exports = VmExports(AgentSettings(tmp_path, tmp_path / "images", "a"), of_projects, reports.append)

    async def make(export: wire.ExportWanted, _path: Path) -> None:
        made.append(export.vm)
        await pause_async(0)
        raise OSError("no disk")

    monkeypatch.setattr(exports, "_make", make)
    vms = ("big-1", "big-2", "big-3", "big-4", "small-1")
    async with asyncio.TaskGroup() as tasks:
        exports.tell(tuple(wire.ExportWanted(f"export-{vm}", vm, ExportPhase.MAKING) for vm in vms), tasks)
        await eventually(lambda: len(reports) == 5, "all have ended")
    assert made.index("small-1") == 1


BACKUP = BackupSource("repo-0123456789abcdef", "key-0123456789abcdef", "5" * 64)


@pytest.mark.parametrize(
    ("of", "work"),
    [
        (CloneOf("backup-1", "backup-1", False, backup=BACKUP), (restored_disk, "make")),
        (CloneOf("backup-1", "backup-1", False, backup=BACKUP, replaces="0" * 16), (restored_disk, "replace")),
        (CloneOf("vm-b", "b", False), (clone_disk, "copy")),
    ],
)
async def test_disks_that_are_made_of_others_have_turns(
    of: CloneOf, work: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    making, go_on = list[str](), asyncio.Event()

    async def make(*_about: object) -> None:
        making.append("")
        await go_on.wait()

    monkeypatch.setattr(*work, make)
    turns = FairTurns(4, 3)

    def reconciler(project: str) -> CloneReconciler:
        context = Mock(vm="vm-a", trace="")
        context.services.disk_turns = turns
        context.services.find_vm.return_value.wait_until_known = AsyncMock()
        context.assigned.return_value.project = project
        return CloneReconciler(context)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(reconciler("big")._make_once(of))
        await eventually(lambda: len(making) == 3, "as many as it may have")
        tasks.create_task(reconciler("small")._make_once(of))
        await eventually(lambda: len(making) == 4, "the other's is made beside them")
        go_on.set()
    assert len(making) == 21
