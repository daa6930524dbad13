"""Projects: owners of objects, and their quotas."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.errors import QuotaExceeded
from novacron.model.metadata import Metadata

DEFAULT = "default"
"""Name and id of the project that always exists."""

Amount = Annotated[int, Meta(ge=0, le=limits.QUOTA_MAX)]


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of a project; None: no limit."""

    vms: Amount | None = None
    vcpus: Amount | None = None
    memory_mib: Amount | None = None
    disk_mib: Amount | None = None
    """Disks of VMs, each once more for each replica, and volumes."""
    snapshots: Amount | None = None
    snapshot_mib: Amount | None = None
    """What snapshots can take: the disk of the VM, and its memory if they have it."""
    images: Amount | None = None
    """The project's own, and imports that go on."""
    image_mib: Amount | None = None
    """Disks of the project's own images, of imports that go on, and of exports."""
    backups: Amount | None = None
    """Backups of VMs in the project's repositories, and those that are being made."""
    backup_mib: Amount | None = None
    """What backups wrote to repositories. The first of a VM counts with the VM's disk while it is made."""
    networks: Amount | None = None
    forwards: Amount | None = None
    """Ports that lead to VMs."""
    migrations: Amount | None = None
    """Migrations at the same time, requested by the project's users."""


class Usage(msgspec.Struct, frozen=True):
    """What a project uses now."""

    vms: int = 0
    vcpus: int = 0
    memory_mib: int = 0
    disk_mib: int = 0
    snapshots: int = 0
    snapshot_mib: int = 0
    images: int = 0
    image_mib: int = 0
    backups: int = 0
    backup_mib: int = 0
    networks: int = 0
    forwards: int = 0
    migrations: int = 0


class Project(Metadata, frozen=True):
    """A project as stored and as the API shows it."""

    id: str
    name: str
    quota: Quota
    host_network: bool
    """VMs without interfaces of their own may use the hosts' network."""
    encryption: bool
    """What is created from now on is encrypted at rest."""
    encryption_key: str | None
    """The key for that; it stays while encryption is switched off."""
    revision: int
    created_at: datetime
    default_network: str | None = None
    """The network of new VMs that name none; None: they are in no network."""

    @property
    def key_of_new(self) -> str:
        """The key of what is created now; empty: it is not encrypted."""
        return (self.encryption_key or "") if self.encryption else ""


def check(project: str, quota: Quota, before: Usage, after: Usage) -> None:
    """Raise QuotaExceeded if usage has grown beyond a limit."""
    for field in Quota.__struct_fields__:
        most, has, had = getattr(quota, field), getattr(after, field), getattr(before, field)
        if most is not None and has > most and has > had:
            raise QuotaExceeded(
                f"project {project} may have {most} {_named(field)}, and would have {has}",
                field=field, hint="delete something, or ask an administrator for more",
            )  # fmt: skip


def _named(field: str) -> str:
    return {
        "vms": "VMs",
        "vcpus": "vCPUs",
        "memory_mib": "MiB of memory",
        "disk_mib": "MiB of disks",
        "snapshot_mib": "MiB of snapshots",
        "image_mib": "MiB of images, imports and exports",
        "backup_mib": "MiB of backups",
        "forwards": "forwarded ports",
    }.get(field, field)
