"""Flavors and templates, as they are kept."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import asyncpg
import msgspec

from novacron.model.errors import Conflict, NotFound
from novacron.model.vm_templates import Flavor, FlavorSpec, Template, TemplateSpec
from novacron.store import events
from novacron.store.database import Connection
from novacron.store.feed import TABLES
from novacron.store.rows import object_of

P = TypeVar("P", Flavor, Template)


class TemplateKind(NamedTuple, Generic[P]):
    """One of the two kinds, by its name in the feed, with the type of its objects."""

    name: str
    type: type[P]


FLAVOR, TEMPLATE = TemplateKind("flavor", Flavor), TemplateKind("template", Template)


class NewTemplate(NamedTuple):
    """A flavor or template that is to be created. ``project`` None: for all projects."""

    name: str
    project: str | None
    spec: FlavorSpec | TemplateSpec


async def get(connection: Connection, kind: TemplateKind[P], name: str, *, field: str | None = None) -> P:
    """Return a flavor or template, locked. Raises NotFound."""
    row = await connection.fetchrow(f"SELECT * FROM {TABLES[kind.name][0]} WHERE name = $1 FOR UPDATE", name)
    if row is None:
        raise missing(kind.name, name, field)
    return object_of(kind.type, row)


def missing(kind: str, name: str, field: str | None = None) -> NotFound:
    return NotFound(f"there is no {kind} {name!r}", field=field, hint=f"see: novacron {kind} list")


async def create(connection: Connection, kind: TemplateKind[P], new: NewTemplate, actor: str) -> P:
    """Store a new flavor or template. Raises Conflict."""
    try:
        row = await connection.fetchrow(
            f"INSERT INTO {TABLES[kind.name][0]} (name, project, spec) VALUES ($1, $2, $3) RETURNING *",
            new.name, new.project, msgspec.to_builtins(new.spec),
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a {kind.name} named {new.name!r} exists", field="name", hint="choose another name") from None
    return await _done(connection, kind, row, "Created", "for all projects" if new.project is None else "", actor)


async def configure(
    connection: Connection, kind: TemplateKind[P], name: str, spec: FlavorSpec | TemplateSpec, actor: str
) -> P:
    """Replace what a flavor or template sets, for VMs that are created from now on. Raises NotFound."""
    await get(connection, kind, name)
    row = await connection.fetchrow(
        f"UPDATE {TABLES[kind.name][0]} SET spec = $2 WHERE name = $1 RETURNING *", name, msgspec.to_builtins(spec)
    )
    return await _done(connection, kind, row, "Configured", "for VMs created from now on", actor)


async def delete(connection: Connection, kind: TemplateKind[P], name: str, actor: str) -> P:
    """Delete a flavor or template; VMs that were created with it stay as they are. Raises NotFound."""
    row = await connection.fetchrow(f"DELETE FROM {TABLES[kind.name][0]} WHERE name = $1 RETURNING *", name)
    if row is None:
        raise missing(kind.name, name)
    return await _done(connection, kind, row, "Deleted", "VMs created with it stay as they are", actor)


async def _done(
    connection: Connection, kind: TemplateKind[P], row: asyncpg.Record | None, reason: str, said: str, actor: str
) -> P:
    template: Any = object_of(kind.type, row)
    await events.record(
        connection, events.NewEvent(kind.name, template.name, template.name, reason, said, actor, template.project)
    )
    chosen: P = template
    return chosen
