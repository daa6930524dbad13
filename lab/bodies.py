"""Writes ``novacron.client.bodies``: what the API's requests take, as types for type checkers."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Iterable, Iterator
from enum import Enum

import msgspec.inspect as kinds

HEAD = '''"""What the API's requests take, for type checkers: dictionaries, since the client does not load the model.

Made of the routes' own types by script/generate: change those, and run it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Required, TypedDict

if TYPE_CHECKING:
'''
SIMPLE: dict[type[kinds.Type], str] = {
    kinds.IntType: "int", kinds.FloatType: "float", kinds.StrType: "str", kinds.BoolType: "bool",
    kinds.NoneType: "None", kinds.AnyType: "object", kinds.RawType: "object", kinds.BytesType: "str",
    kinds.DateTimeType: "str",
}  # fmt: skip
MODEL = "novacron.model."


def module(bodies: Iterable[object]) -> str:
    """Return the module's text, given the types of all request bodies."""
    structs = sorted(_structs(bodies), key=lambda struct: struct.cls.__name__)
    enums: set[type] = set()
    classes = [_class(struct, enums) for struct in structs]
    imports = [f"    from {enum.__module__} import {enum.__name__}\n" for enum in sorted(enums, key=_place)]
    return HEAD + "".join(imports) + "\n\n" + "\n\n".join(classes)


def body_name(struct: type) -> str:
    return f"{struct.__name__}Body"


def _place(enum: type) -> tuple[str, str]:
    return enum.__module__, enum.__name__


def _structs(bodies: Iterable[object]) -> Iterator[kinds.StructType]:
    """Yield all structs in request bodies, each once."""
    waiting: list[kinds.Type] = list(kinds.multi_type_info(bodies))
    seen: set[type] = set()
    while waiting:
        info = waiting.pop()
        if isinstance(info, kinds.StructType):
            if info.cls in seen:
                continue
            seen.add(info.cls)
            yield info
            waiting += [field.type for field in info.fields]
        waiting += [
            inner
            for name in ("type", "item_type", "key_type", "value_type")
            if isinstance(inner := getattr(info, name, None), kinds.Type)
        ]
        waiting += [*getattr(info, "types", ()), *getattr(info, "item_types", ())]


def _class(struct: kinds.StructType, enums: set[type]) -> str:
    words = (inspect.getdoc(struct.cls) or struct.cls.__name__).replace("\n", "\n    ")
    end = "\n    " if "\n" in words else ""
    lines = [f"class {body_name(struct.cls)}(TypedDict, total=False):", f'    """{words}{end}"""', ""]
    for field in struct.fields:
        assert not keyword.iskeyword(field.encode_name), f"{struct.cls.__name__}.{field.encode_name}"
        type_ = _annotation(field.type, enums)
        lines.append(f"    {field.encode_name}: {f'Required[{type_}]' if field.required else type_}")
    return "\n".join(lines) + "\n"


def _annotation(info: kinds.Type, enums: set[type]) -> str:
    """Return how a type checker calls what a field takes."""
    match info:
        case kinds.Metadata():
            return _annotation(info.type, enums)
        case kinds.UnionType():
            names = [_annotation(one, enums) for one in info.types]
            return " | ".join(dict.fromkeys(names))
        case kinds.StructType():
            return body_name(info.cls)
        case kinds.EnumType():
            return _enum(info.cls, enums)
        case kinds.LiteralType():
            return f"Literal[{', '.join(map(repr, info.values))}]"
        case kinds.ListType() | kinds.SetType() | kinds.VarTupleType():
            return f"Sequence[{_annotation(info.item_type, enums)}]"
        case kinds.TupleType():
            items = dict.fromkeys(_annotation(item, enums) for item in info.item_types)
            return f"Sequence[{' | '.join(items)}]"
        case kinds.DictType():
            return f"Mapping[{_annotation(info.key_type, enums)}, {_annotation(info.value_type, enums)}]"
    return SIMPLE[type(info)]


def _enum(enum: type[Enum], enums: set[type]) -> str:
    """A member of an enum of the model, or its value."""
    values = f"Literal[{', '.join(repr(member.value) for member in enum)}]"
    if not enum.__module__.startswith(MODEL):
        return values
    enums.add(enum)
    return f"{enum.__name__} | {values}"
