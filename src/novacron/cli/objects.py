"""``novacron get``, ``edit`` and ``explain``: any kind of object by its name."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from novacron.cli import apply, kinds, manifests, options, output, schemas
from novacron.cli.kinds import ObjectKind
from novacron.cli.lists import Listing
from novacron.cli.manifests import Document
from novacron.cli.names import names_of
from novacron.cli.output import EXIT_NOT_FOUND, EXIT_REFUSED, Object
from novacron.client import ApiError, Client
from novacron.terminal import say

KindName = Annotated[
    str,
    typer.Argument(metavar="KIND", help="vm, volume, network and so on", autocompletion=kinds.completed,
                   show_default=False),
]  # fmt: skip
EDITOR = "vi"
EDITED_HEAD = """\
# Change what is to change, and save. Only these fields of {title} can change.
# What they mean: novacron explain {kind}
"""


def _completed(context: typer.Context, incomplete: str) -> list[str]:
    """Return names of the kind that was typed before."""
    try:
        return names_of(kinds.kind_of(str(context.params.get("kind", ""))).api)(incomplete)
    except typer.BadParameter:
        return []


@options.expand
def get(
    kind: KindName,
    name: Annotated[
        list[str] | None, typer.Argument(help="names or ids; all if not given", autocompletion=_completed)
    ] = None,
    listing: Listing = Listing(),
) -> None:
    """Show objects of any kind: all of them, or the named ones."""
    listed = kinds.kind_of(kind)
    if listed.name in kinds.NEEDS_VM and not name:
        raise typer.BadParameter("snapshots are those of a VM: novacron snapshot list VM")
    if not name:
        listing.show(listed.api, listed.list_columns())
        return
    with output.errors():
        client = Client()
        items = [get_object(client, listed, ref) for ref in name]
        if len(items) == 1 and not listing.watch:
            output.fields(items[0], listed.detail_columns(), listing.output)
        else:
            listing.show_read(lambda limit: [get_object(client, listed, ref) for ref in name], listed.list_columns())


def get_object(client: Client, kind: ObjectKind, ref: str) -> Object:
    """Return an object by name or id, also of kinds that the API only lists. Raises ApiError, Unreachable, Exit."""
    if kind.api not in LISTED:
        return client.get(kind.api, ref)
    for item in client.list(kind.api):
        if ref in (item.get("id"), item.get("name"), item.get("address")):
            return item
    raise output.fail(f"there is no {kind.name} {ref}", EXIT_NOT_FOUND, f"see: novacron get {kind.name}")


LISTED = frozenset({"sites", "links", "grants", "pools", "tokens", "invitations", "forwards", "events"})
"""Kinds of which the API shows no single object."""


def explain(
    field: Annotated[
        str, typer.Argument(metavar="KIND[.FIELD]", help="such as vm or vm.placement.labels", show_default=False)
    ],
) -> None:
    """Explain a kind of object, or one of its fields: what it takes, its default, and whether it can change."""
    named, *path = field.split(".")
    kind = kinds.kind_of(named)
    with output.errors():
        known = schemas.read(Client())
        fields = writable(kind, known)
        shown = known.fields(kind.object)
        if not path:
            say(f"{kind.name}: {_line(known.description(kind.create or kind.object))}")
            say()
            _print_fields(known, fields or shown, known.required(kind.create), changeable(kind, known))
            rest = {name: schema for name, schema in shown.items() if name not in fields}
            if fields and rest:
                say()
                say("only shown:")
                _print_fields(known, rest, frozenset(), frozenset())
            return
        schema = _below({**shown, **fields}, path, known, field)
        say(f"{field}: {known.type_of(schema)}")
        say(_line(str(schema.get("description", ""))) or "there is no description")
        if len(path) == 1 and path[0] in fields:
            say("it can change" if path[0] in changeable(kind, known) else "it can't change once the object is there")
        below = known.below(schema)
        if below:
            say()
            _print_fields(known, below, frozenset(), frozenset())


def _line(text: str) -> str:
    """Return a description on one line."""
    return " ".join(text.replace("``", "`").split())


def changeable(kind: ObjectKind, known: schemas.Schemas) -> frozenset[str]:
    """Return which fields of an object can change."""
    return frozenset({*known.fields(kind.change), *apply.BY_ACTION.get(kind.name, ())})


def writable(kind: ObjectKind, known: schemas.Schemas) -> dict[str, Object]:
    """Return what can be given for an object of a kind."""
    return {**known.fields(kind.change), **known.fields(kind.create)}


def _below(fields: dict[str, Object], path: list[str], known: schemas.Schemas, whole: str) -> Object:
    """Return the schema of a field of a field. Raises typer.BadParameter."""
    schema: Object = {}
    for name in path:
        if name not in fields:
            hint = schemas.near(name, sorted(fields)) if fields else "it has no fields"
            raise typer.BadParameter(f"{whole}: there is no field {name!r}; {hint}")
        schema = fields[name]
        fields = known.below(schema)
    return schema


def _print_fields(
    known: schemas.Schemas, fields: dict[str, Object], required: frozenset[str], can_change: frozenset[str]
) -> None:
    rows = [
        {
            "field": name + (" (required)" if name in required else ""), "type": known.type_of(schema),
            "change": "yes" if name in can_change else "",
            "text": _line(str(schema.get("description", ""))),
        }
        for name, schema in fields.items()
    ]  # fmt: skip
    columns: output.Columns = {"FIELD": lambda row: row["field"], "TAKES": lambda row: row["type"]}
    if can_change:
        columns["CAN CHANGE"] = lambda row: row["change"]
    output.table(rows, {**columns, "MEANING": lambda row: row["text"]})


def edit(
    kind: KindName,
    name: Annotated[str, typer.Argument(help="name or id", autocompletion=_completed, show_default=False)],
) -> None:
    """Edit an object's changeable fields as YAML in your editor ($VISUAL or $EDITOR). Nothing is done unless
    something differs."""
    edited = kinds.kind_of(kind)
    with output.errors():
        clients = apply.Clients()
        known = schemas.read(clients.of(""))
        if not known.fields(edited.change):
            raise typer.BadParameter(f"a {edited.name} can't be changed: delete it, and create a new one")
        item = get_object(clients.of(""), edited, name)
        shown = manifests.present(edited, item)
        before = {field: shown[field] for field in known.fields(edited.change) if field in shown}
        path = _written(edited, kinds.name_of(edited, item), before)
        _edit(path)
        changes = _changes(path, before)
        if not changes:
            path.unlink()
            say(f"{edited.name} {name}: nothing changed")
            return
        shown_name = kinds.name_of(edited, item)
        document = Document("", edited, "", {**before, **{field: desired for field, (_, desired) in changes.items()}})
        step = apply.PlannedStep("change", edited, shown_name, "", document, item, changes)
        apply.show([step])
        try:
            apply.perform(clients, step, known)
        except ApiError:
            say(f"your changes are in {path}", err=True)
            raise
        path.unlink()


def _written(kind: ObjectKind, name: str, fields: Object) -> Path:
    import yaml  # loaded only by who wants it

    head = EDITED_HEAD.format(title=f"{kind.name} {name}", kind=kind.name)
    descriptor, path = tempfile.mkstemp(prefix="novacron-", suffix=".yaml")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(head + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))
    return Path(path)


def _edit(path: Path) -> None:
    """Let the person edit a file. Raises typer.Exit."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or EDITOR
    try:
        done = subprocess.run([*shlex.split(command), str(path)], check=False)
    except (OSError, ValueError) as error:
        raise output.fail(f"can't start the editor {command!r}: {error}", EXIT_REFUSED, "set EDITOR") from None
    if done.returncode != 0:
        raise output.fail(f"the editor {command!r} ended with {done.returncode}: nothing was changed", EXIT_REFUSED)


def _changes(path: Path, before: Object) -> apply.Changes:
    """Return what differs in an edited file. Raises typer.BadParameter."""
    after = manifests.mapping(path)
    added = sorted(after.keys() - before.keys())
    if added:
        raise typer.BadParameter(f"{added[0]} can't be set here; {schemas.near(added[0], sorted(before))}")
    return {
        field: (before[field], value) for field, value in after.items() if not manifests.same(value, before[field])
        or (isinstance(value, dict) and value != before[field])
    }  # fmt: skip
