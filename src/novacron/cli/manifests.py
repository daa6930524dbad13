"""Manifests: YAML documents that say how objects should be, and how they differ from what there is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import typer

from novacron.cli import kinds
from novacron.cli.kinds import ObjectKind
from novacron.cli.output import Object
from novacron.cli.schemas import Schemas, near

BYTES_MAX = 16 << 20
DOCUMENTS_MAX = 5_000
DEPTH_MAX = 20
VALUES_MAX = 200_000
BESIDE: dict[str, tuple[str, ...]] = {
    "volume": ("vm", "read_only", "boot_order"), "floating-address": ("vm", "network"), "snapshot": ("vm",),
    "link": ("sites",), "node": ("name",), "site": ("name",),
}  # fmt: skip
"""Fields of manifests that are not in the body of the request that creates the object."""
AT_CREATION: dict[str, frozenset[str]] = {
    "vm": frozenset({"node", "cloud_init", "firmware_state", "image", "disks", "boot_once", "flavor", "template"}),
    "volume": frozenset({"node", "image"}),
    "network": frozenset({"is_default"}),
    "image": frozenset({"url", "path", "catalogue_image", "size_bytes", "sha256", "format", "node", "shared"}),
    "snapshot": frozenset({"memory", "quiesce"}),
    "flavor": frozenset({"shared"}),
    "template": frozenset({"shared", "vm"}),
}
"""Fields that say only how an object begins: they are not compared afterwards."""
BESIDE_SPEC = ("name", "sites", "mtu", "display_name", "description", "tags")
SECRET: dict[str, frozenset[str]] = {"user": frozenset({"password"})}
IDENTITY: dict[str, tuple[str, ...]] = {
    "grant": ("user", "project"), "floating-address": ("address",), "link": ("sites",), "snapshot": ("vm", "name"),
    "forward": ("vm", "vm_port", "protocol"),
}  # fmt: skip
DEFAULTS: Object = {"protocol": "tcp"}
"""Values of fields of an identity that a manifest may leave out."""
ASSIGNED = frozenset({"nics"})
"""Fields in which null, or nothing, lets the platform choose."""
WHOLE: dict[str, frozenset[str]] = {"flavor": frozenset({"spec"}), "template": frozenset({"spec"})}
"""Fields that a change replaces as a whole, so that what a manifest leaves out of them counts."""
IN_PROJECT = frozenset({
    "image", "security-group", "network", "volume", "vm", "floating-address", "forward", "snapshot",
    "flavor", "template", "backup-repository", "backup-policy",
})  # fmt: skip


class Document(NamedTuple):
    """What a manifest says of one object."""

    place: str
    kind: ObjectKind
    project: str
    """Empty: the one that the command works in."""
    fields: Object

    @property
    def key(self) -> tuple[str, ...]:
        """What tells this object from all others."""
        return (self.kind.name, self.project, *(str(self.identity(field)) for field in identity_of(self.kind)))

    def identity(self, field: str) -> object:
        value = self.fields.get(field, DEFAULTS.get(field))
        return sorted(map(str, value)) if isinstance(value, list) else value

    @property
    def name(self) -> str:
        values = [self.identity(field) for field in identity_of(self.kind)]
        return " ".join(str(part) for value in values for part in (value if isinstance(value, list) else [value])
                        if part is not None)  # fmt: skip


def identity_of(kind: ObjectKind) -> tuple[str, ...]:
    return IDENTITY.get(kind.name, ("name",))


def _bad(place: str, what: str) -> typer.BadParameter:
    return typer.BadParameter(f"{place}: {what}", param_hint="'--file'")


def read(paths: Iterable[Path]) -> list[Document]:
    """Return the documents of files; ``-`` is standard input. Raises typer.BadParameter, OSError, UnicodeError."""
    documents: list[Document] = []
    seen: dict[tuple[str, ...], str] = {}
    for path in paths:
        name = "standard input" if str(path) == "-" else str(path)
        for number, content in enumerate(_parsed(name, _text(path)), 1):
            if content is None:
                continue
            if len(documents) >= DOCUMENTS_MAX:
                raise _bad(name, f"more than {DOCUMENTS_MAX} documents")
            document = _document(f"{name}, document {number}", content)
            if document.key in seen:
                raise _bad(document.place, f"{document.kind.name} {document.name} is in {seen[document.key]}, too")
            seen[document.key] = document.place
            documents.append(document)
    return documents


def _text(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read(BYTES_MAX)
    with path.open(encoding="utf-8") as opened:
        text = opened.read(BYTES_MAX + 1)
    if len(text) > BYTES_MAX:
        raise _bad(str(path), f"it is larger than {BYTES_MAX >> 20} MiB")
    return text


def _parsed(name: str, text: str) -> list[object]:
    import yaml  # loaded only by who wants it

    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise _bad(name, "it is no YAML: " + " ".join(str(error).split())) from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise _bad(name, f"it has a value that can't be read: {type(error).__name__}") from None


def mapping(path: Path) -> Object:
    """Return the only mapping of a file. Raises typer.BadParameter, OSError, UnicodeError."""
    documents = [content for content in _parsed(str(path), _text(path)) if content is not None]
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise _bad(str(path), "it is not a mapping of fields to values")
    _check(str(path), documents[0])
    return documents[0]


def _document(place: str, content: object) -> Document:
    if not isinstance(content, dict):
        raise _bad(place, "it is not a mapping: begin it with kind: vm, followed by the object's fields")
    _check(place, content)
    fields = dict(content)
    named = fields.pop("kind", None)
    if not isinstance(named, str):
        raise _bad(place, "it has no kind, such as kind: vm")
    try:
        kind = kinds.kind_of(named)
    except typer.BadParameter as error:
        raise _bad(place, str(error.message)) from None
    if not (kind.create or kind.change) or kind.name == "token":
        raise _bad(place, f"a {kind.name} can't be in a manifest")
    project = fields.pop("project", "") if kind.name in IN_PROJECT else ""
    if not isinstance(project, str):
        raise _bad(place, "project must be text")
    for field in identity_of(kind):
        if field not in DEFAULTS and field != "project" and fields.get(field) in (None, "", []):
            raise _bad(place, f"the {kind.name} has no {field}")
    return Document(place, kind, project, fields)


def _check(place: str, content: object) -> None:
    """Raises typer.BadParameter for what JSON can't say, and for aliases that make much of little."""
    left: list[tuple[object, int]] = [(content, 0)]
    seen = 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > DEPTH_MAX:
            raise _bad(place, "it is nested too deeply")
        if seen > VALUES_MAX:
            raise _bad(place, f"it has more than {VALUES_MAX} values")
        left += [(entry, depth + 1) for entry in _entries(place, value)]


