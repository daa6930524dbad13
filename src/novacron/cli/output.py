"""What people and programs see: tables, JSON, progress, errors, exit codes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from novacron.cli import authorities
from novacron.client import ApiError, Unreachable
from novacron.client.errors import ArchiveError
from novacron.terminal import safe, say, say_json

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_REFUSED = 4
EXIT_UNAUTHENTICATED = 5
EXIT_UNREACHABLE = 6
EXIT_TIMEOUT = 7


class OutputFormat(StrEnum):
    TABLE = "table"
    JSON = "json"


Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="table for people, json for programs")]
"""The option that every command which shows something has."""

Object = dict[str, Any]
Columns = dict[str, Callable[[Object], Any]]


def show_json(value: object) -> None:
    say_json(value)


def table(rows: Iterable[Object], columns: Columns) -> None:
    """Print a table for people; with no rows, only its head."""
    lines = [list(columns)] + [[text(get(row)) for get in columns.values()] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def rows(objects: Iterable[Object], columns: Columns, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        show_json(list(objects))
    else:
        table(objects, columns)


def fields(details: Object, columns: Columns, output: OutputFormat) -> None:
    """Print one object, a field a line."""
    if output is OutputFormat.JSON:
        show_json(details)
        return
    width = max(len(name) for name in columns)
    for name, get in columns.items():
        say(f"{name.ljust(width)}  {text(get(details))}")


def text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(text(v) for v in value) or "-"
    return safe(str(value))


RATE_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def parse_rate(text: str) -> int:
    """Return bytes a second of ``100Mbit`` or ``1.5Gbit``. Raises typer.BadParameter."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(kbit|mbit|gbit)(?:/s)?", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no rate: write it like 100Mbit or 1.5Gbit")
    return int(float(match[1]) * RATE_UNITS[match[2]] / 8)


def rate(bytes_per_s: float | None) -> str:
    """Return a rate as networks state it, in bits."""
    return "-" if bytes_per_s is None else f"{bytes_per_s * 8 / 1e6:g} Mbit/s"


def size(count: float | None) -> str:
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def age(stamp: str) -> str:
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{max(seconds, 0)}s"


def fail(message: str, code: int, hint: str = "") -> typer.Exit:
    say(f"error: {message}", err=True)
    if hint:
        say(hint, err=True)
    return typer.Exit(code)


@contextmanager
def errors() -> Iterator[None]:
    """Turn the SDK's errors into one message and an exit code."""
    try:
        yield
        authorities.follow()
    except ApiError as error:
        code = {401: EXIT_UNAUTHENTICATED, 404: EXIT_NOT_FOUND, 503: EXIT_UNREACHABLE}.get(error.status, EXIT_REFUSED)
        raise fail(error.text, EXIT_USAGE if error.status == 400 else code, error.hint) from None
    except Unreachable as error:
        raise fail(str(error), EXIT_UNREACHABLE) from None
    except ArchiveError as error:
        raise fail(str(error), EXIT_FAILED) from None
    except (FileExistsError, FileNotFoundError) as error:
        raise fail(str(error), EXIT_USAGE) from None
    except TimeoutError as error:
        raise fail(str(error), EXIT_TIMEOUT) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Return labels given as KEY=VALUE. Raises typer.BadParameter."""
    labels = {}
    for text in texts:
        key, sep, value = text.partition("=")
        if not sep:
            raise typer.BadParameter(f"{text!r} is no label; write it like disk=ssd")
        labels[key] = value
    return labels
