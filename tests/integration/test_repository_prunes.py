"""The room of deleted backups is freed: restic prunes what our own writer wrote, and the server says when."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from lab.platform import Platform
from novacron.agent.repositories import prune as prune_module
from novacron.agent.repositories.directory import Purpose, open_repository
from novacron.agent.repositories.prune import LIMITS, RepositoryPrunes
from novacron.agent.repositories.queues import RepositoryQueues
from novacron.agent.settings import AgentSettings
from novacron.backup import disks
from novacron.backup.errors import RepositoryError
from novacron.backup.restic import prune
from novacron.backup.storage import Kind
from novacron.control.objects import Objects
from novacron.disk.errors import Unacceptable
from novacron.model.encryption import DataKey
from novacron.model.errors import InvalidInput, Unavailable
from novacron.server.project_secrets import ProjectSecrets
from novacron.server.questions import Questions
from novacron.server.repository_prunes import RepositoryUpkeep
from novacron.store import backup_repositories
from novacron.store.database import Database
from novacron.wire.questions import PruneRepository, PruneState
from tests.support.stored_fleet import KEY, add_backup
from tests.support.vm_backups import NewRepository as NewRepositories
from tests.support.vm_backups import back_up
from tests.support.vms import NewVm, boot_vm, shell
from tests.waiting import eventually, until

ID = "repo-0123456789abcdef"
SECRET = DataKey("key-0123456789abcdef", bytes(range(32)))


def stored_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "data").rglob("*") if path.is_file())


def restic(root: Path, *arguments: str) -> bytes:
    done = subprocess.run(
        ["restic", "--no-cache", "--repo", str(root), *arguments], capture_output=True, check=False,
        env={**os.environ, "RESTIC_PASSWORD": SECRET.passphrase().decode()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with two disks of 8 MiB each, of which one was deleted."""
    root = tmp_path / ID
    opened = open_repository(root, SECRET, begin=True, purpose=Purpose.WRITE)
    snapshots = []
    for seed in range(2):
        data = io.BytesIO(random.Random(seed).randbytes(8 << 20))
        written = disks.write_stream(opened.repository, data.read, 8 << 20)
        snapshots.append(opened.repository.save_snapshot("vm", {"disk.raw": written}, ["test"]))
    opened.storage.remove(Kind.SNAPSHOT, snapshots[0])
    opened.close()
    return root


async def test_what_no_snapshot_has_is_gone_and_what_one_has_is_there(root: Path) -> None:
    assert stored_bytes(root) > 16 << 20, "deleting a snapshot frees nothing"
    freed = await prune(root, SECRET.passphrase(), LIMITS)
    assert freed.startswith("8.0") and "MiB" in freed
    assert stored_bytes(root) < 9 << 20
    restic(root, "check", "--read-data")
    kept = random.Random(1).randbytes(8 << 20)
    assert restic(root, "dump", "latest", "/vm/disk.raw") == kept
    assert await prune(root, SECRET.passphrase(), LIMITS) in ("", "0 B"), "there is nothing more"
    assert not any((root / "locks").iterdir())


async def test_a_repository_that_somebody_works_with_is_left_alone(root: Path) -> None:
    opened = open_repository(root, SECRET, begin=False, purpose=Purpose.WRITE)
    before = stored_bytes(root)
    try:
        with pytest.raises(RepositoryError, match="restic prune failed"):
            await prune(root, SECRET.passphrase(), LIMITS)
        assert stored_bytes(root) == before
    finally:
        opened.close()
    with pytest.raises(RepositoryError, match="restic unlock failed"):
        await prune(root, DataKey("key-0123456789abcdef", bytes(32)).passphrase(), LIMITS)


def prunes_at(root: Path) -> RepositoryPrunes:
    settings = AgentSettings(root.parent / "state", root.parent, "a", backup_dir=root.parent)
    return RepositoryPrunes(settings, RepositoryQueues())


def asked(request: str = "first") -> PruneRepository:
    return PruneRepository(ID, SECRET, request)


async def test_a_node_prunes_once_for_each_request_and_says_how_far_it_is(root: Path) -> None:
    prunes = prunes_at(root)
    try:
        assert prunes.answer(asked()) == PruneState(running=True)
        assert prunes.answer(asked("second")).running, "one at a time"
        await eventually(lambda: not prunes.answer(asked()).running, "it has ended", 60)
        first = prunes.answer(asked())
        assert first.error == "" and first.freed.startswith("8.0")
        assert prunes.answer(asked("second")).running, "another request begins another one"
    finally:
        await prunes.end()
    assert not any((root / "locks").iterdir()), "restic was ended, and gave its lock up"


async def test_a_request_beyond_what_a_node_prunes_at_once_waits_for_its_turn(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_module, "PRUNES_MAX", 0)
    prunes = prunes_at(root)
    assert prunes.answer(asked()) == PruneState(running=True) == prunes.answer(asked()), "it has not failed"


