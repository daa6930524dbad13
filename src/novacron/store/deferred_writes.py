"""What is written at the end of a transaction, in one statement: log lines, which nothing in the transaction reads."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from novacron.store.connection import Connection

TEXTS_MAX = 256
"""Composed statements that are remembered: to compose one takes as long as a tenth of what it does."""
IN_TURN = "/* in turn */ true"
"""A condition in a statement for ``all_at_once``: there the statement waits for its turn, before it writes."""


class Table:
    """Where rows go: the table's columns with their types. ``turns``: the column by whose values the rows of one
    statement are ordered, because to write one is to wait for whoever writes of the same."""

    def __init__(self, name: str, columns: dict[str, str], turns: str | None = None) -> None:
        values = ", ".join(f"${n}::{type}[]" for n, type in enumerate(columns.values(), 1))
        self.columns = tuple(columns)
        self.insert = f"INSERT INTO {name} ({', '.join(columns)}) SELECT * FROM unnest({values})"
        self._turns = None if turns is None else self.columns.index(turns)

    def arguments(self, rows: Sequence[Sequence[object]]) -> list[list[object]]:
        """Return rows as ``insert`` takes them: its columns."""
        turns = self._turns
        ordered = rows if turns is None else sorted(rows, key=lambda row: str(row[turns]))
        return list(map(list, zip(*ordered, strict=True)))


class _Pending:
    def __init__(self) -> None:
        self.rows: dict[Table, list[Sequence[object]]] = {}
        self.statements: list[tuple[str, tuple[object, ...]]] = []


_pending: ContextVar[_Pending | None] = ContextVar("pending", default=None)


async def add(connection: Connection, table: Table, rows: Sequence[Sequence[object]]) -> None:
    """Add rows to a table: at the end of the transaction, or at once where nobody waits for its end."""
    pending = _pending.get()
    if pending is not None:
        pending.rows.setdefault(table, []).extend(rows)
    elif rows:
        await connection.execute(table.insert, *table.arguments(rows))


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
    statement: str, arguments: Sequence[object], rows: Mapping[Table, Sequence[Sequence[object]]],
    answer: tuple[str, Sequence[object]] | None = None, turn: tuple[str, Sequence[object]] | None = None,
) -> tuple[str, list[object]]:  # fmt: skip
    """Return one statement, with its arguments, that does ``statement``, and if that returns a row, adds ``rows`` and
    does ``answer``, which reads the row from ``done`` and returns columns that are added to it.

    ``turn``: a query that returns a row once nobody else is at work on the same; ``statement`` writes nothing before.
    Raises ValueError if the statement does not have ``IN_TURN``.
    """
    counts = [len(arguments), *(len(part[1]) for part in (turn,) if part), *(len(table.columns) for table in rows)]
    text = _all_at_once_text(
        statement, tuple(table.insert for table in rows), answer and answer[0], turn and turn[0], tuple(counts)
    )
    values = [*arguments, *(turn[1] if turn else ())]
    for table, added in rows.items():
        values += table.arguments(added)
    return text, [*values, *(answer[1] if answer else ())]


@functools.lru_cache(TEXTS_MAX)
def _all_at_once_text(
    statement: str, inserts: tuple[str, ...], answer: str | None, turn: str | None, counts: tuple[int, ...]
) -> str:
    """Return the text. ``counts``: arguments of the statement, of ``turn`` if there is one, and of each insert."""
    starts, texts = list(itertools.accumulate(counts)), list[str]()
    if turn is not None:
        if IN_TURN not in statement:
            raise ValueError("the statement does not say where it waits for its turn")
        texts.append(f"turn AS MATERIALIZED ({numbered(turn, starts.pop(0))})")
        statement = statement.replace(IN_TURN, "EXISTS (SELECT FROM turn)")
    texts.append(f"done AS ({statement})")
    for n, insert in enumerate(inserts):
        texts.append(f"w{n} AS ({numbered(insert, starts[n])} WHERE EXISTS (SELECT FROM done))")
    if answer is None:
        return f"WITH {', '.join(texts)} SELECT * FROM done"
    texts.append(f"answer AS ({numbered(answer, starts[len(inserts)])})")
    return f"WITH {', '.join(texts)} SELECT * FROM done, answer"


def numbered(statement: str, after: int) -> str:
    """Return a statement whose first argument is the one after ``after`` others."""
    return re.sub(r"\$(\d+)", lambda match: f"${int(match[1]) + after}", statement)


async def write(connection: Connection, pending: _Pending) -> None:
    """Write what was collected."""
    parts: list[tuple[str, tuple[object, ...]]] = [
        (table.insert, tuple(table.arguments(rows))) for table, rows in pending.rows.items() if rows
    ]
    parts += pending.statements
    if not parts:
        return
    text = _write_text(tuple((text, len(arguments)) for text, arguments in parts))
    await connection.execute(text, *(value for _, arguments in parts for value in arguments))


@functools.lru_cache(TEXTS_MAX)
def _write_text(parts: tuple[tuple[str, int], ...]) -> str:
    texts, count = list[str](), 0
    for text, arguments in parts:
        texts.append(numbered(text, count))
        count += arguments
    *first, last = texts
    named = ", ".join(f"w{n} AS ({text})" for n, text in enumerate(first))
    return f"WITH {named} {last}" if named else last
