"""What the API answers, as the types of ``novacron.model``: for ``Client.one`` and ``Client.every``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
import msgspec.inspect as kinds

from novacron.client.errors import UnexpectedAnswer
from novacron.model.backup import Backup, BackupRepository
from novacron.model.backup_files import BackupEntry, BackupFileSystem, BackupListing
from novacron.model.backup_policy import BackupPolicy
from novacron.model.drain import Drain, DrainPolicy
from novacron.model.drill import DrillRun
from novacron.model.event import Event, Image, ImageCopy
from novacron.model.export import Export
from novacron.model.guest_command import GuestCommand
from novacron.model.image import Import, ImportPhase
from novacron.model.link_sharing import Link
from novacron.model.migration import Migration, MigrationPolicy
from novacron.model.network import FloatingAddress, Forward, Network, SecurityGroup
from novacron.model.node import Node, NodeSpec, NodeStatus
from novacron.model.plan import Plan
from novacron.model.project import Project, Usage
from novacron.model.replica import Replica
from novacron.model.snapshot import Snapshot
from novacron.model.token import Token
from novacron.model.unreconciled import UnreconciledVm
from novacron.model.user import Grant, User
from novacron.model.vm import Vm, VmSpec, VmState, VmStatus
from novacron.model.vm_templates import Flavor, Template
from novacron.model.volume import Volume

__all__ = [
    "Backup",
    "BackupEntry",
    "BackupFileSystem",
    "BackupListing",
    "BackupPolicy",
    "BackupRepository",
    "Drain",
    "DrainPolicy",
    "DrillRun",
    "Event",
    "Export",
    "Flavor",
    "FloatingAddress",
    "Forward",
    "Grant",
    "GuestCommand",
    "Image",
    "ImageCopy",
    "Import",
    "ImportPhase",
    "Link",
    "Migration",
    "MigrationPolicy",
    "Network",
    "Node",
    "NodeSpec",
    "NodeStatus",
    "Plan",
    "Project",
    "Replica",
    "SecurityGroup",
    "Snapshot",
    "Template",
    "Token",
    "UnreconciledVm",
    "Usage",
    "User",
    "Vm",
    "VmSpec",
    "VmState",
    "VmStatus",
    "Volume",
    "kind_of",
    "read",
]

T = TypeVar("T")

KINDS: dict[type, str] = {
    Vm: "vms", Node: "nodes", Migration: "migrations", Snapshot: "snapshots", Volume: "volumes", Network: "networks",
    SecurityGroup: "security-groups", FloatingAddress: "floating-addresses", Forward: "forwards", Link: "links",
    Drain: "drains", DrillRun: "drills", Image: "images", Import: "imports", Export: "exports", Backup: "backups",
    Replica: "replicas", Plan: "plans",
    BackupRepository: "backup-repositories", BackupPolicy: "backup-policies", Event: "events", Project: "projects",
    User: "users", Grant: "grants", Token: "tokens", UnreconciledVm: "unreconciled-vms",
    Flavor: "flavors", Template: "templates",
}  # fmt: skip
"""How the API calls the objects of each type."""


def kind_of(type_: type) -> str:
    """Return how the API calls such objects. Raises TypeError for what it has none of."""
    kind = KINDS.get(type_)
    if kind is None:
        names = ", ".join(sorted(type_.__name__ for type_ in KINDS))
        raise TypeError(f"the API has no objects of type {type_.__name__}; it has those of: {names}")
    return kind


STREAM_KINDS: dict[type, str] = {
    Vm: "vm", Node: "node", Migration: "migration", Event: "event", Link: "link", Import: "import",
    Snapshot: "snapshot", Volume: "volume", Export: "export", Drain: "drain", DrillRun: "drill", Network: "network",
    SecurityGroup: "security-group", FloatingAddress: "floating-address", Forward: "forward", Project: "project",
    UnreconciledVm: "unreconciled-vm", Backup: "backup", Replica: "replica", Plan: "plan",
    BackupRepository: "backup-repository",
    BackupPolicy: "backup-policy",
    Flavor: "flavor", Template: "template",
}  # fmt: skip
"""How the stream of changes calls them."""


BY_NAME = (Project,)
"""Objects that have an id, and that the API calls by their name."""


def key_of(type_: type, body: Mapping[str, object]) -> str:
    """Return how the API calls an object: by its id, its address or its name."""
    fields = ("name",) if type_ in BY_NAME else ("id", "address", "name")
    return str(next(body[field] for field in fields if field in body))


def read(type_: type[T], body: object) -> T:
    """Return an object of the API as a value of its type. Fields that this version does not know are left out.

    Raises UnexpectedAnswer.
    """
    try:
        return msgspec.convert(body, type_)
    except msgspec.ValidationError:
        try:
            return msgspec.convert(_without_unknown_fields(kinds.type_info(type_), body), type_)
        except msgspec.ValidationError as error:
            raise UnexpectedAnswer(f"{type_.__name__}: {error}: the server is newer: update NovaCron here") from error


def _without_unknown_fields(info: kinds.Type, value: object) -> object:
    """Return a value without the fields that its type does not have: types of requests forbid these."""
    match info:
        case kinds.Metadata():
            return _without_unknown_fields(info.type, value)
        case kinds.UnionType():
            shape = _shape(value)
            return next(
                (_without_unknown_fields(kind, value) for kind in map(_plain, info.types) if isinstance(kind, shape)),
                value,
            )
        case kinds.StructType() if isinstance(value, Mapping):
            return {
                field.encode_name: _without_unknown_fields(field.type, value[field.encode_name])
                for field in info.fields
                if field.encode_name in value
            }
        case kinds.DictType() if isinstance(value, Mapping):
            return {key: _without_unknown_fields(info.value_type, item) for key, item in value.items()}
        case kinds.ListType() | kinds.VarTupleType() if isinstance(value, Sequence):
            return [_without_unknown_fields(info.item_type, item) for item in value]
    return value


def _plain(info: kinds.Type) -> kinds.Type:
    return _plain(info.type) if isinstance(info, kinds.Metadata) else info


def _shape(value: object) -> tuple[type[kinds.Type], ...]:
    """Return which of a union's types could hold a value that has parts."""
    if isinstance(value, Mapping):
        return (kinds.StructType, kinds.DictType)
    return (kinds.ListType, kinds.VarTupleType) if isinstance(value, list) else ()
