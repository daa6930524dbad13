"""What all lists can do: filters, order, a limit, and showing what changes."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

UNITS = {
    "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "s": 1, "m": 60, "h": 3600, "d": 86400, "%": 1,
    "Mbit/s": 1,
}  # fmt: skip
MEASURED = re.compile(rf"([0-9]{{1,18}}(?:\.[0-9]{{1,9}})?) ?({'|'.join(UNITS)})")
WATCH_INTERVAL_S = 1.0
LIMIT_MAX = 1_000_000
UNSTEADY = frozenset({"AGE", "USED", "TIME"})
"""Columns that change while nothing happens."""


@dataclasses.dataclass(frozen=True)
class Condition:
    """``FIELD=VALUE`` or ``FIELD!=VALUE``: a field of the JSON, with dots, or a column of the table."""

    field: str
    pattern: str
    negated: bool

    def holds(self, item: Object, columns: Columns) -> bool:
        """Raises typer.BadParameter if there is no such field."""
        texts = _texts(_value(item, self.field, columns))
        return any(fnmatch.fnmatchcase(text, self.pattern) for text in texts) is not self.negated


def condition(text: str) -> Condition:
    """Raises typer.BadParameter."""
    field, equals, pattern = text.partition("=")
    negated = field.endswith("!")
    field = field.removesuffix("!").strip()
    if not equals or not field:
        raise typer.BadParameter(f"{text!r}: write FIELD=VALUE or FIELD!=VALUE", param_hint="'--filter'")
    return Condition(field, pattern.strip(), negated)


def _value(item: Object, field: str, columns: Columns) -> object:
    """Return a field of an object, such as ``status.state``, or what a column shows. Raises typer.BadParameter."""
    first, *others = field.split(".")
    if first in item:
        value: object = item[first]
        for name in others:
            value = value.get(name) if isinstance(value, dict) else None
        return value
    for name, get in columns.items():
        if name.lower().replace(" ", "-") == field.lower().replace(" ", "-").replace("_", "-"):
            return get(item)
    known = ", ".join(name.lower() for name in columns if name)
    raise typer.BadParameter(f"there is no field {field!r}; there are {known}, and those of -o json")


def _texts(value: object) -> list[str]:
    """Return what a pattern may match: each entry of a list, and a truth in two ways."""
    if isinstance(value, list | tuple):
        return [text for entry in value for text in _texts(entry)]
    if isinstance(value, bool):
        return ["true", "yes"] if value else ["false", "no"]
    return ["" if value is None else str(value)]


@dataclasses.dataclass(frozen=True)
class Listing:
    """Which objects of a list to show, and how."""

    limit: Annotated[int | None, typer.Option(min=1, max=LIMIT_MAX, help="maximum number of results")] = None
    filter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="only those of which a field, such as status.state, or a column has this value; it may have *, and !="
            " means another one; can be repeated",
        ),
    ] = None
    sort: Annotated[str | None, typer.Option(help="sort by this field or column; -FIELD for descending order")] = None
    watch: Annotated[bool, typer.Option("--watch", "-w", help="keep showing changes, until interrupted")] = False
    output: Output = OutputFormat.TABLE

    @property
    def page(self) -> int | None:
        """How many objects of a log to read: all of those that there are while not each of them is shown."""
        return self.limit if not self.filter and not self.watch else None

    def show(self, kind: str, columns: Columns, more: Columns | None = None, **filters: str | None) -> None:
        """Show the objects of a kind; ``filters`` are the API's, ``more`` are columns of the wide table."""
        given = {name: value for name, value in filters.items() if value}
        with output.errors():
            client = Client()
            self.show_read(lambda limit: client.list(kind, limit, **given), columns, more)

    def show_read(
        self, read: Callable[[int | None], Iterable[Object]], columns: Columns, more: Columns | None = None
    ) -> None:
        """Show what ``read(limit)`` returns."""
        known = {**columns, **(more or {})}
        fits = self._fits(known)

        def selected() -> Iterator[Object]:
            matching = filter(fits, read(None if self.filter or self.sort else self.limit))
            return itertools.islice(matching if self.sort is None else _sorted(matching, self.sort, known), self.limit)

        if self.watch:
            Watch(columns, more, self.output).follow(selected)
        else:
            output.rows(selected(), columns, self.output, more)

    def _fits(self, columns: Columns) -> Callable[[Object], bool]:
        """Return what says whether an object is to be shown. Raises typer.BadParameter."""
        conditions = [condition(text) for text in self.filter or ()]
        return lambda item: all(filter_.holds(item, columns) for filter_ in conditions)

    def show_log(self, read: Callable[[], Iterable[Object]], columns: Columns) -> None:
        """Show what ``read`` returns, newest first, of which the limit is counted before the order is changed; a watch
        shows new entries below those that were there."""
        fits, seen = self._fits(columns), ""

        def unseen() -> Iterator[Object]:
            nonlocal seen
            before, seen_now = seen, ""
            for entry in read():
                seen_now = seen_now or identity(entry)
                seen = seen_now
                if identity(entry) == before:
                    return
                yield entry

        entries = list(itertools.islice(filter(fits, unseen()), self.limit))
        if not self.watch:
            output.rows(entries if self.sort is None else _sorted(entries, self.sort, columns), columns, self.output)
            return
        watch = Watch(columns, None, self.output)
        watch.add(entries[::-1], first=True)
        while True:
            time.sleep(WATCH_INTERVAL_S)
            watch.add([entry for entry in unseen() if fits(entry)][::-1])

    def show_stream(self, read: Callable[[], Iterable[Object]], columns: Columns) -> None:
        """Show the objects of a stream as they come, until it ends."""
        watch = Watch(columns, None, self.output)
        for item in filter(self._fits(columns), read()):
            watch.add([item])


