"""Text of requests: what no field can hold is refused here, before any route runs, and numbers in addresses have a
range."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

import msgspec

from novacron.model.errors import InvalidInput

INT64_MAX = 2**63 - 1
ESCAPED_NUL = b"\\u0000"
HINT = "send text in UTF-8 without zero bytes"


def check_address(path: str, query: bytes) -> None:
    """Raise InvalidInput for a zero byte in the path or query, or a query that is not UTF-8."""
    if "\0" in path:
        raise InvalidInput("the path contains a zero byte", hint=HINT)
    if b"%" not in query and query.isascii():
        return
    for pair in query.split(b"&"):
        name, _, value = (unquote_to_bytes(part.replace(b"+", b" ")) for part in pair.partition(b"="))
        try:
            text = (name + value).decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise InvalidInput(
                "contains a zero byte or is not UTF-8",
                field=name.decode(errors="replace").replace("\0", "\\0"),
                hint=HINT,
            )


def check_body(raw: bytes) -> None:
    """Raise InvalidInput, naming the field, for a zero byte in valid JSON: no column of the database can hold one."""
    if ESCAPED_NUL not in raw:
        return
    field = _with_nul(msgspec.json.decode(raw), "")
    if field is not None:
        raise InvalidInput("contains a zero byte", field=field.replace("\0", "\\0") or None, hint=HINT)


def _with_nul(value: object, path: str) -> str | None:
    """Return the path of the first text with a zero byte in a JSON value; its depth is limited by the decoder."""
    if isinstance(value, str):
        return path if "\0" in value else None
    parts: Iterable[tuple[str, object]] = ()
    if isinstance(value, list):
        parts = ((path, item) for item in value)
    elif isinstance(value, dict):
        parts = ((f"{path}.{key}".removeprefix("."), item) for key, item in value.items())
    for field, item in parts:
        if "\0" in field:
            return field
        field_below = _with_nul(item, field)
        if field_below is not None:
            return field_below
    return None


def natural(text: str, field: str, *, hint: str, most: int = INT64_MAX) -> int:
    """Return a number in an address: decimal digits, from 0 to ``most``. Raises InvalidInput."""
    digits = len(str(most))
    if not (text.isascii() and text.isdecimal() and len(text) <= digits and int(text) <= most):
        shown = text if len(text) <= digits else f"{text[:digits]}..."
        raise InvalidInput(f"{shown!r} is not a number from 0 to {most}", field=field, hint=hint)
    return int(text)
