"""Reading rows; of many, one that can't be decoded does not hide the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import asyncpg
import msgspec

from novacron.telemetry import logs
from novacron.telemetry.values import counter

log = logs.get(__name__)

REPORTED_MAX = 1000
"""How many bad rows are remembered as reported; beyond that they are only counted."""
ERROR_LENGTH_MAX = 300

T = TypeVar("T")

_reported: set[tuple[str, str, str]] = set()


def object_of(type_: type[T], row: asyncpg.Record | None) -> T:
    """Return a row as an object of its type. ``row`` comes from a statement that must return one.

    Raises msgspec.ValidationError.
    """
    assert row is not None
    return msgspec.convert(dict(row), type_)


def decode_each(table: str, rows: Iterable[Any], decode: Callable[[Any], T], *, key: str = "id") -> list[T]:
    """Decode rows; leave out those that can't be decoded.

    A bad row is counted each time (``novacron_database_bad_rows_total``) and logged once per process, with its
    ``table``, its ``key`` and the error. Callers must be safe without the row: use this where rows are independent.
    """
    decoded = []
    for row in rows:
        try:
            decoded.append(decode(row))
        except (msgspec.ValidationError, ValueError, TypeError, KeyError, AttributeError) as error:
            report_bad_row(table, str(row[key]), error)
    return decoded


def report_bad_row(table: str, key: str, error: Exception) -> None:
    """Count a row that can't be decoded, and log it the first time."""
    counter("novacron_database_bad_rows_total").add(table)
    text = f"{type(error).__name__}: {error}"[:ERROR_LENGTH_MAX]
    if (table, key, text) not in _reported and len(_reported) < REPORTED_MAX:
        _reported.add((table, key, text))
        log.error("a row can't be decoded and is left out", table=table, key=key, error=text)
