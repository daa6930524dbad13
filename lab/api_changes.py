"""What a change of the OpenAPI document breaks for programs that use the API: ``python -m lab.api_changes``.

``tests/unit/golden/openapi.json`` is the document of the last release, without words; ``--release`` writes it anew from
the present one. No tool does this: those there are come as binaries from a code host, or know version 3.0 only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PRESENT = ROOT / "docs/reference/openapi.json"
RELEASED = ROOT / "tests/unit/golden/openapi.json"
WORDS = frozenset({"description", "summary", "example", "title", "contact", "license", "tags"})
LOWER_IS_STRICTER = ("maximum", "maxLength", "maxItems")
HIGHER_IS_STRICTER = ("minimum", "minLength", "minItems")
Schema = dict[str, Any]


def without_words(value: object, *, names: bool = False) -> Any:  # noqa: ANN401 - JSON
    """Return a document without what only people read. In ``names``, keys are names, whatever they are."""
    if isinstance(value, list):
        return [without_words(item) for item in value]
    if not isinstance(value, dict):
        return value
    inner = ("properties", "schemas", "paths", "headers", "responses")
    return {
        key: without_words(item, names=not names and key in inner)
        for key, item in value.items()
        if names or key not in WORDS
    }


def breaking(old: Schema, new: Schema) -> list[str]:
    """Return what a program that was written for ``old`` can't rely on with ``new``, in words."""
    return sorted(set(_Comparison(old, new).operations()))


class _Comparison:
    def __init__(self, old: Schema, new: Schema) -> None:
        self._old, self._new = old, new
        self._compared: set[tuple[str, bool]] = set()

    def operations(self) -> Iterator[str]:
        for path, item in self._old["paths"].items():
            for method, old in item.items():
                where = f"{method.upper()} {path}"
                new = self._new["paths"].get(path, {}).get(method)
                if new is None:
                    yield f"{where} is gone"
                    continue
                if new["operationId"] != old["operationId"]:
                    yield f"{where} is called {new['operationId']}, not {old['operationId']}"
                yield from self._parameters(where, old, new)
                yield from self._bodies(where, old, new)
                yield from self._answers(where, old, new)

    def _parameters(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        before = {parameter["name"]: parameter for parameter in old.get("parameters", [])}
        after = {parameter["name"]: parameter for parameter in new.get("parameters", [])}
        for name, parameter in before.items():
            if name not in after:
                yield f"{where} does not take {name} any more"
            else:
                yield from self._schemas(f"{where}: {name}", parameter["schema"], after[name]["schema"], sent=True)
        for name, parameter in after.items():
            if parameter.get("required") and not before.get(name, {}).get("required"):
                yield f"{where} demands {name}"

    def _bodies(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        before, after = old.get("requestBody"), new.get("requestBody")
        if after is not None and after["required"] and not (before or {}).get("required"):
            yield f"{where} demands a body"
        for media, content in (before or {}).get("content", {}).items():
            if media not in (after or {}).get("content", {}):
                yield f"{where} does not take {media} any more"
            else:
                yield from self._schemas(where, content["schema"], (after or {})["content"][media]["schema"], sent=True)

    def _answers(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        for status, response in old["responses"].items():
            if status not in new["responses"]:
                yield f"{where} does not answer with {status} any more"
            for media, content in response.get("content", {}).items():
                after = new["responses"].get(status, {}).get("content", {})
                if media in after:
                    yield from self._schemas(where, content["schema"], after[media]["schema"], sent=False)

    def _schemas(self, where: str, old: Schema, new: Schema, *, sent: bool) -> Iterator[str]:
        """Compare what a program sends, or what it receives."""
        if "$ref" in old and "$ref" in new:
            name = old["$ref"].rpartition("/")[2]
            if (name, sent) in self._compared:
                return
            self._compared.add((name, sent))
            where = name
        old, new = self._resolved(self._old, old), self._resolved(self._new, new)
        before, after = _types(old), _types(new)
        if sent and not before <= after:
            yield f"{where}: must not be {', '.join(sorted(before - after))} any more"
        if not sent and not after <= before:
            yield f"{where}: can be {', '.join(sorted(after - before))}, too"
        if sent:
            yield from _stricter(where, old, new)
        yield from self._fields(where, old, new, sent=sent)
        if "items" in old and "items" in new:
            yield from self._schemas(f"{where}[]", old["items"], new["items"], sent=sent)
        for choice, other in zip(old.get("anyOf", ()), new.get("anyOf", ()), strict=False):
            yield from self._schemas(where, choice, other, sent=sent)

    def _fields(self, where: str, old: Schema, new: Schema, *, sent: bool) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name, schema in before.items():
            if name not in after:
                yield f"{where}.{name} is gone"
            else:
                yield from self._schemas(f"{where}.{name}", schema, after[name], sent=sent)
        demanded, promised = set(new.get("required", ())), set(old.get("required", ()))
        if sent:
            yield from (f"{where}.{name} must be sent" for name in demanded - promised)
        else:
            yield from (f"{where}.{name} may be missing" for name in promised - demanded if name in after)

    @staticmethod
    def _resolved(document: Schema, schema: Schema) -> Schema:
        if "$ref" in schema:
            resolved: Schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            return resolved
        return schema


def _types(schema: Schema) -> set[str]:
    """Return the values that are allowed, or their types."""
    if "enum" in schema:
        return {str(value) for value in schema["enum"]}
    if "anyOf" in schema:
        return set[str]().union(*map(_types, schema["anyOf"]))
    return {schema["type"]} if isinstance(schema.get("type"), str) else {schema.get("$ref", "anything")}


def _stricter(where: str, old: Schema, new: Schema) -> Iterator[str]:
    for key in LOWER_IS_STRICTER:
        if key in new and new[key] < old.get(key, float("inf")):
            yield f"{where}: {key} is {new[key]}, not {old.get(key, 'without a limit')}"
    for key in HIGHER_IS_STRICTER:
        if key in new and new[key] > old.get(key, float("-inf")):
            yield f"{where}: {key} is {new[key]}, not {old.get(key, 'without a limit')}"
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield f"{where}: pattern is {new['pattern']}, not {old.get('pattern', 'anything')}"


def main() -> None:
    present = without_words(json.loads(PRESENT.read_text()))
    if sys.argv[1:] == ["--release"]:
        RELEASED.write_text(json.dumps(present, indent=0, sort_keys=True) + "\n")
        return
    changes = breaking(json.loads(RELEASED.read_text()), present)
    print("\n".join(changes) or "nothing that breaks a program")
    sys.exit(bool(changes))


if __name__ == "__main__":
    main()
