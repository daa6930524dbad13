"""With which keys of projects backups are encrypted, and what may become of them."""

from __future__ import annotations

from novacron.model.backup import Backup, BackupRepository
from novacron.model.backup_source import BackupSource
from novacron.model.encryption import KeyId
from novacron.model.errors import IllegalState
from novacron.model.vm import Vm
from novacron.store import imports, project_keys, projects
from novacron.store.database import Connection


async def of_vm(connection: Connection, vm: Vm) -> KeyId:
    """Return the id of the key with which a backup of a VM is encrypted: that of its disk or of its image; empty:
    neither is encrypted. Raises IllegalState if it was erased."""
    images = {} if vm.spec.encryption_key else await imports.keys(connection, {vm.spec.image})
    key = vm.spec.encryption_key or images.get(vm.spec.image, "")
    if key and not await project_keys.wrapped(connection, [key]):
        raise IllegalState(
            f"the disk of VM {vm.name} is encrypted with {key}, which was erased: its data can't be read any more",
            hint=f"delete the VM: novacron vm delete {vm.name}",
        )
    return key


async def check_readable(connection: Connection, backup: Backup) -> None:
    """Raise IllegalState if the key with which a backup is encrypted was erased."""
    key = backup.encryption_key
    if key and not await project_keys.wrapped(connection, [key]):
        raise IllegalState(
            f"backup {backup.id} is encrypted with {key}, which was erased: its data can't be read any more",
            hint=f"delete it: novacron backup delete {backup.id}",
        )


async def of_restored(connection: Connection, backup: Backup) -> KeyId:
    """Return the id of the key of a VM that is made of a backup: that of the backup, or else that of its project's new
    VMs. Raises NotFound, IllegalState."""
    key = backup.encryption_key or (await projects.get(connection, backup.project)).key_of_new
    if key and backup.spec.tpm and not backup.spec.encryption_key:
        raise IllegalState(
            f"the TPM state in backup {backup.id} is not encrypted, and new VMs of project {backup.project}"
            " need an encrypted one",
            hint=f"turn encryption off for the restore: novacron project set {backup.project} --encryption off",
        )
    return key


def check_same(backup: Backup, vm: Vm) -> None:
    """Raise IllegalState if a backup is encrypted in another way than the disk that it is to replace."""
    if backup.encryption_key != vm.spec.encryption_key:
        raise IllegalState(
            f"backup {backup.id} and the disk of VM {vm.name} use different keys ({backup.encryption_key or 'none'},"
            f" {vm.spec.encryption_key or 'none'})",
            hint=f"restore it to a new VM: novacron backup restore {backup.id} NAME",
        )


def source(backup: Backup, repository: BackupRepository, key: KeyId) -> BackupSource:
    """Return from where a VM whose disk is encrypted with ``key``, if that is not empty, gets its disk."""
    plain, sealed = ("", repository.key) if key else (repository.key, "")
    return BackupSource(repository.id, plain, backup.result.snapshot, backup.encryption_key, sealed)
