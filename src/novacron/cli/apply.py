"""``novacron apply``: make objects as files say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from novacron.cli import kinds, lists, manifests, options, output, progress, schemas
from novacron.cli.kinds import KINDS, ObjectKind
from novacron.cli.manifests import Document
from novacron.cli.output import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE, Object
from novacron.client import ApiError, Client
from novacron.client.config import load_config
from novacron.client.protocol import quoted
from novacron.terminal import say

WAIT_S = 7200.0
DELETED_S = 120.0
ORDER = {kind.name: number for number, kind in enumerate(KINDS)}
PRUNABLE = tuple(kind.name for kind in KINDS if kind.name in manifests.IN_PROJECT and kind.name != "snapshot")
ATTACHED = ("volume", "floating-address")
BY_ACTION = {"vm": ("power",), "grant": ("role",)}
"""Fields that something other than the usual request changes."""
VALUE_LENGTH_MAX = 200

Changes = dict[str, tuple[object, object]]


class PlannedStep(NamedTuple):
    """What has to be done with one object: ``changes`` are what fields are, and what they should be."""

    verb: str
    kind: ObjectKind
    name: str
    project: str
    document: Document | None = None
    item: Object | None = None
    changes: Changes | None = None

    @property
    def title(self) -> str:
        return f"{self.kind.name} {self.name}" + (f" in project {self.project}" if self.project else "")


class Clients:
    """A client for each project that documents name."""

    def __init__(self) -> None:
        self._config = load_config()
        self._of: dict[str, Client] = {}
        self._listed: dict[tuple[str, str], list[Object]] = {}

    def of(self, project: str) -> Client:
        if project not in self._of:
            self._of[project] = Client(self._config._replace(project=project or self._config.project))
        return self._of[project]

    def own_project(self) -> str:
        """Return the project that the command works in."""
        return self._config.project or str(self.of("").me()["project"])

    def list(self, kind: ObjectKind, project: str) -> list[Object]:
        """Return all objects of a kind in a project, read once."""
        key = kind.api, project
        if key not in self._listed:
            self._listed[key] = list(self.of(project).list(kind.api))
        return self._listed[key]

    def find(self, document: Document) -> Object | None:
        """Return the object that a document is about; None: there is none."""
        client, kind = self.of(document.project), document.kind
        if kind.name == "snapshot":
            try:
                vm = client.get("vms", str(document.fields["vm"]))
            except ApiError as error:
                if error.status != 404:
                    raise
                return None
            items: Iterable[Object] = client.list(f"vms/{vm['id']}/snapshots")
        else:
            items = self.list(kind, document.project)
        owners = self._owners(document)
        return next(
            (item for item in items if manifests.is_of(document, item)
             and (owners is None or item.get("project", owners[0]) in owners)), None,
        )  # fmt: skip

    def _owners(self, document: Document) -> tuple[str | None, ...] | None:
        """Return of whom the object of a document may be; None: of anybody."""
        if document.kind.name not in manifests.IN_PROJECT:
            return None
        own = document.project or self.own_project()
        return (own, None) if document.fields.get("shared") else (own,)


def apply(
    file: Annotated[
        list[Path],
        typer.Option("--file", "-f", help="YAML file, - for standard input; can be repeated", show_default=False),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be done")] = False,
    prune: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help=f"delete objects of this kind in the project that are in no file: one of"
                     f" {', '.join(PRUNABLE)}; can be repeated", show_default=False),
    ] = None,
    prune_filter: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="limit --prune to objects with this value, as --filter does for lists",
                     show_default=False),
    ] = None,
    yes: options.Yes = False,
    output_: output.Output = output.OutputFormat.TABLE,
) -> None:  # fmt: skip
    """Apply YAML files: create what is missing, change what differs, leave the rest.

    Each document has a kind and the fields that the API takes: see novacron explain KIND. Shows first what differs.
    """
    with output.errors():
        documents = manifests.read(file)
        if not documents:
            raise typer.BadParameter("it contains no document", param_hint="'--file'")
        clients = Clients()
        known = schemas.read(clients.of(""))
        for document in documents:
            manifests.check_fields(document, known)
        steps = sorted((_step(clients, document, known) for document in documents), key=lambda s: ORDER[s.kind.name])
        conditions = [lists.condition(text) for text in prune_filter or ()]
        steps += _pruned(clients, documents, prune or [], conditions)
        for_people = output_ in (output.OutputFormat.TABLE, output.OutputFormat.WIDE)
        if for_people:
            show(steps)
        refused = _refused(steps, known)
        if refused:
            raise output.fail("\n".join(refused), EXIT_REFUSED, "nothing was changed: delete it first, or fix the file")
        if not for_people:
            output.show(_described(steps), output_)
        if dry_run:
            return
        doomed = [step.title for step in steps if step.verb == "delete"]
        options.ask(yes, bool(doomed), f"{len(doomed)} to delete: {', '.join(doomed[:10])}", "Delete them?")
        _perform(clients, [step for step in steps if step.verb != "keep"], known, quiet=not for_people)


def _described(steps: list[PlannedStep]) -> list[Object]:
    """Return what is to be done, for programs."""
    return [
        {
            "action": step.verb,
            "kind": step.kind.name,
            "name": step.name,
            "project": step.project,
            "changes": {field: {"has": has, "wanted": to} for field, (has, to) in (step.changes or {}).items()},
        }
        for step in steps
    ]


def _perform(clients: Clients, steps: list[PlannedStep], known: schemas.Schemas, *, quiet: bool = False) -> None:
    """Do all steps, and say how many are left if that ends early. Raises ApiError, Unreachable, typer.Exit."""
    done = 0
    try:
        for step in steps:
            perform(clients, step, known, quiet=quiet)
            done += 1
    finally:
        if done < len(steps):
            left = f"{len(steps) - done} of {len(steps)}"
            say(f"{left} were not done: fix the cause, then apply the files again", err=True)


def _step(clients: Clients, document: Document, known: schemas.Schemas) -> PlannedStep:
    item, kind = clients.find(document), document.kind
    if item is None:
        return PlannedStep("create", kind, document.name, document.project, document)
    changes = manifests.differences(document, item, known)
    return PlannedStep("change" if changes else "keep", kind, document.name, document.project, document, item, changes)


def _pruned(
    clients: Clients, documents: list[Document], named: list[str], conditions: list[lists.Condition]
) -> list[PlannedStep]:
    """Return what is to be deleted: what needs others first. Raises typer.BadParameter."""
    if conditions and not named:
        raise typer.BadParameter("requires --prune KIND", param_hint="'--prune-filter'")
    chosen = [kinds.kind_of(name) for name in named]
    for kind in chosen:
        if kind.name not in PRUNABLE:
            raise typer.BadParameter(f"{kind.name} is not one of {', '.join(PRUNABLE)}", param_hint="'--prune'")
    projects = sorted({document.project or clients.own_project() for document in documents})
    return [
        PlannedStep("delete", kind, kinds.name_of(kind, item), project, None, item)
        for kind in sorted(chosen, key=lambda kind: -ORDER[kind.name])
        for project in projects
        for item in _in_no_document(clients, documents, kind, project)
        if all(condition.holds(item, kind.list_columns()) for condition in conditions)
    ]


def _in_no_document(clients: Clients, documents: list[Document], kind: ObjectKind, project: str) -> Iterator[Object]:
    """Yield the objects of a project that no document is about."""
    kept = [d for d in documents if d.kind is kind and (d.project or clients.own_project()) == project]
    for item in clients.list(kind, project):
        if item.get("project") == project and not any(manifests.is_of(document, item) for document in kept):
            yield item


def show(steps: list[PlannedStep]) -> None:
    """Say what is to be done."""
    for step in steps:
        if step.verb == "keep":
            continue
        say(f"{ {'create': '+', 'change': '~', 'delete': '-'}[step.verb] } {step.title}")
        for field, (has, desired) in (step.changes or {}).items():
            say(f"    {field}: {_short(has)} -> {_short(desired)}")
    counts = {verb: sum(step.verb == verb for step in steps) for verb in ("create", "change", "delete", "keep")}
    say(f"{counts['create']} to create, {counts['change']} to change, {counts['delete']} to delete,"
        f" {counts['keep']} as they should be")  # fmt: skip


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_LENGTH_MAX else text[:VALUE_LENGTH_MAX] + "..."


def _refused(steps: list[PlannedStep], known: schemas.Schemas) -> list[str]:
    """Return what can't be done, in words."""
    lines = []
    for step in steps:
        kind = step.kind
        if step.verb == "create" and (not kind.create or kind.name == "token"):
            lines.append(f"there is no {step.title}, and a file can't create one")
        can = {*known.fields(kind.change), *manifests.BESIDE.get(kind.name, ()), *BY_ACTION.get(kind.name, ())}
        lines += [f"{step.title}: {field} can't change" for field in step.changes or {} if field not in can]
    return lines


