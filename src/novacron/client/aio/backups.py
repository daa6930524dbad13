"""Calls about backups of VMs and their repositories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from novacron.client import protocol
from novacron.client.aio.connection import AsyncConnection
from novacron.client.protocol import Object, quoted, without_none


class AsyncBackupCalls(AsyncConnection):
    """Backups: make, verify and restore them."""

    async def create_backup_repository(self, name: str, **fields: object) -> Object:
        """Create a repository for backups of the project's VMs; fields as in ``POST /api/v1/backup-repositories``."""
        return await self._object("POST", "/api/v1/backup-repositories", {"name": name, **fields})

    async def configure_backup_repository(self, ref: str, **changes: object) -> Object:
        """Change a repository; fields as in ``PATCH /api/v1/backup-repositories/{ref}``."""
        return await self._object("PATCH", f"/api/v1/backup-repositories/{quoted(ref)}", changes)

    async def prune_backup_repository(self, ref: str) -> Object:
        """Have the room of deleted backups freed now, on each node that has backups in a repository."""
        return await self.act("backup-repositories", ref, "prune")

    async def backup_repository_password(self, ref: str) -> str:
        """Return the password that opens a repository, also with restic. It is secret."""
        answered = await self._object("GET", f"/api/v1/backup-repositories/{quoted(ref)}/password")
        return str(answered["password"])

    async def create_backup_policy(self, name: str, repository: str, **fields: object) -> Object:
        """Create a policy; fields as in ``POST /api/v1/backup-policies``, those that are None left out."""
        body = {"name": name, "repository": repository, **without_none(fields)}
        return await self._object("POST", "/api/v1/backup-policies", body)

    async def configure_backup_policy(self, ref: str, **changes: object) -> Object:
        """Change a policy; fields as in ``PATCH /api/v1/backup-policies/{ref}``."""
        return await self._object("PATCH", f"/api/v1/backup-policies/{quoted(ref)}", changes)

    async def run_backup_policy(self, ref: str) -> Object:
        """Have all VMs of a policy backed up now."""
        return await self.act("backup-policies", ref, "run")

    async def replace_with_backup(self, id: str) -> Object:
        """Begin to put a backup in the place of the disk of its VM, which is off; return the VM."""
        return await self.act("backups", id, "replace")

    async def back_up_vm(self, ref: str, repository: str) -> Object:
        """Begin to back a VM up as it is now."""
        return await self.act("vms", ref, "backup", {"repository": repository})

    async def verify_backup(self, id: str) -> Object:
        """Begin to read all of a backup back."""
        return await self.act("backups", id, "verify")

    async def prove_backup(self, id: str, **probe: object) -> Object:
        """Begin to prove a backup: a VM made of it has to start. Fields as in
        ``POST /api/v1/backups/{id}/actions/prove``, those that are None left out."""
        return await self.act("backups", id, "prove", without_none(probe))

    async def backup_picture(self, id: str) -> bytes:
        """Return what the VM showed that was made of a backup to prove it, as PNG."""
        return await self.fetch(f"/api/v1/backups/{quoted(id)}/picture")

    async def backup_file_systems(self, id: str) -> list[Object]:
        """Return the file systems on a backup's disk."""
        return list(await self.request("GET", f"/api/v1/backups/{quoted(id)}/file-systems"))

    async def backup_files(self, id: str, file_system: str, path: str = "/") -> Object:
        """Return a directory in a backup: its ``entries``, and whether it has more (``truncated``)."""
        query = protocol.query({"file_system": file_system, "path": path})
        return await self._object("GET", f"/api/v1/backups/{quoted(id)}/files?{query}")

    async def pull_backup_file(
        self, id: str, file_system: str, path: str, file: Path,
        on_progress: Callable[[int], None] = lambda bytes_read: None,
    ) -> int:  # fmt: skip
        """Read a file in a backup into ``file``, which appears once it is complete, and return its length."""
        query = {"file_system": file_system, "path": path}
        return await self._pull(f"/api/v1/backups/{quoted(id)}/file", query, file, on_progress)

    async def restore_backup(self, id: str, name: str, **fields: object) -> Object:
        """Begin to make a new VM of a backup; fields as in ``POST /api/v1/backups/{id}/actions/restore``, those that
        are None left out."""
        return await self.act("backups", id, "restore", {"name": name, **without_none(fields)})
