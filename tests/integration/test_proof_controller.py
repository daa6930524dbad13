"""The controller of proofs with real PostgreSQL: what it waits for, its limits, and what it leaves behind (nothing)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from novacron.control import backup_proofs as controller
from novacron.control.backup_proofs import BackupProofs
from novacron.control.objects import Objects
from novacron.model.backup import Backup
from novacron.model.backup_proof import BackupProof, ProofPhase, ProofProbe
from novacron.model.errors import Conflict, IllegalState, Unavailable
from novacron.model.guest_command import GuestCommand
from novacron.model.guest_reports import Guest
from novacron.model.vm import Vm, VmAction, VmState
from novacron.store import backup_policies, backup_proofs, backups, vms
from novacron.store.database import Connection, Database
from novacron.wire.questions import ReadConsoleLog, ReadGuestCommand, StartGuestCommand, TakeScreenshot
from tests.integration.test_backup_policies import add_policy
from tests.support.stored_fleet import add_backup

PNG = b"\x89PNG made by a node"


class FakeNodes:
    """Nodes that answer as they are told."""

    def __init__(self, *connected: str) -> None:
        self.names = list(connected)
        self.printed = b""
        self.picture: bytes | Exception = PNG
        self.commands: list[GuestCommand | Exception] = []
        self.started: list[str] = []

    async def connected(self) -> list[str]:
        return self.names

    async def ask(self, _node: str, question: Any) -> Any:
        match question:
            case ReadConsoleLog():
                return self.printed
            case TakeScreenshot():
                answer: Any = self.picture
            case StartGuestCommand(key=key):
                self.started.append(key)
                return 7
            case ReadGuestCommand():
                answer = self.commands.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
async def kept(database: Database) -> str:
    """Nodes a and b, VM web on a, and a backup of it that is kept; returns its id."""
    async with database.transaction() as connection:
        return await add_backup(connection)


async def copy_backup(connection: Connection, id: str, other: str, **spec: Any) -> None:
    """Store another backup like one."""
    await connection.execute(
        "INSERT INTO backups (id, vm, vm_name, repository, repository_name, node, spec, phase, excluded_volumes,"
        " trace, project, result) SELECT $1, vm, vm_name, repository, repository_name, node, spec || $3, phase,"
        " excluded_volumes, trace, project, result FROM backups WHERE id = $2",
        other, id, spec,
    )  # fmt: skip


async def step(database: Database, nodes: FakeNodes, *, fails: bool = False) -> None:
    objects = Objects("proofs")
    await BackupProofs(nodes).step(database, objects)
    objects.end_pass()
    assert (objects.due_in_s() is not None) is fails


async def ask(database: Database, id: str, **probe: Any) -> None:
    async with database.transaction() as connection:
        await backup_proofs.ask(connection, id, ProofProbe(**probe), "test")


async def now(database: Database, id: str) -> tuple[BackupProof, Vm | None]:
    """Return a backup's proof, and its VM."""
    async with database.connection() as connection:
        backup: Backup = await backups.get(connection, id)
        assert backup.proof is not None
        return backup.proof, await backup_proofs.vm_of(connection, backup) if backup.proof.vm else None


async def becomes(database: Database, id: str, state: VmState, guest: Guest | None = None, reason: str = "") -> None:
    """Let the node report of the proof's VM."""
    proof, _ = await now(database, id)
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE vms SET clone_of = NULL, status = status || $2 WHERE id = $1", proof.vm,
            {"state": state, "reason": reason, "guest": None if guest is None else {"hostname": guest.hostname}},
        )  # fmt: skip


async def started(database: Database, id: str, nodes: FakeNodes, guest: Guest | None = None) -> None:
    """Bring a proof to where its VM runs."""
    await step(database, nodes)
    await becomes(database, id, VmState.RUNNING, guest)
    await step(database, nodes)
    assert (await now(database, id))[0].phase is ProofPhase.STARTING


async def test_the_guest_agent_proves_a_backup_and_the_vm_goes(database: Database, kept: str) -> None:
    nodes = FakeNodes("a")
    await ask(database, kept)
    await step(database, FakeNodes("b"))
    assert (await now(database, kept))[0].phase is ProofPhase.WAITING, "that server can't ask its node"
    await started(database, kept, nodes)
    proof, vm = await now(database, kept)
    assert vm is not None and vm.node == "a" and vm.spec.connected is False and vm.proof_of == kept
    await step(database, nodes)
    assert (await now(database, kept))[0].error == "its guest agent does not answer"
    await becomes(database, kept, VmState.RUNNING, Guest("web-1"))
    await step(database, nodes)
    proof, _ = await now(database, kept)
    assert (proof.phase, proof.answer) == (ProofPhase.PROVED, "its guest agent answers, as web-1")
    await step(database, nodes)
    assert (await now(database, kept))[1] is None, "its VM is being deleted"
    async with database.connection() as connection:
        assert await backup_proofs.picture(connection, kept) == PNG
        web = await vms.get(connection, "web")
        assert web.backups.proved_at is not None and not web.backups.proof_failed


