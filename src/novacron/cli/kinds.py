"""Kinds of objects, for the commands that take any of them: ``get``, ``edit``, ``explain`` and ``apply``."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import typer

from novacron.cli.output import Columns, Object


class ObjectKind(NamedTuple):
    """A kind of object: what people call it, what the API does, and which schemas say what it takes."""

    name: str
    api: str
    columns: str
    """Module of ``novacron.cli`` and the names of the columns of lists and, after a comma, of one object."""
    object: str
    """Schema of what the API shows."""
    create: str = ""
    """Schema of what creates one; empty: nothing does."""
    change: str = ""
    """Schema of what changes one; empty: nothing does."""
    other_names: tuple[str, ...] = ()

    def list_columns(self) -> Columns:
        return self._columns(0)

    def detail_columns(self) -> Columns:
        return self._columns(-1)

    def _columns(self, which: int) -> Columns:
        module, _, named = self.columns.partition(":")
        columns: Columns = getattr(importlib.import_module(f"novacron.cli.{module}"), named.split(",")[which])
        return columns


KINDS = (
    ObjectKind("project", "projects", "access:PROJECTS", "Project", "CreateProject", "ConfigureProject"),
    ObjectKind("user", "users", "access:USERS", "User", "CreateUser", "ConfigureUser"),
    ObjectKind("grant", "grants", "access:GRANTS", "Grant", "CreateGrant"),
    ObjectKind("node", "nodes", "nodes:COLUMNS,DETAILS", "Node", "", "ConfigureNode", ("host",)),
    ObjectKind("site", "sites", "sites:COLUMNS", "Site", "", "ConfigureSite"),
    ObjectKind("link", "links", "links:COLUMNS", "Link", "LinkSpec", "LinkSpec"),
    ObjectKind("image", "images", "images:COLUMNS", "ImageInfo", "ImportImage", "MetadataChanges"),
    ObjectKind("security-group", "security-groups", "networks:GROUPS", "SecurityGroup", "CreateSecurityGroup",
         "ConfigureSecurityGroup", ("sg",)),
    ObjectKind("network", "networks", "networks:NETWORKS,DETAILS", "Network", "CreateNetwork", "ConfigureNetwork",
         ("net",)),
    ObjectKind("flavor", "flavors", "vm_templates:FLAVORS", "Flavor", "CreateFlavor", "ConfigureFlavor"),
    ObjectKind("template", "templates", "vm_templates:TEMPLATES", "Template", "CreateTemplate", "ConfigureTemplate"),
    ObjectKind("volume", "volumes", "volumes:COLUMNS,DETAILS", "Volume", "CreateVolume", "ConfigureVolume", ("vol",)),
    ObjectKind("vm", "vms", "vms:COLUMNS,DETAILS", "Vm", "CreateVm", "ConfigureVm"),
    ObjectKind("floating-address", "floating-addresses", "networks:FLOATING", "FloatingAddress", "AddFloatingAddress",
         "MetadataChanges"),
    ObjectKind("forward", "forwards", "networks:FORWARDS", "Forward", "CreateForward", "MetadataChanges"),
    ObjectKind("snapshot", "snapshots", "snapshots:COLUMNS", "Snapshot", "CreateSnapshot", "MetadataChanges"),
    ObjectKind("migration", "migrations", "migrations:COLUMNS,DETAILS", "Migration"),
    ObjectKind("drain", "drains", "nodes:DRAINS", "Drain"),
    ObjectKind("import", "imports", "images:IMPORTS", "Import"),
    ObjectKind("export", "exports", "vm_copies:EXPORTS", "Export"),
    ObjectKind("backup-repository", "backup-repositories", "backups:REPOSITORIES,REPOSITORY_DETAILS",
         "BackupRepository", "CreateBackupRepository", "BackupRepositoryChanges"),
    ObjectKind("backup-policy", "backup-policies", "backup_policies:COLUMNS,DETAILS", "BackupPolicy",
         "CreateBackupPolicy", "BackupPolicyChanges"),
    ObjectKind("backup", "backups", "backups:COLUMNS,DETAILS", "Backup"),
    ObjectKind("plan", "plans", "plans:COLUMNS,DETAILS", "Plan", "CreatePlan"),
    ObjectKind("replica", "replicas", "replicas:COLUMNS,DETAILS", "Replica"),
    ObjectKind("event", "events", "events:COLUMNS", "Event", other_names=("ev",)),
    ObjectKind("pool", "pools", "volumes:POOLS", "PoolOnNode"),
    ObjectKind("token", "tokens", "tokens:COLUMNS", "ShownToken", "CreateToken"),
    ObjectKind("invitation", "invitations", "invitations:INVITATIONS", "Invitation"),
)  # fmt: skip
"""In the order in which they can be created: each needs only those before it."""
NEEDS_VM = ("snapshot",)
"""Kinds that are listed for one VM only."""


def kind_of(text: str) -> ObjectKind:
    """Return the kind of this name, in singular or plural. Raises typer.BadParameter."""
    typed = text.strip().lower().replace("_", "-")
    for kind in KINDS:
        plain = (kind.name, kind.api, *kind.other_names, *(f"{name}s" for name in kind.other_names))
        if typed in plain or typed.replace("-", "") in {name.replace("-", "") for name in plain}:
            return kind
    raise typer.BadParameter(f"there is no kind {text!r}; there are {', '.join(kind.name for kind in KINDS)}")


def completed(incomplete: str) -> list[str]:
    return [kind.name for kind in KINDS if kind.name.startswith(incomplete)]


def name_of(kind: ObjectKind, item: Object) -> str:
    """Return what people call an object."""
    if kind.name == "grant":
        return f"{item.get('user_name')} in {item.get('project') or 'all projects'}"
    if kind.name == "link":
        return " to ".join(item.get("sites") or ())
    return str(item.get("name") or item.get("address") or item.get("id") or "")
