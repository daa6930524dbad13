"""Backups of VMs whose disks are encrypted: nothing of them is in the clear, in no repository either, and what is
restored is as it was. Once the project's key is erased, no backup can be read any more."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

import asyncpg
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from lab.platform import Platform, until
from novacron.model.encryption import DataKey, WrappedKey
from novacron.platform_key import KeyFile
from tests.integration.test_encryption import encrypting, switch_off
from tests.integration.test_vm_backups import fill_disk, reason_of, restic, scratch_is_empty
from tests.support.plain import files_with
from tests.support.vm_backups import NewRepository, back_up, proof_ended
from tests.support.vms import (
    NewVm,
    directory_of,
    read_from_disk,
    wait_until_booted,
    write_to_disk,
)

BLOCK = 64 << 10
MARKER = b"MARKER-of-the-guest"
READY = "novacron tiny guest: ready"


def key_of(site: Platform, id: str) -> DataKey:
    """Return a project's key, unwrapped with the platform key of the lab."""

    async def read() -> DataKey:
        connection = await asyncpg.connect(site.postgres.url)
        try:
            row = await connection.fetchrow("SELECT id, wrapped, wrapped_by FROM project_keys WHERE id = $1", id)
        finally:
            await connection.close()
        assert row is not None
        return await KeyFile(site.platform_key).unwrap(WrappedKey(**dict(row)))

    return asyncio.run(read())


def decrypted(sealed: bytes, key: DataKey) -> bytes:
    """Decrypt a disk as docs/reference/on-disk-formats.md describes it."""
    xts = key.derive("backup disk data") + key.derive("backup disk tweak")
    blocks = list[bytes]()
    for number in range(-(-len(sealed) // BLOCK)):
        block = sealed[number * BLOCK : (number + 1) * BLOCK]
        if any(block):
            block = Cipher(AES(xts), XTS(number.to_bytes(16, "little"))).decryptor().update(block)
        blocks.append(block)
    return b"".join(blocks)


def test_backups_of_an_encrypted_vm_are_increments_hold_nothing_in_the_clear_and_are_restored(
    site: Platform, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str]
) -> None:
    with encrypting(site) as key:
        vm = new_vm(image="disk", node="host-a")
        wait_until_booted(site, vm)
        vm, repository = site.client.get("vms", vm["id"]), new_repository()
        write_to_disk(site, vm, 'MAR""KER-of-the-guest')
        fill_disk(site, vm, "urandom", "seek=20 count=4")
        first = back_up(site, vm, repository)
        assert first["encryption_key"] == key and "first" in reason_of(first)
        fill_disk(site, vm, "urandom", "seek=26 count=1")
        second = back_up(site, vm, repository)
        assert (second["result"]["mode"], second["result"]["parent"]) == ("incremental", first["result"]["snapshot"])
        assert 1 << 20 <= second["result"]["written_bytes"] < 2 << 20, "what changed is written"
        assert scratch_is_empty(site, vm["node"])
        assert f"{second['id']}: verified" in site.cli("backup", "verify", second["id"]).stdout
        restic(site, repository, "check", "--read-data")
        snapshot = second["result"]["snapshot"]
        sealed = restic(site, repository, "dump", snapshot, "/vm/disk.xts")
        assert len(sealed) == second["result"]["disk_bytes"] and MARKER not in sealed
        plain = decrypted(sealed, key_of(site, key))
        assert MARKER in plain, "restic's users read it with the project's key"

        name = new_name()
        site.cli("backup", "restore", second["id"], name, "--node", "host-b")
        restored = site.client.get("vms", name)
        wait_until_booted(site, restored)
        assert read_from_disk(site, restored) == MARKER.decode()
        assert restored["spec"]["encryption_key"] == key and restored["node"] == "host-b"
        assert files_with(directory_of(site, restored), MARKER) == set()
        site.cli("vm", "delete", name, "--wait", "--yes")


@pytest.mark.slow
def test_a_backup_takes_the_place_of_an_encrypted_disk_and_is_proved(
    site: Platform, new_vm: NewVm, new_repository: NewRepository
) -> None:
    with encrypting(site):
        vm = new_vm(image="disk", node="host-a")
        wait_until_booted(site, vm)
        vm, repository = site.client.get("vms", vm["id"]), new_repository()
        write_to_disk(site, vm, MARKER.decode())
        backup = back_up(site, vm, repository)
        sealed = restic(site, repository, "dump", backup["result"]["snapshot"], "/vm/disk.xts")
        site.client.prove_backup(backup["id"], line=READY)
        assert proof_ended(site, backup)["proof"]["phase"] == "proved"
        fill_disk(site, vm, "urandom", "seek=10 count=2")
        switch_off(site, vm)
        site.cli("backup", "restore", backup["id"], "--in-place", "--yes")
        after = back_up(site, vm, repository)
        assert after["result"]["mode"] == "full"
        again = restic(site, repository, "dump", after["result"]["snapshot"], "/vm/disk.xts")
        assert hashlib.sha256(again).digest() == hashlib.sha256(sealed).digest(), "byte for byte as it was"
        assert after["result"]["written_bytes"] < 1 << 20, "the same content is there already"
    site.client.act("vms", vm["id"], "start")
    until(lambda: site.console_log(vm).count(READY) == 2, "it has booted again", 60)
    assert read_from_disk(site, vm) == MARKER.decode()
