"""What the server can't read how it is to be stays on its node as it is, and what was said of it last goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from unittest.mock import AsyncMock, Mock

from novacron.agent.backups import VmBackups
from novacron.agent.images.exports import VmExports
from novacron.agent.images.imports import ImageImports
from novacron.agent.images.named_work import NamedWork
from novacron.agent.replication.receiver import ReplicaReceivers
from novacron.agent.settings import AgentSettings
from novacron.model.backup import BackupPhase
from novacron.model.image import ImportSpec, Source
from novacron.wire import codec
from novacron.wire import messages as wire
from tests.support.agent import services_in
from tests.waiting import eventually


def settings_in(directory: Path) -> AgentSettings:
    settings = AgentSettings(directory, directory / "images", "host-a", backup_dir=directory)
    settings.images_dir.mkdir()
    return settings


async def test_work_on_what_is_unreadable_goes_on_and_its_files_stay() -> None:
    begun, ended, cleared = list[str](), list[str](), list[set[str]]()

    async def work(name: str) -> None:
        begun.append(name)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    def clear(is_kept: Callable[[str], bool]) -> None:
        cleared.append({name for name in ("a.1", "b.1", "of-an-agent-before.1", "c.1") if is_kept(name)})

    named = NamedWork("backup", work, clear)
    async with asyncio.TaskGroup() as tasks:
        named.tell({"a.1": "a.1", "b.1": "b.1"}, tasks)
        await eventually(lambda: begun == ["a.1", "b.1"] and len(cleared) == 1, "both are worked on")
        named.tell({}, tasks, ("a", "of-an-agent-before"))
        await eventually(lambda: len(cleared) == 2, "others are cleared")
        assert ended == ["b.1"] and cleared[1] == {"a.1", "of-an-agent-before.1"} and named.get("a.1") == "a.1"
        named.tell({"a.2": "a.2"}, tasks)
        await eventually(lambda: len(cleared) == 3, "it can be read again")
        assert ended == ["b.1", "a.1"] and cleared[2] == set() and named.get("a.1") is None
        named.tell({}, tasks)


async def test_exports_that_are_unreadable_keep_their_files(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    exports = VmExports(settings, lambda _: None, Mock())
    for id in ("export-1", "export-2"):
        (settings.exports_dir / f"{id}.qcow2").write_bytes(b"x")
    for unreadable in (("export-1",), ()):
        async with asyncio.TaskGroup() as tasks:
            exports.tell((), tasks, unreadable)
        assert [path.stem for path in settings.exports_dir.iterdir()] == list(unreadable)


async def test_an_upload_goes_on_while_its_import_is_unreadable(tmp_path: Path) -> None:
    imports = ImageImports(settings_in(tmp_path), Mock(), AsyncMock())
    upload = wire.ImportWanted("import-1", ImportSpec("web", Source.UPLOAD, size_bytes=100))
    async with asyncio.TaskGroup() as tasks:
        imports.tell((upload,), tasks)
        assert await imports.take("import-1", 0, bytes(10)) == 10
        imports.tell((), tasks, ("import-1",))
        assert await imports.take("import-1", 10, bytes(10)) == 20
        await eventually(lambda: not imports._imports._clearing, "the files of others are removed")
        assert imports._scratch(upload).exists()
        imports.tell((), tasks)
    assert not imports._scratch(upload).exists()


async def test_the_report_of_a_backup_outlives_the_time_while_it_is_unreadable(tmp_path: Path) -> None:
    backups = VmBackups(settings_in(tmp_path), lambda _: None, Mock())
    report = wire.BackupStands("backup-1", BackupPhase.MAKING, BackupPhase.KEPT)
    for unreadable, kept in ((("backup-1",), {"backup-1.making": report}), ((), {})):
        backups._made = {"backup-1.making": report}
        async with asyncio.TaskGroup() as tasks:
            backups.tell((), tasks, unreadable)
        assert backups._made == kept


async def test_what_a_vm_left_stays_while_its_replica_is_unreadable(tmp_path: Path) -> None:
    host = services_in(tmp_path)
    keeper, shelf = ReplicaReceivers(host, Mock()), host.replicas
    layer = tmp_path / "layer"
    layer.write_bytes(b"x")
    assert shelf.keep_former("vm-a", [layer])
    for unreadable in (("replica-0123456789abcdef",), ()):
        async with asyncio.TaskGroup() as tasks:
            keeper.tell(wire.Replicas((), (), unreadable, ("vm-a",) if unreadable else ()), tasks)
        assert shelf.former("vm-a").exists() is bool(unreadable)


def test_nothing_is_said_of_it_while_all_can_be_read() -> None:
    message = wire.Exports((), ("export-1",))
    assert codec.decode_from_server(codec.encode(message)) == (message, [])
    for said in (wire.Exports(()), wire.Imports(()), wire.Backups(()), wire.Replicas((), ())):
        assert b"unreadable" not in codec.encode(said)