def _entries(place: str, value: object) -> list[object]:
    """Return what a value consists of. Raises typer.BadParameter for what JSON can't say."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise _bad(place, f"{key!r} is not a field name: put it in quotes")
        return list(value.values())
    if isinstance(value, list):
        return value
    if not isinstance(value, str | int | float | bool | None):
        raise _bad(place, f"{value} is neither text nor a number: put it in quotes")
    return []


def check_fields(document: Document, schemas: Schemas) -> None:
    """Raises typer.BadParameter for a field that the kind does not have."""
    kind = document.kind
    known = sorted({*schemas.fields(kind.create), *schemas.fields(kind.change), *BESIDE.get(kind.name, ())})
    for field in document.fields:
        if field in SECRET.get(kind.name, ()):
            raise _bad(
                document.place, f"{field} is a secret, not allowed in manifests: see novacron {kind.name} --help"
            )
        if field not in known:
            raise _bad(document.place, f"a {kind.name} has no field {field!r}; {near(field, known)}")


def present(kind: ObjectKind, item: Object) -> Object:
    """Return an object as a manifest says it."""
    spec = item.get("spec") or {}
    if kind.name in ("vm", "node", "link", "network"):
        return {**spec, **{key: item[key] for key in BESIDE_SPEC if key in item}}
    if kind.name in ("volume", "floating-address", "forward", "snapshot"):
        return {**item, "vm": item.get("vm_name")}
    if kind.name == "backup-policy":
        return {**spec, "name": item["name"], "repository": item["repository_name"]}
    if kind.name == "grant":
        return {**item, "user": item.get("user_name")}
    return item


def is_of(document: Document, item: Object) -> bool:
    """Say whether an object is the one that a document is about."""
    shown = present(document.kind, item)
    for field in identity_of(document.kind):
        named, has = document.identity(field), shown.get(field)
        has = sorted(map(str, has)) if isinstance(has, list) else has
        if (named or None) != (has or None):
            return False
    return True


def differences(document: Document, item: Object, schemas: Schemas) -> dict[str, tuple[object, object]]:
    """Return which fields differ from what a document says: what they are and what they should be."""
    shown, kind = present(document.kind, item), document.kind
    changeable = schemas.fields(kind.change)
    differing: dict[str, tuple[object, object]] = {}
    for field, desired in document.fields.items():
        if field in AT_CREATION.get(kind.name, ()) or field in identity_of(kind):
            continue
        has = shown.get(field)
        clears = field in BESIDE.get(kind.name, ()) or _takes_null(changeable.get(field), schemas)
        if desired is None and not clears:
            continue
        extra = field in WHOLE.get(kind.name, ()) and _has_more(desired, has)
        if extra or not same(desired, has, assigned=field in ASSIGNED):
            differing[field] = (has, desired)
    return differing


def _has_more(wanted: object, has: object) -> bool:
    """Say whether a value has fields that are not wanted; one that is null or empty is no different without them."""
    if not isinstance(wanted, dict) or not isinstance(has, dict):
        return False
    return any(key not in wanted for key, value in has.items() if value is not None and value != {})


def _takes_null(schema: Object | None, schemas: Schemas) -> bool:
    return schema is not None and any(choice.get("type") == "null" for choice in schemas.choices(schema))


def same(wanted: object, has: object, *, assigned: bool = False) -> bool:
    """Say whether a value is as wanted; of objects only the fields that are given count."""
    if wanted is None and assigned:
        return True
    if isinstance(wanted, dict) and isinstance(has, dict):
        return all(same(value, has.get(key), assigned=assigned) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(has, list):
        return len(wanted) == len(has) and all(same(a, b, assigned=assigned) for a, b in zip(wanted, has, strict=True))
    return wanted == has and isinstance(wanted, bool) is isinstance(has, bool)