def perform(clients: Clients, step: PlannedStep, known: schemas.Schemas, *, quiet: bool = False) -> None:
    """Do a step, and say so unless ``quiet`` is set. Raises ApiError, Unreachable, typer.Exit."""
    client, done = clients.of(step.project), ""
    if step.verb == "create" and step.document is not None:
        _create(client, step, step.document, known)
        done = "created"
    elif step.verb == "change" and step.item is not None:
        _change(client, step, step.item, known)
        done = "changed"
    elif step.verb == "delete" and step.item is not None:
        _delete(client, step, step.item)
        done = "deleted"
    if done and not quiet:
        say(f"{step.title}: {done}")


def _create(client: Client, step: PlannedStep, document: Document, known: schemas.Schemas) -> None:
    kind, fields = step.kind, document.fields
    taken = known.fields(kind.create)
    body = {field: value for field, value in fields.items() if field in taken}
    if kind.name == "link":
        _put_link(client, (fields["sites"] * 2)[:2], body)
    elif kind.name == "image":
        _import(client, step, body)
        later = {field: value for field, value in fields.items() if field in known.fields(kind.change)}
        if later.keys() - {"description"}:
            client.request("PATCH", f"/api/v1/images/{quoted(str(fields['name']))}", later)
    else:
        _post(client, step, fields, body, known)