async def test_a_command_is_tried_until_it_ends_well(database: Database, kept: str) -> None:
    nodes = FakeNodes("a")
    nodes.commands = [
        GuestCommand(7, running=True),
        GuestCommand(7, running=False, exit_code=3, stderr=b"no \x1b[31mservice\n"),
        Unavailable("the guest is silent"),
        GuestCommand(7, running=False, exit_code=0, stdout=b"first\nall well\n"),
    ]
    await ask(database, kept, command=("systemctl", "is-system-running"))
    await started(database, kept, nodes, Guest("web-1"))
    proofs = BackupProofs(nodes)
    errors = []
    for _ in range(4):
        objects = Objects("proofs")
        await proofs.step(database, objects)
        objects.end_pass()
        errors.append((await now(database, kept))[0].error)
    assert "has not ended" in errors[0] and "exit code 3 in the guest: no ?[31mservice" in errors[1]
    assert errors[2:] == ["the guest is silent", ""]
    assert (await now(database, kept))[0].answer.endswith("ended with exit code 0: all well")
    assert len(set(nodes.started)) == 3, "started anew only after it had ended"


@pytest.mark.parametrize("what", ["time", "crash", "deleted", "power off"])
async def test_what_does_not_start_is_not_proved(database: Database, kept: str, what: str) -> None:
    nodes = FakeNodes("a")
    nodes.picture = Unavailable("no picture")
    await ask(database, kept, line="login:")
    await started(database, kept, nodes)
    nodes.printed = b"kernel panic"
    proof, vm = await now(database, kept)
    assert vm is not None
    async with database.transaction() as connection:
        if what == "time":
            await connection.execute(
                "UPDATE backups SET proof = jsonb_set(proof, '{since}', to_jsonb(now() - interval '11 minutes'))"
            )
        elif what == "deleted":
            await vms.act(connection, vm.id, VmAction.DELETE, None, "somebody", 0)
    if what in ("crash", "power off"):
        await becomes(database, kept, VmState.FAILED if what == "crash" else VmState.STOPPED, reason="QEMU ended")
    await step(database, nodes)
    words = {
        "time": "not within 600 s: 'login:' is not on its serial console", "deleted": "its VM was deleted",
        "crash": "its VM is failed: QEMU ended", "power off": "its VM is stopped: QEMU ended",
    }  # fmt: skip
    proof, _ = await now(database, kept)
    assert (proof.phase, proof.error, proof.picture) == (ProofPhase.FAILED, words[what], False)
    await step(database, nodes)
    assert (await now(database, kept))[1] is None
    async with database.connection() as connection:
        assert (await vms.get(connection, "web")).backups.proof_failed