async def test_a_node_that_cant_prune_says_why(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prunes = prunes_at(root)
    with pytest.raises(Unacceptable, match="mounted"):
        prunes.answer(PruneRepository("repo-ffffffffffffffff", SECRET, "first"))
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert prunes.answer(asked()).running
    await eventually(lambda: not prunes.answer(asked()).running, "it has ended", 20)
    assert "restic is not installed" in prunes.answer(asked()).error


class World:
    """A server's upkeep with a real database, and nodes that answer as they are told."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ask = AsyncMock(return_value=PruneState(running=True))
        self.connected = ["a"]
        secrets = AsyncMock()
        secrets.data_keys.return_value = {KEY.id: SECRET}
        questions = AsyncMock()
        questions.ask = self.ask
        self.upkeep = RepositoryUpkeep(
            database, cast(Questions, questions), cast(ProjectSecrets, secrets), lambda: self.connected
        )
        self.objects = Objects("prunes")

    async def step(self) -> list[Any]:
        """Make one pass; return the requests of which nodes were asked."""
        self.ask.reset_mock()
        await self.upkeep.step(self.objects)
        self.objects.end_pass()
        return [call.args[1].request for call in self.ask.await_args_list]

    async def sql(self, statement: str, *arguments: object) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(statement, *arguments)

    async def prunes(self) -> list[tuple[str, str, str]]:
        async with self.database.connection() as connection:
            id = await connection.fetchval("SELECT id FROM backup_repositories")
            return [(p.node, p.freed, p.error) for p in (await backup_repositories.get(connection, id)).prunes]


@pytest.fixture
async def world(database: Database) -> World:
    """Nodes a and b, VM web on a with a backup that is kept in repository nightly."""
    async with database.transaction() as connection:
        await add_backup(connection)
    return World(database)


async def test_a_repository_is_pruned_when_it_is_due_on_nodes_that_have_it(world: World) -> None:
    assert await world.step() == [], "it is new"
    await world.sql("UPDATE backup_repositories SET created_at = now() - interval '8 days'")
    world.connected = ["b"]
    assert await world.step() == []
    world.connected = ["a", "b"]
    await world.sql("UPDATE backups SET phase = 'making'")
    assert await world.step() == [], "a backup is being made"
    await world.sql("UPDATE backups SET phase = 'kept'")
    [request] = await world.step()
    assert await world.step() == [request], "it is asked how far that is"
    await world.sql("UPDATE backups SET phase = 'making'")
    assert await world.step() == [request], "also while a backup waits behind it"
    await world.sql("UPDATE backups SET phase = 'kept'")
    world.ask.return_value = PruneState(freed="8.0 MiB")
    assert await world.step() == [request]
    assert await world.prunes() == [("a", "8.0 MiB", "")]
    assert await world.step() == []
    await world.sql("DELETE FROM backups")
    async with world.database.transaction() as connection:
        id = await connection.fetchval("SELECT id FROM backup_repositories")
        await backup_repositories.ask_to_prune(connection, id, "somebody")
    assert len(await world.step()) == 1, "also where its last backup was deleted"


async def test_what_fails_is_said_and_tried_the_next_day_and_never_can_be_asked_for(world: World) -> None:
    await world.sql("UPDATE backup_repositories SET created_at = now() - interval '8 days'")
    world.ask.side_effect = Unavailable("node a does not answer")
    assert len(await world.step()) == 1 and await world.prunes() == []
    world.objects = Objects("after a while")
    world.ask.side_effect = InvalidInput("node a: node a has no restic")
    assert len(await world.step()) == 1
    assert await world.prunes() == [("a", "", "node a: node a has no restic")]
    assert await world.step() == []
    before = (datetime.now(UTC) - timedelta(days=1, minutes=1)).isoformat()
    await world.sql("UPDATE backup_repositories SET prunes = jsonb_set(prunes, '{0,at}', to_jsonb($1::text))", before)
    assert len(await world.step()) == 1
    await world.sql("UPDATE backup_repositories SET prune_days = NULL")
    world.objects = Objects("later")
    await world.sql("UPDATE backup_repositories SET prunes = jsonb_set(prunes, '{0,at}', to_jsonb($1::text))", before)
    assert await world.step() == []


def test_the_room_of_deleted_backups_is_freed_and_restic_ends_no_agent(
    site: Platform, new_vm: NewVm, new_repository: NewRepositories
) -> None:
    vm, repository = boot_vm(site, new_vm), new_repository()
    shell(site, vm, "dd if=/dev/urandom of=/dev/vda bs=1M seek=20 count=4 conv=notrunc,fsync 2>/dev/null; echo done")
    first, second = (back_up(site, vm, repository) for _ in range(2))
    root = site.backup_dir / repository["id"]
    for backup in (first, second):
        site.cli("backup", "delete", backup["id"])
    before = stored_bytes(root)
    agent = site.agents[vm["node"]].process
    assert agent is not None
    os.kill(agent.pid, signal.SIGHUP)  # restic unlock sends it to the process of a lock
    site.cli("backup", "repository", "set", repository["name"], "--prune-days", "1")
    site.cli("backup", "repository", "prune", repository["name"])
    until(lambda: site.client.get("backup-repositories", repository["id"])["prunes"][0]["at"], "it was pruned", 90)
    [pruned] = site.client.get("backup-repositories", repository["id"])["prunes"]
    assert (pruned["node"], pruned["error"]) == (vm["node"], "") and pruned["freed"]
    assert stored_bytes(root) < before // 10 and agent.poll() is None
    assert " freed" in site.cli("backup", "repository", "show", repository["name"]).stdout
    assert site.cli("backup", "repository", "list").returncode == 0
