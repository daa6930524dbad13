"""Requests with one hostile value each, for every field, parameter and header of every route of an OpenAPI document."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

from tests.security.fuzz_objects import FuzzObjects

Schema = dict[str, Any]

LONG = 100_000
RAW_NUMBERS = ("1e400", "-1e400", "9" * 400, "-" + "9" * 400, "NaN", "1e-400", "-0", "0.1")
VALUES: tuple[str, ...] = (
    *(json.dumps(text) for text in (
        "\0", "a\0b", "\x01", "\x1b[2J", "a\n", "\u202e", "\ufffe", "\U0010ffff", "a" * LONG, "", " ", "-", ".", "..",
        "../../../etc/passwd", "'; DROP TABLE vms; --", "%00%s%n", "*", "9" * 5000, "-1", "\u0661",
        "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1e999", "null", "vm-fuzzed", "host-fuzzed", "fuzzed",
        "::ffff:0:0/0", "255.255.255.255/32", "0.0.0.0/0.0.0.255", "http://[::1%25lo]/", "file:///etc/passwd",
    )),
    '"\\ud800"', '"\\udc00a"', '"\\ud800\\u0000"',
    *(json.dumps(number) for number in (0, -1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 1e308)),
    *RAW_NUMBERS, "null", "true", "[]", "{}", "[null]", '{"a\\u0000": 1}', "[" * 5000 + "]" * 5000,
)  # fmt: skip
"""As JSON."""
BYTES: tuple[bytes, ...] = (
    b"\0", b"a\0b", b"\xff", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\x80", b"\n", b"a\r\nb: c", b"\x1b[2J", b"",
    b" ", b"-1", b"0", b"1", b"99999999999999999999", b"9" * 4400, b"\xd9\xa1", b"1e9", b"nan", b"../..", b"*", b"%",
    b"a" * 8000, b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00", b"1-01-01", b"[", b"vm-fuzzed",
    b"host-fuzzed", b"null", b"true",
)  # fmt: skip
"""In paths and queries, before they are percent-encoded."""
HEADERS = (
    "Authorization", "Cookie", "X-CSRF-Token", "If-Match", "If-None-Match", "Idempotency-Key", "Last-Event-ID",
    "Accept", "Accept-Encoding", "Content-Type", "X-Request-ID", "traceparent", "Origin", "Range",
)  # fmt: skip
HEADER_VALUES = (
    "\xe9", "\xff" * 100, "a" * 6000, "", '"' + "9" * 30 + '"', "Bearer \xe9", "Bearer ", "Basic Og==", '"', "W/\"1\"",
    "__Host-novacron-session=\xe9", "__Host-novacron-login=\xe9.\xe9", "=;=;", "gzip;q=nan", "application/json;q=x",
    "9" * 4400, "bytes=-1", "\t",
)  # fmt: skip
NAMES = {"ref": "vm-fuzzed", "node": "host-fuzzed", "name": "net-fuzzed", "site": "default", "one": "a",
         "other": "b", "offset": "0", "address": "198.19.200.8", "timeout_s": "0"}  # fmt: skip
"""Of things that exist, so that a hostile value elsewhere gets past the look-up; other tests do not use them."""
BY_PATH = {"/api/v1/nodes": "host-fuzzed", "/api/v1/security-groups": "group-fuzzed", "/api/v1/projects": "fuzzed",
           "/api/v1/users": "fuzzed", "/api/v1/images": "tiny",
           "/api/v1/flavors": "flavor-fuzzed", "/api/v1/templates": "template-fuzzed"}  # fmt: skip
LEFT_OUT = ("/api/v1/logout",)
"""Ends the session that asks."""


class Hostile(NamedTuple):
    """A request, and what is hostile in it."""

    method: str
    target: str
    body: bytes | None
    headers: dict[str, str]
    at: str
    route: str
    """Method and path, with the names of parameters."""


class Operation(NamedTuple):
    method: str
    path: str
    parameters: list[Schema]
    body: Schema | None
    objects: dict[str, str]
    """Ids of things that exist, by what is before them in a path."""

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"

    def hostile(self, target: str, body: bytes | None, headers: dict[str, str], at: str) -> Hostile:
        return Hostile(self.method, target, body, headers, at, self.route)

    def target(self, replaced: dict[str, str] | None = None, query: str = "") -> str:
        target = self.path
        for parameter in self.parameters:
            if parameter["in"] == "path":
                name = parameter["name"]
                prefix = self.path.partition("/{" + name + "}")[0]
                usual = self.objects.get(prefix, BY_PATH.get(prefix, NAMES.get(name, "none")))
                target = target.replace("{" + name + "}", (replaced or {}).get(name, usual))
        needed = "".join(
            f"&{parameter['name']}={NAMES.get(parameter['name'], '1')}"
            for parameter in self.parameters
            if parameter["in"] == "query"
            and (parameter.get("required") or parameter["name"] == "timeout_s")
            and f"&{parameter['name']}=" not in query
        )
        asked = (query + needed).removeprefix("&")
        return f"{target}?{asked}" if asked else target


class Fuzz:
    """All hostile requests that an OpenAPI document makes possible."""

    def __init__(self, document: Schema, objects: FuzzObjects | None = None) -> None:
        by_path, self._by_field = ({}, {}) if objects is None else objects
        self._schemas: dict[str, Schema] = document["components"]["schemas"]
        self.operations = [
            Operation(
                method.upper(), path, operation.get("parameters", []),
                operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema"), by_path,
            )
            for path, item in document["paths"].items() if path not in LEFT_OUT
            for method, operation in item.items()
        ]  # fmt: skip

    def requests(self) -> Iterator[Hostile]:
        """Yield one request for each value at each place."""
        for operation in self.operations:
            yield from self._parameters(operation)
            yield from self._headers(operation)
            if operation.body is not None:
                yield from self._bodies(operation)

    def several(self, seed: int, count: int) -> Iterator[Hostile]:
        """Yield requests with hostile values at several places at once."""
        draw = random.Random(seed)
        for _ in range(count):
            operation = draw.choice(self.operations)
            replaced = {p["name"]: quote_from_bytes(draw.choice(BYTES), safe="") or "%20" for p in operation.parameters}
            chosen = [p["name"] for p in operation.parameters if p["in"] == "query" and draw.random() < 0.5]
            query = "".join(f"&{name}={replaced[name]}" for name in chosen)
            paths = replaced if draw.random() < 0.3 else {}
            headers = {name: draw.choice(HEADER_VALUES) for name in draw.sample(HEADERS[2:], 2)}
            body = None
            if operation.body is not None:
                fields = draw.sample(list(self._fields(operation.body)), 1) * (draw.random() < 0.9)
                body = self._encoded(operation.body, {field: draw.choice(VALUES) for field in fields})
            yield operation.hostile(operation.target(paths, query), body, headers, f"several, seed {seed}")

    def _parameters(self, operation: Operation) -> Iterator[Hostile]:
        body = None if operation.body is None else self._encoded(operation.body, {})
        for parameter in operation.parameters:
            name, where = parameter["name"], parameter["in"]
            for value in BYTES:
                text = quote_from_bytes(value, safe="")
                if where == "path":
                    target = operation.target({name: text or "%20"})
                else:
                    target = operation.target(query=f"&{name}={text}")
                yield operation.hostile(target, body, {}, f"{where} {name}")

    def _headers(self, operation: Operation) -> Iterator[Hostile]:
        body = None if operation.body is None else self._encoded(operation.body, {})
        for name in HEADERS:
            for value in HEADER_VALUES:
                yield operation.hostile(operation.target(), body, {name: value}, f"header {name}")

    def _bodies(self, operation: Operation) -> Iterator[Hostile]:
        assert operation.body is not None
        for field in self._fields(operation.body):
            for value in VALUES:
                body = self._encoded(operation.body, {field: value})
                yield operation.hostile(operation.target(), body, {}, f"body {'.'.join(map(str, field))}")
        for raw in (b"", b"\xff", b"{", b"\0", b'{"a":', b"[" * LONG, b'"' + b"\\u0000" * 1000 + b'"'):
            yield operation.hostile(operation.target(), raw, {}, "body")

    # schemas

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema or "oneOf" in schema or "anyOf" in schema:
            if "$ref" in schema:
                schema = self._schemas[schema["$ref"].rpartition("/")[2]]
            else:
                choices = schema.get("oneOf") or schema["anyOf"]
                schema = next((choice for choice in choices if choice.get("type") != "null"), choices[0])
        return schema

    def _fields(self, schema: Schema, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
        """Yield the path of every field, at every depth; () is the body itself."""
        yield prefix
        schema = self._resolved(schema)
        if len(prefix) > 6:
            return
        for name, part in schema.get("properties", {}).items():
            yield from self._fields(part, (*prefix, name))
        if isinstance(schema.get("items"), dict):
            yield from self._fields(schema["items"], (*prefix, 0))
        if isinstance(schema.get("additionalProperties"), dict):
            yield from self._fields(schema["additionalProperties"], (*prefix, "key"))

    def _encoded(self, schema: Schema, hostile: dict[tuple[str | int, ...], str]) -> bytes:
        """Return a body that is right but for what is hostile."""
        return self._text(schema, (), hostile).encode("utf-8", "surrogatepass")

    def _text(self, schema: Schema, at: tuple[str | int, ...], hostile: dict[tuple[str | int, ...], str]) -> str:
        if at in hostile:
            return hostile[at]
        schema = self._resolved(schema)
        below = {place[len(at)] for place in hostile if place[: len(at)] == at and len(place) > len(at)}
        if "properties" in schema:
            named = {name: part for name, part in schema["properties"].items()
                     if name in schema.get("required", ()) or name in below}  # fmt: skip
            return self._object(named, at, hostile)
        if isinstance(schema.get("items"), dict):
            needed = schema.get("minItems", 0) or len(below)
            return "[" + ",".join([self._text(schema["items"], (*at, 0), hostile)] * needed) + "]"
        if below:
            return self._object({"key": schema["additionalProperties"]}, at, hostile)
        return json.dumps(self._usual(schema, at))

    def _usual(self, schema: Schema, at: tuple[str | int, ...]) -> Any:
        """Return a right value; the name of something that exists, where one is asked for."""
        name = next((str(place) for place in reversed(at) if isinstance(place, str)), "")
        if schema.get("type") == "string" and not schema.get("enum"):
            for known in (name, name.removesuffix("s")):
                if known in self._by_field:
                    return self._by_field[known]
        return _usual(schema, name)

    def _object(
        self, parts: dict[str, Schema], at: tuple[str | int, ...], hostile: dict[tuple[str | int, ...], str]
    ) -> str:
        texts = (f"{json.dumps(name)}:{self._text(part, (*at, name), hostile)}" for name, part in parts.items())
        return "{" + ",".join(texts) + "}"


def _usual(schema: Schema, name: str) -> Any:
    if "default" in schema and schema["default"] is not None:
        return schema["default"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind in ("integer", "number"):
        return max(1, schema.get("minimum", 1))
    if kind == "boolean":
        return False
    if kind in ("array", "object"):
        return [] if kind == "array" else {}
    known = {"image": "tiny", "user": "fuzzed", "vm": "vm-fuzzed", "node": "host-fuzzed", "project": "fuzzed"}
    return known.get(name, "usual-name"[: schema.get("maxLength", 100)].ljust(schema.get("minLength", 0), "x"))
