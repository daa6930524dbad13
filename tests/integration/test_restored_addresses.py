"""A VM that is restored has the MAC addresses that it had, as far as no other VM has them."""

from __future__ import annotations

import pytest

from novacron.control.backup_proofs import BackupProofs
from novacron.control.objects import Objects
from novacron.model.backup_proof import ProofProbe
from novacron.model.errors import Conflict
from novacron.model.network import NetworkKind, NetworkSpec
from novacron.model.vm import Vm, mac_addresses
from novacron.store import backup_proofs, backups, networks, vms
from novacron.store.database import Database
from tests.integration.test_proof_controller import FakeNodes
from tests.support.stored_fleet import add_backup

HAD = ("52:54:00:12:34:56", "06:1f:02:aa:00:10")
HAS_NICS = {"nics": [{"network": "lan", "mac": address} for address in HAD]}


@pytest.fixture
async def kept(database: Database) -> str:
    """VM web with two interfaces, and a backup of it that is kept; returns the backup's id."""
    async with database.transaction() as connection:
        id = await add_backup(connection)
        spec = NetworkSpec(NetworkKind.OVERLAY, subnet="10.20.0.0/24")
        await networks.create(connection, "default", "lan", spec, None, "test")
        await connection.execute("UPDATE nodes SET status = jsonb_set(status, '{inventory,networks}', 'true')")
        await connection.execute("UPDATE vms SET spec = spec || $1", HAS_NICS)
        await connection.execute("UPDATE backups SET spec = spec || $1", HAS_NICS)
    return id


async def restore(database: Database, id: str, name: str, *, keep_macs: bool | None = None) -> tuple[str, ...]:
    """Restore a backup, and return the addresses of the new VM's interfaces."""
    async with database.transaction() as connection:
        asked = backups.NewRestore(name, {}, keep_macs=keep_macs)
        restored = await backups.restore(connection, id, asked, "ann")
    return mac_addresses(restored.id, restored.spec)


async def delete_original(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM vms WHERE name = 'web'")


async def test_a_vm_that_was_deleted_has_its_addresses_again(database: Database, kept: str) -> None:
    await delete_original(database)
    assert await restore(database, kept, "web") == HAD
    again = await restore(database, kept, "web-again")
    assert not set(again) & set(HAD), "now another VM has them"


async def test_a_copy_beside_the_original_has_others(database: Database, kept: str) -> None:
    assert not set(await restore(database, kept, "copy")) & set(HAD)
    with pytest.raises(Conflict) as refused:
        await restore(database, kept, "copy-2", keep_macs=True)
    assert refused.value.field == "keep_macs" and "VM web has the MAC address" in str(refused.value)
    assert "--new-mac" in (refused.value.hint or "")


async def test_an_address_that_another_vm_has_meanwhile_is_the_only_one_that_changes(
    database: Database, kept: str
) -> None:
    async with database.transaction() as connection:
        nics = [{"network": "lan", "mac": HAD[0]}, {"network": "lan", "mac": "06:1f:02:aa:00:99"}]
        await connection.execute("UPDATE vms SET spec = spec || $1", {"nics": nics})
    first, second = await restore(database, kept, "copy")
    assert first != HAD[0] and second == HAD[1]


async def test_new_addresses_can_be_asked_for(database: Database, kept: str) -> None:
    await delete_original(database)
    assert not set(await restore(database, kept, "web", keep_macs=False)) & set(HAD)


async def test_a_vm_that_only_proves_a_backup_takes_no_address_of_the_original(database: Database, kept: str) -> None:
    await delete_original(database)
    async with database.transaction() as connection:
        await backup_proofs.ask(connection, kept, ProofProbe(), "test")
    await BackupProofs(FakeNodes("a")).step(database, Objects("proofs"))
    async with database.connection() as connection:
        made: list[Vm] = [await vms.get(connection, row["id"]) for row in await connection.fetch("SELECT id FROM vms")]
    (proof,) = made
    assert proof.proof_of == kept and not proof.spec.connected and not proof.spec.nics
    assert proof.spec.mac not in HAD
