"""What is written at the end of a transaction, in one statement: log lines, which nothing in the transaction reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from novacron.store.connection import Connection

IN_TURN = "/* in turn */ true"
"""A condition in a statement for ``all_at_once``: there the statement waits for its turn, before it writes."""


class Table:
    """Where rows go: the table's columns with their types."""

    def __init__(self, name: str, columns: dict[str, str]) -> None:
        values = ", ".join(f"${n}::{type}[]" for n, type in enumerate(columns.values(), 1))
        self.columns = tuple(columns)
        self.insert = f"INSERT INTO {name} ({', '.join(columns)}) SELECT * FROM unnest({values})"


class _Pending:
    def __init__(self) -> None:
        self.rows: dict[Table, list[Sequence[Any]]] = {}
        self.statements: list[tuple[str, tuple[Any, ...]]] = []


_pending: ContextVar[_Pending | None] = ContextVar("pending", default=None)


async def add(connection: Connection, table: Table, rows: Sequence[Sequence[Any]]) -> None:
    """Add rows to a table: at the end of the transaction, or at once where nobody waits for its end."""
    pending = _pending.get()
    if pending is not None:
        pending.rows.setdefault(table, []).extend(rows)
    elif rows:
        await connection.execute(table.insert, *map(list, zip(*rows, strict=True)))


async def execute(connection: Connection, statement: str, *arguments: object) -> None:
    """Write something else then, as ``add`` does."""
    pending = _pending.get()
    if pending is not None:
        pending.statements.append((statement, arguments))
    else:
        await connection.execute(statement, *arguments)


@contextmanager
def waiting() -> Iterator[_Pending]:
    """Collect what is added in the block."""
    pending = _Pending()
    token = _pending.set(pending)
    try:
        yield pending
    finally:
        _pending.reset(token)


@contextmanager
def undone_with_block() -> Iterator[None]:
    """Forget what was added in the block if that fails, as a savepoint does with what was written."""
    pending = _pending.get() or _Pending()
    counts, statements = {table: len(rows) for table, rows in pending.rows.items()}, len(pending.statements)
    try:
        yield
    except BaseException:
        for table, rows in pending.rows.items():
            del rows[counts.get(table, 0) :]
        del pending.statements[statements:]
        raise


def all_at_once(
    statement: str, arguments: Sequence[Any], rows: dict[Table, list[Sequence[Any]]],
    answer: tuple[str, Sequence[Any]] | None = None, turn: tuple[str, Sequence[Any]] | None = None,
) -> tuple[str, list[Any]]:  # fmt: skip
    """Return one statement, with its arguments, that does ``statement``, and if that returns a row, adds ``rows`` and
    does ``answer``, which reads the row from ``done`` and returns columns that are added to it.

    ``turn``: a query that returns a row once nobody else is at work on the same; ``statement`` writes nothing before.
    Raises ValueError if the statement does not have ``IN_TURN``.
    """
    texts, values = list[str](), list(arguments)
    if turn is not None:
        if IN_TURN not in statement:
            raise ValueError("the statement does not say where it waits for its turn")
        texts.append(f"turn AS MATERIALIZED ({_numbered(turn[0], len(values))})")
        statement = statement.replace(IN_TURN, "EXISTS (SELECT FROM turn)")
        values += turn[1]
    texts.append(f"done AS ({statement})")
    for n, (table, added) in enumerate(rows.items()):
        insert = f"{_numbered(table.insert, len(values))} WHERE EXISTS (SELECT FROM done)"
        texts.append(f"w{n} AS ({insert})")
        values += map(list, zip(*added, strict=True))
    if answer is None:
        return f"WITH {', '.join(texts)} SELECT * FROM done", values
    texts.append(f"answer AS ({_numbered(answer[0], len(values))})")
    values += answer[1]
    return f"WITH {', '.join(texts)} SELECT * FROM done, answer", values


def _numbered(statement: str, after: int) -> str:
    """Return a statement whose first argument is the one after ``after`` others."""
    return re.sub(r"\$(\d+)", lambda match: f"${int(match[1]) + after}", statement)


async def write(connection: Connection, pending: _Pending) -> None:
    """Write what was collected."""
    parts = [(table.insert, tuple(map(list, zip(*rows, strict=True)))) for table, rows in pending.rows.items() if rows]
    parts += pending.statements
    if not parts:
        return
    texts, values = [], list[Any]()
    for text, arguments in parts:
        texts.append(_numbered(text, len(values)))
        values += arguments
    *first, last = texts
    named = ", ".join(f"w{n} AS ({text})" for n, text in enumerate(first))
    await connection.execute(f"WITH {named} {last}" if named else last, *values)
