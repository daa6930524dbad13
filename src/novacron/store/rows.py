"""Reading rows; of many, one that can't be decoded does not hide the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import asyncpg
import msgspec

from novacron.telemetry import logs
from novacron.telemetry.values import counter

log = logs.get(__name__)

REPORTED_MAX = 1000
"""How many bad rows are remembered as reported; beyond that they are only counted."""
ERROR_LENGTH_MAX = 300
UNDECODABLE = (msgspec.ValidationError, ValueError, TypeError, KeyError, AttributeError)
"""What decoding a row raises that it can't be decoded."""

T = TypeVar("T")

_reported: set[tuple[str, str, str]] = set()


def object_of(type_: type[T], row: asyncpg.Record | None) -> T:
    """Return a row as an object of its type. ``row`` comes from a statement that must return one.

    Raises msgspec.ValidationError.
    """
    assert row is not None
    return msgspec.convert(dict(row), type_)


class UnreadableRow(Exception):
    """A row can't be decoded, and without it nothing may be said of what it belongs to. It was counted and logged."""


class Decoded(NamedTuple, Generic[T]):
    """Rows that were decoded, and whose rows could not be."""

    rows: list[T]
    unreadable: set[str]


def decode_each(table: str, rows: Iterable[Any], decode_row: Callable[[Any], T], *, key: str = "id") -> list[T]:
    """Decode rows; leave out those that can't be decoded.

    A bad row is counted each time (``novacron_database_bad_rows_total``) and logged once per process, with its
    ``table``, its ``key`` and the error. Callers must be safe without the row: use this where rows are independent.
    """
    return decode(table, rows, decode_row, key=key).rows


def decode(
    table: str, rows: Iterable[Any], decode_row: Callable[[Any], T], *, key: str = "id", of: str | None = None
) -> Decoded[T]:
    """Decode rows as ``decode_each`` does, and return, too, the column ``of`` (by default: the key) of bad ones.

    For callers to whom a row that is left out would look like one that is gone.
    """
    decoded, unreadable = list[T](), set[str]()
    for row in rows:
        try:
            decoded.append(decode_row(row))
        except UNDECODABLE as error:
            report_bad_row(table, str(row[key]), error)
            unreadable.add(str(row[of or key]))
    return Decoded(decoded, unreadable)


def decode_whole(table: str, rows: Iterable[Any], decode_row: Callable[[Any], T], *, key: str = "id") -> list[T]:
    """Decode rows that mean something only together. Raises UnreadableRow if one of them can't be decoded."""
    return whole(table, decode(table, rows, decode_row, key=key))


def whole(table: str, decoded: Decoded[T]) -> list[T]:
    """Return rows that mean something only together. Raises UnreadableRow if one of them could not be decoded."""
    if decoded.unreadable:
        raise UnreadableRow(f"{table}: {', '.join(sorted(decoded.unreadable))[:ERROR_LENGTH_MAX]}")
    return decoded.rows


def report_bad_row(table: str, key: str, error: Exception) -> None:
    """Count a row that can't be decoded, and log it the first time."""
    counter("novacron_database_bad_rows_total").add(table)
    text = f"{type(error).__name__}: {error}"[:ERROR_LENGTH_MAX]
    if (table, key, text) not in _reported and len(_reported) < REPORTED_MAX:
        _reported.add((table, key, text))
        log.error("a row can't be decoded and is left out", table=table, key=key, error=text)
