"""What the API's OpenAPI document says of fields, for ``explain``, ``apply`` and ``edit``."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from novacron.cli.output import Object
from novacron.client import Client

DEPTH_MAX = 8


class Schemas:
    """The schemas of an OpenAPI document."""

    def __init__(self, document: Object) -> None:
        self._named: dict[str, Object] = document["components"]["schemas"]

    def fields(self, schema: str) -> dict[str, Object]:
        """Return the schema of each field of an object's schema; none for an empty name."""
        properties: dict[str, Object] = self._named.get(schema, {}).get("properties", {})
        return properties

    def required(self, schema: str) -> frozenset[str]:
        return frozenset(self._named.get(schema, {}).get("required", ()))

    def description(self, schema: str) -> str:
        return str(self._named.get(schema, {}).get("description", ""))

    def choices(self, schema: Object) -> list[Object]:
        """Return the alternatives of a schema, with references followed."""
        values: list[Object] = []
        self._collect(schema, values, 0)
        return values

    def _collect(self, schema: Object, found: list[Object], depth: int) -> None:
        if depth > DEPTH_MAX:
            return
        if "$ref" in schema:
            self._collect(self._named.get(str(schema["$ref"]).rpartition("/")[2], {}), found, depth + 1)
            return
        alternatives = [part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key, ())]
        for part in alternatives:
            self._collect(part, found, depth + 1)
        if not alternatives:
            found.append(schema)

    def below(self, schema: Object) -> dict[str, Object]:
        """Return the fields of a field: of an object, or of each entry of a list."""
        fields: dict[str, Object] = {}
        for choice in self.choices(schema):
            if choice.get("type") == "array":
                fields.update(self.below(choice.get("items", {})))
            fields.update(choice.get("properties", {}))
        return fields

    def type_of(self, schema: Object) -> str:
        """Return what a field takes, in words."""
        return " or ".join(dict.fromkeys(self._types(schema))) or "anything"

    def _types(self, schema: Object) -> Iterator[str]:
        for choice in self.choices(schema):
            if "const" in choice:
                yield f"{choice['const']}"
            elif "enum" in choice:
                yield "one of " + ", ".join(str(value) for value in choice["enum"])
            elif choice.get("type") == "array":
                yield f"list of {self.type_of(choice.get('items', {}))}"
            elif choice.get("type") == "null":
                yield "null"
            else:
                yield f"{choice.get('type', 'anything')}{_bounds(choice)}"


def _bounds(schema: Object) -> str:
    low = schema.get("minimum", schema.get("minLength"))
    high = schema.get("maximum", schema.get("maxLength"))
    if low is None and high is None:
        return ""
    of = " characters" if "minLength" in schema or "maxLength" in schema else ""
    if low is None:
        return f" (at most {high}{of})"
    return f" (at least {low}{of})" if high is None else f" ({low} to {high}{of})"


def near(name: str, known: list[str]) -> str:
    """Return a hint for a name that is none of those that are known."""
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else "there are: " + ", ".join(known)


def read(client: Client) -> Schemas:
    """Return the schemas of the server's own document. Raises ApiError, Unreachable."""
    return Schemas(client.request("GET", "/schema"))
