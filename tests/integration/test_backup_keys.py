"""With which key a backup is encrypted, and what becomes of it: said by the database alone, and ended by an erasure."""

from __future__ import annotations

import pytest

from novacron.model.backup_policy import BackupPolicy, BackupPolicySpec
from novacron.model.backup_proof import ProofProbe
from novacron.model.encryption import WrappedKey
from novacron.model.errors import IllegalState
from novacron.model.vm import Vm
from novacron.store import backup_policies, backup_proofs, backups, project_keys, projects, vms
from novacron.store.backup_policies import NewPolicy
from novacron.store.database import Connection, Database
from tests.support.stored_fleet import add_backup

KEY = WrappedKey("key-aaaaaaaaaaaaaaaa", b"wrapped", "file-1")
SUCCESSOR = WrappedKey("key-bbbbbbbbbbbbbbbb", b"wrapped", "file-1")


async def encrypt(connection: Connection) -> None:
    """Have the default project encrypt what it creates from now on."""
    await projects.configure(connection, "default", {"encryption": True}, "test", KEY)


async def vm_and_backup(connection: Connection, *, is_encrypted: bool) -> str:
    """Store VM web, off, and a backup of it; return its id."""
    id = await add_backup(connection)
    off, state = {"power": "stopped"}, {"state": "stopped"}
    await connection.execute("UPDATE vms SET spec = spec || $1, status = status || $2", off, state)
    if not is_encrypted:
        return id
    await encrypt(connection)
    await connection.execute("UPDATE vms SET spec = spec || $1", {"encryption_key": KEY.id})
    former = await backups.get(connection, id)
    await connection.execute("DELETE FROM backups WHERE id = $1", id)
    made = await backups.create(connection, "web", former.repository, "test")
    result = {"snapshot": "5" * 64, "disk_bytes": 1 << 20}
    await connection.execute(
        "UPDATE backups SET phase = 'kept', result = result || $2 WHERE id = $1", made.id, result
    )  # fmt: skip
    return made.id


async def restored(connection: Connection, id: str) -> Vm:
    return await backups.restore(connection, id, backups.NewRestore("copy", {}), "ann")


async def test_a_backup_of_an_encrypted_vm_is_restored_with_its_key(database: Database) -> None:
    async with database.transaction() as connection:
        id = await vm_and_backup(connection, is_encrypted=True)
        backup = await backups.get(connection, id)
        assert backup.encryption_key == KEY.id == (await vms.get(connection, "web")).spec.encryption_key
        await projects.configure(connection, "default", {"encryption": False}, "test")
        vm = await restored(connection, id)
    assert vm.spec.encryption_key == KEY.id, "it is not written in the clear because the project does so by now"
    assert vm.clone_of is not None and vm.clone_of.backup is not None
    assert (vm.clone_of.backup.content_key, vm.clone_of.backup.key) == (KEY.id, "")
    assert vm.clone_of.backup.opened_by


async def test_a_backup_that_is_not_encrypted_becomes_an_encrypted_disk_where_the_project_encrypts(
    database: Database,
) -> None:
    async with database.transaction() as connection:
        id = await vm_and_backup(connection, is_encrypted=False)
        assert (await backups.get(connection, id)).encryption_key == ""
        await encrypt(connection)
        vm = await restored(connection, id)
        assert vm.clone_of is not None and vm.clone_of.backup is not None
        assert (vm.spec.encryption_key, vm.clone_of.backup.content_key) == (KEY.id, "")
        await connection.execute("UPDATE backups SET spec = spec || $1", {"tpm": True})
        with pytest.raises(IllegalState, match=r"TPM state in backup .* is not encrypted") as refused:
            await backups.restore(connection, id, backups.NewRestore("other", {}), "ann")
    assert "--encryption off" in (refused.value.hint or "")


async def test_a_vm_whose_image_alone_is_encrypted_has_encrypted_backups(database: Database) -> None:
    async with database.transaction() as connection:
        id = await vm_and_backup(connection, is_encrypted=False)
        await encrypt(connection)
        image = (await vms.get(connection, "web")).spec.image
        await connection.execute(
            "INSERT INTO image_owners (name, project, encryption_key) VALUES ($1, 'default', $2)"
            " ON CONFLICT (name) DO UPDATE SET encryption_key = $2",
            image, KEY.id,
        )  # fmt: skip
        repository = (await backups.get(connection, id)).repository
        second = await backups.create(connection, "web", repository, "test")
        assert second.encryption_key == KEY.id
        await connection.execute("UPDATE backups SET phase = 'kept' WHERE id = $1", second.id)
        with pytest.raises(IllegalState, match=f"the disk of VM web use different keys .{KEY.id}, none.") as refused:
            await backups.replace(connection, second.id, "ann")
    assert f"backup restore {second.id} NAME" in (refused.value.hint or "")


async def test_backups_can_not_be_read_any_more_once_their_key_is_erased(database: Database) -> None:
    async with database.transaction() as connection:
        id = await vm_and_backup(connection, is_encrypted=True)
        policy = await policy_of(connection, id)
        assert await backup_proofs.due(connection, policy) == [id]
        erased = await project_keys.erase(connection, "default", SUCCESSOR, "ann")
        assert erased.backups == (id,), "the proof names them"
        words = f"backup {id} is encrypted with {KEY.id}, which was erased"
        with pytest.raises(IllegalState, match=words) as refused:
            await restored(connection, id)
        assert f"novacron backup delete {id}" in (refused.value.hint or "")
        for refuses in (
            backups.replace(connection, id, "ann"),
            backup_proofs.ask(connection, id, ProofProbe(), "ann"),
        ):
            with pytest.raises(IllegalState, match=words):
                await refuses
        assert await backup_proofs.due(connection, policy) == [], "no proof fails of what nobody can read"
        repository = (await backups.get(connection, id)).repository
        with pytest.raises(IllegalState, match="its data can't be read any more"):
            await backups.create(connection, "web", repository, "ann")
        await backups.delete(connection, id, "ann")


async def policy_of(connection: Connection, id: str) -> BackupPolicy:
    """Have a backup belong to a policy that proves."""
    repository = (await backups.get(connection, id)).repository
    spec = BackupPolicySpec(repository=repository, prove_days=7)
    policy = await backup_policies.create(connection, NewPolicy("default", "nightly", spec), "test")
    await connection.execute("UPDATE backups SET policy = $2 WHERE id = $1", id, policy.id)
    return policy
