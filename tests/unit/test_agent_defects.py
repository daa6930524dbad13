"""A defect met with one replica, backup or image on a node ends neither the work on it nor that on any other."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from novacron.agent import backups
from novacron.agent.backups import VmBackups
from novacron.agent.images import copies
from novacron.agent.images.imports import ImageImports
from novacron.agent.replication import receiver
from novacron.agent.replication.receiver import ReplicaReceivers, _Below
from novacron.agent.repositories import contents
from novacron.agent.settings import AgentSettings
from novacron.disk.images import LocalImage
from novacron.model.backup import BackupPhase
from novacron.model.image import ImportPhase, ImportSpec, Source
from novacron.model.replica import ReplicaPhase
from novacron.platform_key import new_key
from novacron.supervise import RESTARTS
from novacron.wire import messages as wire
from tests.support.agent import services_in
from tests.waiting import eventually

DEFECT = RuntimeError("a defect")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(receiver, "RETRY_S_MIN", 0.01)
    monkeypatch.setattr(backups, "DELETE_S_MIN", 0.01)


def replica(number: int, phase: ReplicaPhase = ReplicaPhase.FOLLOWING) -> wire.ReplicaKept:
    return wire.ReplicaKept(f"replica-{number:016}", f"vm-{number}", phase, "host-b", 2, "tiny", None, 0, bytes(32))


def settings_in(directory: Path) -> AgentSettings:
    settings = AgentSettings(directory, directory / "images", "host-a", backup_dir=directory)
    settings.images_dir.mkdir()
    return settings


@contextlib.asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_defect_does_not_end_the_work_on_a_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, tries = ReplicaReceivers(services_in(tmp_path), Mock()), list[str]()

    async def keep(of: wire.ReplicaKept, *_: object) -> None:
        tries.append(of.id)
        if len(tries) == 1:
            raise DEFECT
        await asyncio.Event().wait()

    monkeypatch.setattr(keeper, "_keep", keep)
    before = RESTARTS.cell("replica")[0]
    async with running(keeper._see_to(replica(1))):
        await eventually(lambda: len(tries) == 2, "it is tried again")
    assert RESTARTS.cell("replica")[0] == before + 1


async def test_a_replica_whose_removal_meets_a_defect_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, sent = services_in(tmp_path), list[Any]()
    keeper = ReplicaReceivers(host, sent.append)
    monkeypatch.setattr(host.replicas, "remove", AsyncMock(side_effect=[DEFECT, None]))
    async with asyncio.timeout(30):
        await keeper._see_to(replica(1, ReplicaPhase.DELETING))
    assert [message.gone for message in sent] == [True]


async def test_a_defect_in_one_comparison_does_not_end_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, sessions = services_in(tmp_path), list[str]()

    async def receive(_: object) -> None:
        if len(sessions) == 1:
            raise DEFECT
        await asyncio.Event().wait()

    @contextlib.contextmanager
    def expect(name: str, *_: object) -> Iterator[Any]:
        sessions.append(name)
        yield SimpleNamespace(receive=receive)

    monkeypatch.setattr(host, "listener", SimpleNamespace(expect=expect))
    keeper, of = ReplicaReceivers(host, Mock()), replica(1)
    before = RESTARTS.cell("replica-comparison")[0]
    async with running(keeper._compare(of, host.replicas.find(of.id, of.vm), _Below(tmp_path, 1 << 20))):
        await eventually(lambda: len(sessions) == 2, "the next one is answered")
    assert RESTARTS.cell("replica-comparison")[0] == before + 1


async def test_a_replica_that_meets_a_defect_hides_no_other_from_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, reported = ReplicaReceivers(services_in(tmp_path), Mock()), list[str]()

    async def report(of: wire.ReplicaKept) -> None:
        if of.id == replica(2).id:
            raise DEFECT
        reported.append(of.id)

    monkeypatch.setattr(keeper, "_report", report)
    keeper._unsaid = {of.id: of for of in map(replica, (1, 2, 3))}
    await keeper._report_all()
    assert sorted(reported) == [replica(1).id, replica(3).id]


async def test_a_backup_whose_deletion_meets_a_defect_is_deleted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[wire.BackupStands]()
    seen_to = VmBackups(settings_in(tmp_path), lambda _: None, sent.append)  # type: ignore[arg-type]
    monkeypatch.setattr(seen_to, "_open", Mock(side_effect=[DEFECT, Mock()]))
    forgotten = Mock()
    monkeypatch.setattr(contents, "forget", forgotten)
    wanted = wire.BackupWanted(
        "backup-1", "vm-1", "web", BackupPhase.DELETING, "repo-0123456789abcdef", False, "", b"", new_key()
    )
    async with asyncio.timeout(30):
        await seen_to._see_to(wanted)
    assert ["internal error" in report.error for report in sent] == [True, False] and forgotten.call_count == 1


async def test_an_image_that_has_come_is_reported_though_a_look_at_all_images_meets_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[Any]()
    imports = ImageImports(settings_in(tmp_path), sent.append, AsyncMock(side_effect=DEFECT))
    monkeypatch.setattr(imports, "_import", AsyncMock(return_value=7))
    await imports._work(wire.ImportWanted("import-1", ImportSpec("web", Source.UPLOAD)))
    assert [(report.phase, report.held_bytes) for report in sent] == [(ImportPhase.DONE, 7)]


def test_an_image_whose_directory_cant_be_closed_to_others_keeps_no_agent_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, closed = settings_in(tmp_path), list[int]()
    directories = [Mock(spec=Path), Mock(spec=Path)]
    for directory in directories:
        directory.is_symlink.return_value = False
        directory.stat.return_value.st_uid = os.geteuid()
    directories[0].chmod.side_effect = PermissionError
    directories[1].chmod.side_effect = closed.append
    images = {str(n): Mock(spec=LocalImage, directory=d, disk=tmp_path, info=Mock()) for n, d in enumerate(directories)}
    monkeypatch.setattr(copies, "scan", lambda _: (images, {}))
    copies.clean(settings)
    assert closed == [0o700]
