"""Display names, descriptions and tags, of objects of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import asyncpg

from novacron.model.errors import NotFound, PreconditionFailed
from novacron.model.metadata import FIELDS, Metadata, canonical_tags
from novacron.store import events
from novacron.store.database import Connection
from novacron.store.feed import TABLES
from novacron.store.rows import object_of


class Described(Protocol):
    """An object that has metadata."""

    @property
    def revision(self) -> int: ...

    @property
    def description(self) -> str: ...


class ImageMetadata(Metadata, frozen=True):
    """What is written about an image."""

    name: str
    revision: int


D = TypeVar("D", bound=Described)


class ObjectRef(NamedTuple):
    """Whose metadata change: its kind, its key in that kind's table, and how people call it."""

    kind: str
    key: str
    name: str
    project: str | None = None


class MetadataChange(NamedTuple):
    """What somebody wants to change of an object's metadata; ``if_match``: only if it is at that revision."""

    changes: Mapping[str, Any]
    actor: str
    if_match: int | None = None


def split(changes: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """Return what of the changes of an object is its own, and what is metadata."""
    own = {field: value for field, value in changes.items() if field not in FIELDS}
    return own, {field: value for field, value in changes.items() if field in FIELDS}


async def check_revision(connection: Connection, target: ObjectRef, if_match: int | None) -> None:
    """Raise PreconditionFailed unless an object is at a revision, and lock it there. Raises NotFound."""
    if if_match is not None:
        if target.kind == "volume":  # its VM is locked first, as every writer does
            vm = "SELECT FROM vms WHERE id = (SELECT vm FROM volumes WHERE id = $1) FOR UPDATE"
            await connection.execute(vm, target.key)
        await _locked(connection, target, if_match)


async def _locked(connection: Connection, target: ObjectRef, if_match: int | None) -> asyncpg.Record:
    table, column = TABLES[target.kind]
    row = await connection.fetchrow(f"SELECT * FROM {table} WHERE {column} = $1 FOR UPDATE", target.key)
    if row is None:
        raise NotFound(f"there is no {target.kind.replace('-', ' ')} {target.name!r}")
    if if_match is not None and if_match != row["revision"]:
        raise PreconditionFailed(
            f"{target.kind} {target.name} is at revision {row['revision']}, not {if_match}", field="If-Match",
            hint="read it again, look at what changed, and repeat",
        )  # fmt: skip
    return row


async def change(connection: Connection, target: ObjectRef, type_: type[D], wanted: MetadataChange) -> D:
    """Change metadata of an object, and return it. Raises NotFound, PreconditionFailed."""
    changes, actor, if_match = wanted
    table, column = TABLES[target.kind]
    was = await _locked(connection, target, if_match)
    values = {field: changes.get(field, was[field]) for field in FIELDS}
    values["tags"] = list(canonical_tags(values["tags"]))
    settings = ", ".join(f"{field} = ${number}" for number, field in enumerate(FIELDS, 2))
    row = await connection.fetchrow(
        f"UPDATE {table} SET {settings} WHERE {column} = $1 RETURNING *", target.key, *values.values()
    )
    await events.record(
        connection,
        events.NewEvent(
            target.kind, target.key, target.name, "Described", _in_words(changes, values), actor, target.project
        ),
    )
    return object_of(type_, row)


def _in_words(changes: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    return ", ".join(_said_of(field, values[field]) for field in FIELDS if field in changes)


def _said_of(field: str, value: Any) -> str:  # noqa: ANN401 - text, or a list of texts
    if field == "description":
        return "description changed" if value else "description removed"
    what = field.replace("_", " ")
    return f"{what} {', '.join(value) if isinstance(value, list) else value}" if value else f"{what} removed"


async def describe_image(connection: Connection, name: str, changes: Mapping[str, object], actor: str) -> None:
    """Change metadata of the images that a name means: nodes report those, and know nothing of it."""
    await connection.execute("INSERT INTO image_metadata (name) VALUES ($1) ON CONFLICT DO NOTHING", name)
    await change(connection, ObjectRef("image-metadata", name, name), ImageMetadata, MetadataChange(changes, actor))


async def forget_image(connection: Connection, name: str) -> None:
    """Forget what was written about an image that is nowhere any more."""
    await connection.execute("DELETE FROM image_metadata WHERE name = $1", name)
