"""Values that no field can hold are refused with the field's name, before anything is done with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.api.access.authentication import COOKIE
from novacron.api.edge import text
from novacron.model import constraints, names
from novacron.model.errors import InvalidInput
from novacron.model.token import same_secret
from tests.integration.conftest import Api

SOURCES = Path(text.__file__).parents[2]
BODIES: tuple[tuple[str, str, Any, str], ...] = (
    ("POST", "/api/v1/tokens", {"name": "a\0b"}, "name"),
    ("POST", "/api/v1/tokens", {"name": "a", "user": "a\0b"}, "user"),
    ("POST", "/api/v1/grants", {"user": "a\0b", "role": "viewer"}, "user"),
    ("POST", "/api/v1/projects", {"name": "nul", "description": "a\0b"}, "description"),
    ("PATCH", "/api/v1/projects/prey", {"description": "a\0b"}, "description"),
    ("POST", "/api/v1/login", {"user": "a\0b", "password": "x"}, "user"),
    ("POST", "/api/v1/imports", {"name": "nul", "url": "https://nova/a", "description": "\0"}, "description"),
    ("PATCH", "/api/v1/nodes/host-a", {"labels": {"a": "\0"}}, "labels"),
)
QUERIES = (
    ("/api/v1/audit?actor=a%00b", "actor"),
    ("/api/v1/audit?object=%00", "object"),
    ("/api/v1/audit?address=%ff", "address"),
    ("/api/v1/audit?cursor=9223372036854775808", "cursor"),
    ("/api/v1/audit?cursor=" + "9" * 4400, "cursor"),
    ("/api/v1/audit?since=0001-01-01T00:00:00%2B14:00", "since"),
    ("/api/v1/audit?until=9999-12-31T23:59:59-14:00", "until"),
    ("/api/v1/api-log?user=a%00b", "user"),
    ("/api/v1/api-log?since=0001-01-01T00:00:00%2B14:00", "since"),
    ("/api/v1/vms?name=%ed%a0%80", "name"),
    ("/api/v1/vms?min_revision=" + "9" * 4400, "min_revision"),
)


@pytest.mark.parametrize(("method", "path", "body", "field"), BODIES)
def test_a_zero_byte_in_a_body_is_refused(api: Api, method: str, path: str, body: Any, field: str) -> None:
    answer = api(method, path, body)
    assert answer.status == 400 and answer.problem["field"].startswith(field), answer.body


@pytest.mark.parametrize(("path", "field"), QUERIES)
def test_what_no_parameter_can_be_is_refused(api: Api, path: str, field: str) -> None:
    answer = api("GET", path)
    assert answer.status == 400 and answer.problem["field"] == field, answer.body


def test_any_text_may_be_compared_with_a_secret(api: Api) -> None:
    assert not same_secret("\ud800\xe9", "a") and same_secret("\ud800\xe9", "\ud800\xe9")
    assert api("POST", "/api/v1/users", {"name": "browses", "password": "a long enough password"}).status == 201
    login = api("POST", "/api/v1/login", {"user": "browses", "password": "a long enough password"}, token=None)
    cookie = login.headers["set-cookie"].partition(";")[0]
    assert cookie.startswith(COOKIE)
    refused = api("POST", "/api/v1/tokens", {"name": "a"}, token=None, Cookie=cookie, X_CSRF_Token="\xe9")
    assert refused.status == 403 and refused.problem["field"] == "X-CSRF-Token"


def test_the_field_with_a_zero_byte_is_named_at_any_depth() -> None:
    for value, field in (
        ({"a": {"b": [{"c": "\0"}]}}, "a.b.c"), ({"a": {"k\0": 1}}, "a.k\\0"), (["\0"], None), ("\0", None),
    ):  # fmt: skip
        with pytest.raises(InvalidInput) as caught:
            text.check_body(msgspec.json.encode(value))
        assert caught.value.field == field
    text.check_body(b'{"a": "\\\\u0000"}')
    text.check_address("/a", b"name=%e2%82%ac+%20&x")


def test_numbers_in_addresses_are_ascii_digits_within_64_bits() -> None:
    assert text.natural("9223372036854775807", "cursor", hint="") == 2**63 - 1
    for wrong in ("", "-1", "+1", " 1", "1.0", "\u0661", "9223372036854775808", "0" * 20, "9" * 5000):
        with pytest.raises(InvalidInput):
            text.natural(wrong, "cursor", hint="")


def test_no_pattern_takes_a_newline_at_its_end() -> None:
    """``$`` also matches before a last newline; names reach command lines, files and other programs."""
    for pattern, good in ((names.NAME_PATTERN, "a"), (constraints.LABEL_PATTERN, "a")):
        assert re.search(pattern, good) and not re.search(pattern, f"{good}\n")
    patterns = re.compile(r"""(?<!\\)\$["'](?![^\n]*re\.M)""")
    for path in SOURCES.rglob("*.py"):
        if path.name.startswith("openapi_"):  # in the document's own dialect, where $ takes no newline
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert "^" not in line or not patterns.search(line), f"{path}:{number}: end the pattern with \\Z"


def test_secrets_are_compared_in_one_place() -> None:
    users = {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py") if "compare_digest" in path.read_text()}
    assert users == {"model/token.py"}