def _sorted(items: Iterable[Object], field: str, columns: Columns) -> list[Object]:
    falling, name = field.startswith("-"), field.removeprefix("-")
    return sorted(items, key=lambda item: _rank(_value(item, name, columns)), reverse=falling)


def _rank(value: object) -> tuple[bool, float, list[str | int]]:
    """Return what orders values: numbers, sizes and ages as such, before texts, in which web-2 comes before web-10."""
    if isinstance(value, int | float):
        return False, float(value), []
    shown = output.text(value)
    measured = MEASURED.fullmatch(shown)
    if measured:
        return False, float(measured[1]) * UNITS[measured[2]], []
    parts: list[str | int] = list(re.split(r"([0-9]{1,18})", shown))
    parts[1::2] = [int(digits) for digits in parts[1::2]]
    return True, 0.0, parts


class Watch:
    """Shows a list once, and then each object that is new, has changed or is gone."""

    def __init__(self, columns: Columns, more: Columns | None, format: OutputFormat) -> None:
        self._columns, self._more, self._format = columns, more, format
        self._shown: dict[str, object] = {}
        self._names: dict[str, str] = {}
        self._widths: list[int] = []

    def follow(self, read: Callable[[], Iterable[Object]]) -> None:
        """Ends with KeyboardInterrupt, or what ``read`` raises."""
        self.look(list(read()), first=True)
        while True:
            time.sleep(WATCH_INTERVAL_S)
            self.look(list(read()))

    def look(self, items: list[Object], *, first: bool = False) -> None:
        """Show what differs from what was shown."""
        changed: list[Object] = []
        present: dict[str, object] = {}
        for item in items:
            key = identity(item)
            present[key] = self._seen(item)
            self._names[key] = str(item.get("name") or key)
            if key not in self._shown or self._shown[key] != present[key]:
                changed.append(item)
        gone = [key for key in self._shown if key not in present]
        self._shown = present
        self.add(changed, first=first)
        for key in gone:
            self._print_gone(key, self._names.pop(key))

    def add(self, items: list[Object], *, first: bool = False) -> None:
        """Show objects below those that were shown."""
        if self._format.for_people:
            self._print(items, first=first)
        else:
            self._print_for_programs(items)

    def _seen(self, item: Object) -> object:
        if not self._format.for_people:
            return item
        return [output.text(get(item)) for name, get in self._columns.items() if name not in UNSTEADY]

    def _print(self, items: list[Object], *, first: bool) -> None:
        columns = output.widened(self._columns, self._more, items, self._format)
        lines = [list(columns)] if first else []
        lines += [[output.text(get(item)) for get in columns.values()] for item in items]
        if lines:
            present = self._widths + [0] * (len(lines[0]) - len(self._widths))
            self._widths = [max(present[i], *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
        for line in lines:
            padded = (cell.ljust(width) for cell, width in zip(line, self._widths, strict=False))
            say("  ".join(padded).rstrip(), flush=True)

    def _print_for_programs(self, items: list[Object]) -> None:
        for item in items:
            if self._format is OutputFormat.JSON:
                say(json.dumps(item), flush=True)
            else:
                output.show([item], self._format)

    def _print_gone(self, key: str, name: str) -> None:
        if self._format is OutputFormat.JSON:
            say(json.dumps({"key": key, "name": name, "deleted": True}), flush=True)
        elif self._format.for_people:
            say(f"{name}: gone", flush=True)


def identity(item: Object) -> str:
    """Return what tells an object of a list from the others."""
    for number in ("id", "seq"):
        if number in item:
            return str(item[number])
    parts = [str(item[key]) for key in ("project", "node", "name", "address") if item.get(key)]
    return "/".join(parts) or json.dumps(item)