def _put_link(client: Client, sites: list[str], body: Object) -> None:
    near, other = (quoted(str(site)) for site in sites)
    client.request("PUT", f"/api/v1/links/{near}/{other}", body)


def _post(client: Client, step: PlannedStep, fields: Object, body: Object, known: schemas.Schemas) -> None:
    """Create an object, and then give it what only a change takes."""
    kind = step.kind
    path = f"vms/{quoted(str(fields['vm']))}/snapshots" if kind.name == "snapshot" else kind.api
    created: Object = client.request("POST", f"/api/v1/{path}", body)
    if kind.name == "volume":
        _wait(client, step, "volumes", created["id"], lambda now: now is None or now["phase"] != "creating")
    if kind.name in ATTACHED and fields.get("vm"):
        _attach(client, step, kinds.name_of(kind, created), fields)
    rest = known.fields(kind.change).keys() - {*body, *known.fields(kind.create), *manifests.BESIDE.get(kind.name, ())}
    later = {field: value for field, value in fields.items() if field in rest}
    if later:
        client.request("PATCH", _path(kind, kinds.name_of(kind, created), created), later)


def _path(kind: ObjectKind, ref: str, item: Object) -> str:
    """Return where the API takes changes of an object."""
    if kind.name == "snapshot":
        return f"/api/v1/vms/{quoted(item['vm'])}/snapshots/{quoted(item['name'])}"
    return f"/api/v1/{kind.api}/{quoted(ref)}"


def _import(client: Client, step: PlannedStep, body: Object) -> None:
    started: Object = client.request("POST", "/api/v1/imports", body)
    if started["phase"] == "receiving":
        raise output.fail(f"{step.title}: give a url or a path; novacron image import sends a file", EXIT_USAGE)
    _wait(client, step, "imports", started["id"], lambda now: now is None or now["finished_at"] is not None)


def _wait(client: Client, step: PlannedStep, api: str, id: str, until: Callable[[Object | None], bool]) -> None:
    done = progress.waiting(client, api, id, f"creating {step.title}", until, WAIT_S)
    if done is None or done.get("error"):
        raise output.fail(f"{step.title}: {done['error'] if done else 'it is gone'}", EXIT_FAILED)


def _attach(client: Client, step: PlannedStep, ref: str, fields: Object) -> None:
    taken = ("vm", "read_only", "boot_order") if step.kind.name == "volume" else ("vm", "network")
    client.act(step.kind.api, ref, "attach", {field: fields[field] for field in taken if field in fields})


def _change(client: Client, step: PlannedStep, item: Object, known: schemas.Schemas) -> None:
    kind, desired = step.kind, {field: value for field, (_, value) in (step.changes or {}).items()}
    if kind.name == "grant":
        client.grant(item["user_name"], str(desired["role"]), item["project"])
        return
    if kind.name == "link":
        _put_link(client, item["sites"], {**item["spec"], **desired})
        return
    by_name = kind.name in ("project", "site", "node")
    ref = item["name"] if by_name else str(item.get("id") or kinds.name_of(kind, item))
    body = {field: value for field, value in desired.items() if field in known.fields(kind.change)}
    if body:
        client.request("PATCH", _path(kind, ref, item), body)
    if kind.name == "vm" and "power" in desired:
        client.act("vms", ref, "start" if desired["power"] == "running" else "stop")
    if kind.name in ATTACHED and desired.keys() & manifests.BESIDE[kind.name]:
        _attach_elsewhere(client, step, ref, item)


def _attach_elsewhere(client: Client, step: PlannedStep, ref: str, item: Object) -> None:
    if item.get("vm"):
        client.act(step.kind.api, ref, "detach")
        if step.kind.name == "volume":
            _wait(client, step, "volumes", ref, lambda now: now is None or not now["detaching"])
    if step.document and step.document.fields.get("vm"):
        _attach(client, step, ref, step.document.fields)


def _delete(client: Client, step: PlannedStep, item: Object) -> None:
    ref = str(item.get("id") or kinds.name_of(step.kind, item))
    if step.kind.name == "image":
        client.delete_image(item["name"], None)
        return
    if step.kind.name == "volume" and item.get("vm"):
        client.act("volumes", ref, "detach")
        _wait(client, step, "volumes", ref, lambda now: now is None or not now["detaching"])
    client.delete(step.kind.api, ref)
    if step.kind.name in ("vm", "volume"):
        progress.waiting(client, step.kind.api, ref, f"deleting {step.title}", lambda now: now is None, DELETED_S)