async def test_a_proof_waits_for_room_and_says_so_but_not_for_ever(
    database: Database, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = FakeNodes("a")
    async with database.transaction() as connection:
        await connection.execute("UPDATE backups SET spec = spec || '{\"memory_mib\": 1000000}'")
    await ask(database, kept)
    await step(database, nodes)
    proof, vm = await now(database, kept)
    assert proof.phase is ProofPhase.WAITING and "memory" in proof.error and vm is None
    monkeypatch.setattr(controller, "WAITING_S_MAX", 0.0)
    await step(database, nodes)
    assert (await now(database, kept))[0].phase is ProofPhase.FAILED


async def test_one_proof_at_a_time_for_each_node_and_backup(database: Database, kept: str) -> None:
    async with database.transaction() as connection:
        other = "backup-other"
        await copy_backup(connection, kept, other)
    await ask(database, kept)
    await ask(database, other)
    with pytest.raises(Conflict):
        await ask(database, kept)
    nodes = FakeNodes("a")
    for _ in range(3):
        await step(database, nodes)
    phases = sorted([(await now(database, id))[0].phase for id in (kept, other)])
    assert phases == [ProofPhase.RESTORING, ProofPhase.WAITING]
    async with database.transaction() as connection:
        await connection.execute("UPDATE backups SET phase = 'damaged'")
        with pytest.raises(IllegalState):
            await backup_proofs.ask(connection, kept, ProofProbe(), "test")


async def test_what_has_no_room_keeps_nobody_waiting(database: Database, kept: str) -> None:
    """A project whose quota is used up would otherwise hold up all others on the node for a day."""
    async with database.transaction() as connection:
        for number in range(12):
            await copy_backup(connection, kept, f"backup-large-{number}", memory_mib=1_000_000)
    for number in range(12):
        await ask(database, f"backup-large-{number}")
    await ask(database, kept)
    nodes = FakeNodes("a")
    for _ in range(3):
        await step(database, nodes)
    assert (await now(database, kept))[0].phase is ProofPhase.RESTORING
    assert (await now(database, "backup-large-0"))[0].phase is ProofPhase.WAITING
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM vms WHERE proof_of <> ''") == 1


async def test_a_project_with_many_proofs_makes_another_wait_for_one_of_them(database: Database, kept: str) -> None:
    """One proof at a time runs on a node, and takes minutes."""
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO projects (id, name) VALUES ('project-small', 'small')")
        for number in range(12):
            await copy_backup(connection, kept, f"backup-big-{number}")
        for number in range(2):
            await copy_backup(connection, kept, f"backup-small-{number}")
        await connection.execute("UPDATE backups SET project = 'small' WHERE id LIKE 'backup-small-%'")
    for name, count in (("big", 12), ("small", 2)):
        for number in range(count):
            await ask(database, f"backup-{name}-{number}")
    began = list[str]()
    for _ in range(5):
        async with database.transaction() as connection:
            first = (await backup_proofs.under_way(connection, ["a"]))[0]
            began.append(first.split("-")[1])
            backup = await backups.get(connection, first, lock=True)
            done = await backup_proofs.enter(connection, backup, ProofPhase.RESTORING)
            assert done.proof is not None
            proved = msgspec.structs.replace(done.proof, phase=ProofPhase.PROVED, start_s=1.0)
            await backup_proofs.end(connection, done, proved, None)
    assert began == ["big", "small", "big", "small", "big"]


async def test_a_disk_that_cant_be_made_is_given_up_before_long(database: Database, kept: str) -> None:
    nodes = FakeNodes("a")
    await ask(database, kept)
    await step(database, nodes)
    proof, _ = await now(database, kept)
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE vms SET status = status || $2 WHERE id = $1", proof.vm,
            {"state": VmState.FAILED, "reason": "its disk can't be created: a block is damaged"},
        )  # fmt: skip
    await step(database, nodes)
    assert (await now(database, kept))[0].phase is ProofPhase.RESTORING, "its agent tries again"
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE backups SET proof = jsonb_set(proof, '{since}', to_jsonb(now() - interval '11 minutes'))"
        )
    await step(database, nodes)
    proof, _ = await now(database, kept)
    assert (proof.phase, proof.error) == (ProofPhase.FAILED, "its disk can't be created: a block is damaged")


async def test_several_servers_make_one_vm_and_one_outcome(database: Database, kept: str) -> None:
    await ask(database, kept)
    servers = [(BackupProofs(FakeNodes("a")), Objects(f"proofs {number}")) for number in range(4)]

    async def all_step() -> None:
        await asyncio.gather(*(server.step(database, objects) for server, objects in servers))

    await all_step()
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM vms WHERE proof_of <> ''") == 1
    await becomes(database, kept, VmState.RUNNING, Guest("web-1"))
    for _ in range(3):
        await all_step()
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM events WHERE reason = 'BackupProved'") == 1
        assert await connection.fetchval("SELECT count(*) FROM vms WHERE proof_of <> '' AND NOT deleting") == 0


async def test_the_vm_of_a_backup_that_is_gone_is_deleted_and_no_policy_covers_it(
    database: Database, kept: str
) -> None:
    nodes = FakeNodes("a")
    await ask(database, kept)
    await step(database, nodes)
    _, vm = await now(database, kept)
    assert vm is not None
    policy = await add_policy(database)
    async with database.connection() as connection:
        covered = await backup_policies.covered_after(connection, policy, "", datetime.now(UTC), 5)
        assert [vm.id for vm in covered.waiting] == ["web"]
    async with database.transaction() as connection:
        await connection.execute("UPDATE vms SET spec = spec || '{\"protected\": true}' WHERE id = $1", vm.id)
        await connection.execute("DELETE FROM backups")
    await step(database, nodes)
    async with database.connection() as connection:
        assert (await vms.get(connection, vm.id)).deleting
