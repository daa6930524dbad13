"""What the API answers, as the types of ``novacron.model``: for ``Client.one`` and ``Client.every``."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from novacron.model.event import Event, Image
from novacron.model.export import Export
from novacron.model.image import Import
from novacron.model.link_sharing import Link
from novacron.model.migration import Migration
from novacron.model.network import FloatingAddress, Forward, Network, SecurityGroup
from novacron.model.node import Node
from novacron.model.project import Project
from novacron.model.snapshot import Snapshot
from novacron.model.token import Token
from novacron.model.unreconciled import UnreconciledVm
from novacron.model.user import Grant, User
from novacron.model.vm import Vm
from novacron.model.volume import Volume

T = TypeVar("T")

KINDS: dict[type, str] = {
    Vm: "vms", Node: "nodes", Migration: "migrations", Snapshot: "snapshots", Volume: "volumes", Network: "networks",
    SecurityGroup: "security-groups", FloatingAddress: "floating-addresses", Forward: "forwards", Link: "links",
    Image: "images", Import: "imports", Export: "exports", Event: "events", Project: "projects", User: "users",
    Grant: "grants", Token: "tokens", UnreconciledVm: "unreconciled-vms",
}  # fmt: skip
"""How the API calls the objects of each type."""


def kind_of(type_: type) -> str:
    """Return how the API calls such objects. Raises TypeError for what it has none of."""
    kind = KINDS.get(type_)
    if kind is None:
        names = ", ".join(sorted(type_.__name__ for type_ in KINDS))
        raise TypeError(f"the API has no objects of type {type_.__name__}; it has those of: {names}")
    return kind


def read(type_: type[T], body: object) -> T:
    """Return an object of the API as a value of its type. Fields that this version does not know are left out."""
    return msgspec.convert(body, type_)
