"""The schemas of the OpenAPI document: derived from the very types that requests and answers are decoded and encoded
with."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import msgspec.inspect
from litestar import Response
from litestar.response import Stream

from novacron.api.edge.openapi_words import FIELDS, FIELDS_OF, FIELDS_OF_LISTS
from novacron.api.read_model.paging import Page
from novacron.model.console import PortTicket, Ticket

REFERENCE = "#/components/schemas/"
LISTS = {"ShownToken": "TokenList", "PoolOnNode": "PoolList"}
"""Lists that are not called after the struct of their items."""
PYTHON_END = r"\Z"


def components(requests: Iterable[Any], answers: Iterable[Any]) -> dict[str, Any]:
    """Return the schema of each named type in requests and answers, and of all that these contain, by name."""
    requests = list(requests)
    types = [*requests, *answers]
    _, schemas = msgspec.json.schema_components(types, ref_template=REFERENCE + "{name}")
    _, sent = msgspec.json.schema_components(requests, ref_template=REFERENCE + "{name}")
    structs = dict(_structs(types))
    whole = {
        name for name, struct in structs.items() if name not in sent and not struct.__struct_config__.omit_defaults
    }
    names = {f"Page_{item}_": LISTS.get(item, f"{item}List") for item in schemas}
    named: dict[str, Any] = {}
    for key, schema in schemas.items():
        name = names.get(key, key)
        named[name] = {**_portable(schema, names), "title": name}
        if "description" in schema:
            named[name]["description"] = _plain(schema["description"])
        own = _words_of_fields(structs[key]) if key in structs else {}
        _say(named[name].get("properties", {}), own, _words_elsewhere(name, is_list=key in names))
        if key in whole:  # an answer always has all fields
            named[name]["required"] = list(schema["properties"])
    return dict(sorted(named.items()))


def _say(fields: dict[str, Any], own: dict[str, str], elsewhere: dict[str, str]) -> None:
    """Give fields the descriptions that their struct has for them, or those that ``openapi_words`` has."""
    for name, schema in fields.items():
        if name in own:
            schema["description"] = f"{own[name]} {schema.get('description', '')}".strip()
        elif "description" not in schema and name in elsewhere:
            schema["description"] = elsewhere[name]


def _words_elsewhere(schema: str, *, is_list: bool) -> dict[str, str]:
    return {**FIELDS, **(FIELDS_OF_LISTS if is_list else {}), **FIELDS_OF.get(schema, {})}


def _plain(docstring: str) -> str:
    """Return a docstring in the words of those who know JSON, but neither Python nor this program's files."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", docstring.strip()))
    text = "\n\n".join(paragraphs).replace("``", "`").replace("`WaitCode`", "reason code")
    text = re.sub(
        r"(?<![\w-])(None|True|False)(?![\w-])", lambda word: {"None": "null"}.get(word[0], word[0].lower()), text
    )
    return text.replace("one of reason code", "a reason code")


def _structs(types: list[Any]) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Return all structs that the types contain, and what their schemas are called."""
    seen: set[int] = set()
    left: list[Any] = list(msgspec.inspect.multi_type_info(types))
    while left:
        info = left.pop()
        if id(info) in seen:
            continue
        seen.add(id(info))
        if isinstance(info, msgspec.inspect.StructType):
            if isinstance(info.cls, type):  # a list of a kind of objects is none
                yield info.cls.__name__, info.cls
            left += [field.type for field in info.fields]
        left += _inner_types(info)


@functools.cache
def _words_of_fields(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return what the docstrings below a struct's fields say."""
    words: dict[str, str] = {}
    for class_ in reversed(struct.__mro__):
        if class_.__module__.startswith("novacron."):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(class_))).body
            assert isinstance(body, ast.ClassDef)
            for field, below in itertools.pairwise(body.body):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        words[name] = _plain(text)
    return words


def _inner_types(info: msgspec.inspect.Type) -> list[Any]:
    """Return what a list, dictionary, union or tuple consists of."""
    attributes = (getattr(info, name, None) for name in ("type", "item_type", "key_type", "value_type"))
    single = [inner for inner in attributes if isinstance(inner, msgspec.inspect.Type)]
    return [*single, *getattr(info, "types", ()), *getattr(info, "item_types", ())]


def answer_type(annotation: object) -> object:
    """Return the type of the JSON that a route answers with, or None if it answers with something else."""
    if typing.get_origin(annotation) is Response:
        return answer_type(typing.get_args(annotation)[0])
    for alternative in typing.get_args(annotation) if _is_union(annotation) else ():
        if alternative is not Stream:
            return answer_type(alternative)
    return None if annotation in (None, type(None), bytes, Any, Response) else annotation


def reference(type_: object) -> dict[str, Any]:
    """Return the schema that stands for a type in an operation."""
    (schema,), _ = msgspec.json.schema_components([type_], ref_template=REFERENCE + "{name}")
    name = page_name(type_)
    return schema if name is None else {"$ref": REFERENCE + name}


def page_name(type_: object) -> str | None:
    """Return what the list of a kind of objects is called: ``Page[Vm]`` is VmList; None: it is no list."""
    if typing.get_origin(type_) is not Page:
        return None
    item = typing.get_args(type_)[0].__name__
    return LISTS.get(item, f"{item}List")


def is_object(type_: object) -> bool:
    """Say whether a type is an object with a revision, which has an ETag."""
    return isinstance(type_, type) and hasattr(type_, "revision") and type_ not in (PortTicket, Ticket)


def portable_pattern(pattern: str) -> str:
    """Return a pattern in JSON Schema's dialect, which has no ``\\Z``, and whose ``$`` takes no newline."""
    return pattern.replace(PYTHON_END, "$")


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, type(int | str))


def _portable(value: Any, names: dict[str, str]) -> Any:  # noqa: ANN401 - JSON
    """Return a schema with lists called by ``names``, patterns that are not only Python's, and defaults in words:
    generators take a field that has one for a field that must be sent."""
    if isinstance(value, list):
        return [_portable(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _portable(item, names) for key, item in value.items() if key != "default"}
    if "default" in value and value["default"] not in (None, [], {}, ""):
        by_default = f"By default {json.dumps(value['default'])}."
        said = changed.get("description", "").rstrip(".")
        changed["description"] = f"{said}. {by_default}" if said else by_default
    if isinstance(value.get("$ref"), str):
        name = value["$ref"].removeprefix(REFERENCE)
        changed["$ref"] = REFERENCE + names.get(name, name)
    if "prefixItems" in value:  # a pair: of two alike
        (changed["items"],) = {str(item): item for item in changed.pop("prefixItems")}.values()
    if isinstance(value.get("pattern"), str):
        changed["pattern"] = portable_pattern(value["pattern"])
    return changed
